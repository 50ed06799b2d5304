"""Tokenizers of ensembles: encode as the first member's, decode every union id, render chats per member."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_rlae.errors import TokenizerError
from hf_rlae.vocabulary import UnionVocabulary
from hf_rlae.vocabulary.token_bytes import byte_level_alphabet

STOP_TOKEN = "<|stop|>"  # noqa: S105 (a token of the vocabulary)
"""The token string of STOP, which has no bytes."""


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads rows of ids on the left; returns ids and mask of shape `(B, L)`."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


if TYPE_CHECKING:
    _Base = PreTrainedTokenizerBase
else:
    _Base = object


class MemberChats(_Base):
    """A mixin for tokenizers that renders chats for every member.

    Attributes:
        member_tokenizers (`Sequence[PreTrainedTokenizerBase]`): the members' tokenizers, the first member's first.
        member_names (`Sequence[str]`): the members' names, for messages.
    """

    member_tokenizers: Sequence[PreTrainedTokenizerBase]
    member_names: Sequence[str]

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Renders conversations with each member's own chat template.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`): the messages, with `role` and `content`, of one or
                several conversations.
            args, kwargs: as in transformers. `tokenize=False` returns the first member's text.

        Returns:
            `BatchEncoding`: `input_ids` and `attention_mask` `(B, L)` of the first member, `member_input_ids` and
            `member_attention_mask` `(B, M, L')` of all members, padded on the left. Pass it to `generate`.

        Raises:
            TokenizerError: a member has no chat template.
        """
        if kwargs.get("tokenize") is False:
            return super().apply_chat_template(conversation, *args, **kwargs)
        for name in ("tokenize", "return_dict", "return_tensors", "padding"):
            kwargs.pop(name, None)
        conversations = [conversation] if conversation and isinstance(conversation[0], dict) else list(conversation)
        rows: list[list[list[int]]] = []
        for name, tokenizer in zip(self.member_names, self.member_tokenizers, strict=True):
            if not tokenizer.chat_template and not kwargs.get("chat_template"):
                raise TokenizerError(
                    f"the tokenizer of member {name} has no chat template; set its `chat_template`, or pass plain text "
                    "to the tokenizer instead of messages"
                )
            options = {**kwargs, "tokenize": False}
            texts = tokenizer.apply_chat_template(conversations, *args, **options)
            rows.append([list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
        pad = getattr(self, "pad_token_id", None) or 0
        first_ids, first_mask = padded(rows[0], pad)
        ids, mask = padded([ids for member_rows in rows for ids in member_rows], 0)
        shape = (len(rows), len(conversations), -1)
        return BatchEncoding(
            {
                "input_ids": first_ids,
                "attention_mask": first_mask,
                "member_input_ids": ids.view(shape).transpose(0, 1).contiguous(),
                "member_attention_mask": mask.view(shape).transpose(0, 1).contiguous(),
            }
        )


def shared_tokenizer(
    tokenizers: Sequence[PreTrainedTokenizerBase], names: Sequence[str], pad_token_id: int | None
) -> MemberChats:
    """A copy of the first member's tokenizer that pads on the left and renders chats for every member."""
    tokenizer: Any = copy.deepcopy(tokenizers[0])
    kind = type(tokenizer)
    tokenizer.__class__ = type(kind.__name__, (MemberChats, kind), {"__module__": kind.__module__})
    tokenizer.member_tokenizers = list(tokenizers)
    tokenizer.member_names = list(names)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if pad_token_id is None:
            pad_token_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
    return tokenizer


class EnsembleTokenizer(MemberChats, PreTrainedTokenizerFast):
    """Encodes as the first member's tokenizer does and decodes every id of the union vocabulary.

    Args:
        union (`UnionVocabulary`): the union vocabulary.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`): the members' tokenizers, the first member's first.
        names (`Sequence[str]`): the members' names, for messages.

    Attributes:
        eos_token (`str`): the token string of STOP; `eos_token_id` is `union.stop_id`.
    """

    def __init__(
        self, union: UnionVocabulary, tokenizers: Sequence[PreTrainedTokenizerBase], names: Sequence[str]
    ) -> None:
        first: Any = tokenizers[0]
        self.union = union
        self.member_tokenizers = list(tokenizers)
        self.member_names = list(names)
        self._tokenizer: Any  # the backend, set by transformers
        self._own_size = 0
        self._extra_ids: dict[str, int] = {}
        named = {name: token for name, token in first.special_tokens_map.items() if isinstance(token, str)}
        first_end = named.pop("eos_token", None)
        super().__init__(
            tokenizer_object=first.backend_tokenizer,
            padding_side="left",
            clean_up_tokenization_spaces=False,
            model_max_length=first.model_max_length,
            model_input_names=["input_ids", "attention_mask"],
            chat_template=first.chat_template,
            extra_special_tokens=[t for t in first.all_special_tokens if t not in named.values()],
            **named,
        )
        self._own_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._tokens = self._names_of_extra_tokens()
        self._extra_ids = {token: i for i, token in self._tokens.items()}
        self.eos_token: Any = self._tokens[union.stop_id]
        if self.pad_token_id is None:
            self.pad_token: Any = first_end or self._tokens[union.stop_id]
        self._strips = self._strips_leading_space()

    def _names_of_extra_tokens(self) -> dict[int, str]:
        """A unique token string for every union id that the first tokenizer lacks; readable if the bytes are text."""
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        taken = set(known)
        decoder = self._tokenizer.decoder
        byte_level = decoder is not None and b"ByteLevel" in bytes(decoder.__getstate__())
        letters = {byte: char for char, byte in byte_level_alphabet().items()}
        names: dict[int, str] = {}
        for i in range(self._own_size, self.union.size):
            piece = self.union.pieces[i]
            if i == self.union.stop_id:
                name = STOP_TOKEN
            elif piece is None:
                continue
            elif byte_level:
                name = "".join(letters[byte] for byte in piece)
            else:
                try:
                    name = piece.decode("utf-8").replace(" ", "▁")
                except UnicodeDecodeError:
                    name = "".join(f"<0x{byte:02X}>" for byte in piece)
            while name in taken:
                name = f"{name}#{i}"
            taken.add(name)
            names[i] = name
        return names

    def _strips_leading_space(self) -> bool:
        for i, piece in enumerate(self.union.pieces[: self._own_size]):
            if piece and len(piece) > 1 and piece[:1] == b" " and piece[1:].isalpha() and piece.isascii():
                return not super()._decode([i]).startswith(" ")
        return False

    def __len__(self) -> int:
        return self.union.size

    @property
    def vocab_size(self) -> int:
        """Size of the union vocabulary, V."""
        return self.union.size

    def get_vocab(self) -> dict[str, int]:
        """Every token string with its union id."""
        return self._tokenizer.get_vocab(with_added_tokens=True) | self._extra_ids

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        known = self._extra_ids.get(token)
        return known if known is not None else super()._convert_token_to_id_with_added_voc(token)

    def _convert_id_to_token(self, index: int) -> str | None:
        return self._tokens[index] if index in self._tokens else super()._convert_id_to_token(index)

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token strings of union ids."""
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._convert_id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of a list of token strings."""
        if not any(token in self._extra_ids for token in tokens):
            return super().convert_tokens_to_string(tokens)
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens], True)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        ids = [int(i) for i in ids]
        stop = self.union.stop_id
        if skip_special_tokens:
            ids = [i for i in ids if i != stop]
        if all(i < self._own_size for i in ids):
            return super()._decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        raw = []
        for i in ids:
            piece = self.union.pieces[i]
            if piece is not None:
                raw.append(piece)
            elif not skip_special_tokens:
                raw.append((self._convert_id_to_token(i) or "").encode())
        text = b"".join(raw).decode("utf-8", "replace")
        return text[1:] if self._strips and text.startswith(" ") else text
