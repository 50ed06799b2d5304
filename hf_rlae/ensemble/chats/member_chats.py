"""Renders chats with the chat template of every member."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi
from transformers import BatchEncoding, PreTrainedTokenizerBase

from hf_rlae.ensemble.tokenizer_files import TokenizerParts, write_tokenizer
from hf_rlae.errors import InputError, TokenizerError
from hf_rlae.members.chat_template import apply_chat_template

_POSITIONAL = ("tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize")
_PUSH_OPTIONS = ("commit_message", "private", "token", "revision", "create_pr")
_UNUSED = ("tokenize", "return_dict", "return_tensors", "padding", "truncation", "max_length")

if TYPE_CHECKING:
    _Base = PreTrainedTokenizerBase
else:
    _Base = object


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads rows of ids on the left; returns ids and mask of shape `(B, L)`."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


def member_inputs(rows: Sequence[Sequence[Sequence[int]]]) -> dict[str, torch.Tensor]:
    """`member_input_ids` and `member_attention_mask` `(B, M, L)` of the ids of M members, each of B rows."""
    ids, mask = padded([ids for member_rows in rows for ids in member_rows], 0)
    shape = (len(rows), len(rows[0]), -1)
    return {
        "member_input_ids": ids.view(shape).transpose(0, 1).contiguous(),
        "member_attention_mask": mask.view(shape).transpose(0, 1).contiguous(),
    }


class ChatEncoding(BatchEncoding):
    """What `apply_chat_template` returns: a `BatchEncoding` that text-generation pipelines of transformers can batch.

    A pipeline adds the entry `prompt_text`, pads all entries to a batch, which it cannot do for `member_input_ids`, and
    passes `input_ids` and `attention_mask` on to `generate`, where the chat is recognised by these.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "prompt_text":
            for name in ("member_input_ids", "member_attention_mask"):
                self.data.pop(name, None)
        self.data[key] = value


def parts_of(messages: Any) -> Iterator[Any]:
    """The parts of the messages of a conversation whose contents are lists of parts."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            yield from content


def is_media(part: Any) -> bool:
    """Whether a part of a message is an image, a video or audio, and no text."""
    return isinstance(part, dict) and part.get("type") in ("image", "image_url", "video", "audio")


def render(tokenizer: Any, name: str, conversations: Sequence[Any], options: dict[str, Any]) -> list[str]:
    """The texts that a member's chat template gives.

    Args:
        tokenizer (`PreTrainedTokenizerBase`), name (`str`): the member's.
        conversations (`Sequence[list[dict]]`): the messages of each conversation.
        options (`dict`): the other arguments of `apply_chat_template`.

    Raises:
        TokenizerError: the member has no chat template, or the template raises an error.
    """
    if not tokenizer.chat_template and not options.get("chat_template"):
        raise TokenizerError(
            f"the tokenizer of member {name} has no chat template; set its `chat_template`, or pass plain text to the "
            "tokenizer instead of messages"
        )
    try:
        return list(apply_chat_template(tokenizer, name, list(conversations), **{**options, "tokenize": False}))
    except TokenizerError:
        raise
    except Exception as error:  # a template may raise anything
        raise TokenizerError(
            f"the chat template of member {name} cannot render these messages: {type(error).__name__}: {error}. Pass "
            "messages with the roles and fields that every member's template knows, or leave the member out"
        ) from error


class MemberChats(_Base):
    """A mixin for tokenizers that renders chats for every member.

    Attributes:
        member_tokenizers (`Sequence[PreTrainedTokenizerBase]`): the members' tokenizers, the first member's first.
        member_names (`Sequence[str]`): the members' names, for messages.
        first_template: the first member's template; another `chat_template` that is set later is for all members.
    """

    member_tokenizers: Sequence[PreTrainedTokenizerBase]
    member_names: Sequence[str]
    first_template: Any

    @property
    def has_one_template(self) -> bool:
        """Whether all members render chats with one template."""
        return all(own.chat_template == self.first_template for own in self.member_tokenizers)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Renders conversations with each member's own chat template.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`): the messages, with `role` and `content`, of one or
                several conversations.
            args, kwargs: as in transformers. `tokenize=False` returns the first member's text, `return_dict=False` the
                first member's ids. With different tokenizers `sanitize_control_tokens` is `True` by default: the names
                of control tokens in messages are text.

        Returns:
            `BatchEncoding`: `input_ids` and `attention_mask` `(B, L)` of the first member, `member_input_ids` and
            `member_attention_mask` `(B, M, L')` of all members, padded on the left. Pass it to `generate`.

        Raises:
            TokenizerError: a member has no chat template, or its template raises an error; the message names it.
            InputError: `truncation` of a chat that is longer than `max_length` in the tokens of some member.
        """
        given = dict(zip(_POSITIONAL, args, strict=False)) | kwargs
        options = {name: value for name, value in given.items() if name not in _UNUSED}
        if self.chat_template != self.first_template:
            options.setdefault("chat_template", self.chat_template)
        is_single = bool(conversation) and isinstance(conversation[0], dict)
        conversations = [conversation] if is_single else list(conversation)
        if any(is_media(part) for messages in conversations for part in parts_of(messages)):
            raise InputError(
                "the messages have images or other media, which a tokenizer does not read; make the inputs with "
                "`ensemble.processor.apply_chat_template(messages)`"
            )
        if given.get("tokenize") is False:
            texts = self.rendered(conversations, options)
            return texts[0] if is_single else texts
        rows = [self.chat_ids(index, conversations, options) for index in range(len(self.member_tokenizers))]
        whole = rows
        if given.get("truncation"):
            rows = self._cut(rows, given.get("max_length"))
        if rows[0] == whole[0]:
            self.remember(rows[0], conversations, options)
        pad = getattr(self, "pad_token_id", None) or 0
        first_ids, first_mask = padded(rows[0], pad)
        if given.get("return_dict") is False:
            found: Any = first_ids if given.get("return_tensors") else rows[0]
            return found[0] if is_single and not given.get("return_tensors") else found
        encoding = ChatEncoding({"input_ids": first_ids, "attention_mask": first_mask})
        encoding.update(member_inputs(rows))
        return encoding

    def rendered(self, conversations: Sequence[Any], options: dict[str, Any]) -> list[str]:
        """The first member's texts."""
        return render(self.member_tokenizers[0], self.member_names[0], conversations, options)

    def chat_ids(self, index: int, conversations: Sequence[Any], options: dict[str, Any]) -> list[list[int]]:
        """A member's ids of several conversations.

        Args:
            index (`int`): the member.
            conversations (`Sequence[list[dict]]`), options (`dict`): see [`render`].
        """
        tokenizer, own = self.member_tokenizers[index], dict(options)
        if own.pop("sanitize_control_tokens", False):
            own.update(sanitize_control_tokens=True, return_dict=False)
            texts = apply_chat_template(tokenizer, self.member_names[index], list(conversations), **own)
            return [list(ids) for ids in texts]
        texts = render(tokenizer, self.member_names[index], conversations, own)
        return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def remember(self, rows: Sequence[Sequence[int]], conversations: Sequence[Any], options: dict[str, Any]) -> None:
        """Called with the first member's ids of rendered conversations."""

    def own_prompts(self, ids: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """`member_input_ids` and their mask for prompts that are given as the first member's ids alone.

        Args:
            ids (`torch.LongTensor` of shape `(B, L)`), mask (`torch.LongTensor`, *optional*): the prompts.

        Returns:
            `dict[str, torch.Tensor]`: empty if no row is a chat that was rendered in this process, and if the ensemble
            itself recognises chats.
        """
        return {}

    def parts(self) -> TokenizerParts:
        """What the tokenizer is made of, for saving."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Saves the tokenizer with the tokenizers of all members, for `AutoTokenizer.from_pretrained`.

        An ensemble's own `save_pretrained` saves its tokenizer without theirs, which are then loaded from the places of
        the members.

        Args:
            save_directory (`str` or `os.PathLike`): created if it does not exist.
            args, kwargs: as in transformers; `push_to_hub` uploads the folder.

        Returns:
            `tuple[str, ...]`: the paths of the files.
        """
        files = write_tokenizer(self.parts(), save_directory, with_members=True)
        if kwargs.get("push_to_hub"):
            options = {name: kwargs[name] for name in _PUSH_OPTIONS if name in kwargs}
            self.push_to_hub(str(kwargs.get("repo_id") or Path(save_directory).name), **options)
        return tuple(files)

    def push_to_hub(  # type: ignore[override]  # transformers would upload no folders
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload tokenizer",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> Any:
        """Uploads what `save_pretrained` saves, in one commit; the arguments are those of transformers."""
        api = HfApi(token=token, library_name="hf_rlae")
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repository, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )

    def _cut(self, rows: list[list[list[int]]], max_length: int | None) -> list[list[list[int]]]:
        """Truncates the ids of each member; refuses if this would leave different texts."""
        limits = [max_length or tokenizer.model_max_length for tokenizer in self.member_tokenizers]
        for own, limit, name in zip(rows, limits, self.member_names, strict=True):
            longest = max(map(len, own))
            if longest > limit and any(own is not other and own != other for other in rows):
                raise InputError(
                    f"truncation=True: a chat has {longest} tokens for member {name}, more than max_length={limit}, "
                    "and cutting each member's rendering would leave every member another text; pass fewer or shorter "
                    "messages, or a larger max_length"
                )
        keeps_end = getattr(self, "truncation_side", "right") == "left"
        return [
            [ids[-limit:] if keeps_end else ids[:limit] for ids in own] for own, limit in zip(rows, limits, strict=True)
        ]
