"""The processor of an ensemble with a member that sees: inputs from images and text, for every member."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature

from hf_rlae.ensemble.chats.member_chats import MemberChats, is_media, member_inputs, padded, parts_of
from hf_rlae.ensemble.engines.prompts import rows_of
from hf_rlae.ensemble.engines.protocol import Engine
from hf_rlae.ensemble.images import seeing_member
from hf_rlae.errors import InputError, TokenizerError, first_sentence
from hf_rlae.members import Member
from hf_rlae.members.chat_template import apply_chat_template

_LEFT = {"padding": True, "padding_side": "left", "return_tensors": "pt"}


class EnsembleProcessor:
    """Makes the inputs of `generate` from images and text.

    The member that sees gets what its own processor makes. The other members read the text: in place of each image
    `image_text`, or nothing.

    Source: ours.

    Args:
        members (`Sequence[Member]`), engine (`Engine`), tokenizer (`MemberChats`): those of the ensemble.

    Attributes:
        tokenizer (`MemberChats`): decodes generated ids.

    Raises:
        InputError: no member sees, or several do.

    Example:

    >>> inputs = ensemble.processor(images=[image], text=["<image> What is this?"])  # doctest: +SKIP
    >>> ensemble.generate(**inputs, max_new_tokens=20)  # doctest: +SKIP
    """

    def __init__(self, members: Sequence[Member], engine: Engine, tokenizer: MemberChats) -> None:
        self.index = seeing_member(members, "processor")
        self.members = members
        self.engine = engine
        self.tokenizer = tokenizer
        self._own: Any = members[self.index].processor

    def __call__(self, images: Any = None, text: Any = None, *, image_text: str = "", **kwargs: Any) -> BatchFeature:
        """Inputs from texts that have a placeholder for each image, such as `<image>`.

        Args:
            images, text, kwargs: as of the processor of the member that sees; prompts are padded on the left.
            image_text (`str`, defaults to `""`): what the other members read in place of an image.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` `(B, L)` of the first member, `member_input_ids` and
            `member_attention_mask` `(B, M, L')` of all members, and the images (`pixel_values` and so on).

        Raises:
            InputError: texts and images that do not fit together, videos or audio.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        _check_media(kwargs)
        own = self._made(self._own, images=images, text=texts, **{**_LEFT, **kwargs})
        plain = [self._plain(entry, image_text) for entry in texts]
        batch = self.tokenizer(plain, return_tensors="pt", padding=True)
        others = rows_of(batch["input_ids"], batch["attention_mask"])
        return self._joined(own, [list(self.engine.encode_prompt(row)) for row in others])

    def apply_chat_template(self, conversation: Any, *, image_text: str = "", **kwargs: Any) -> BatchFeature:
        """Inputs from messages with images, rendered with each member's own chat template.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`): messages, whose content may be a list of parts such as
                `{"type": "image", "url": ...}` (or `"image"`, `"path"`) and `{"type": "text", "text": ...}`.
            image_text (`str`, defaults to `""`): what the other members read in place of an image.
            kwargs: as in transformers, such as `add_generation_prompt`.

        Returns:
            see `__call__`.

        Raises:
            TokenizerError: a member has no chat template, or its template raises an error.
            InputError: videos or audio in messages.
        """
        options = {name: value for name, value in kwargs.items() if name not in ("tokenize", "return_dict", *_LEFT)}
        is_single = bool(conversation) and isinstance(conversation[0], dict)
        conversations = [conversation] if is_single else list(conversation)
        for messages in conversations:
            _check_media({part["type"]: part for part in parts_of(messages) if is_media(part)})
        seeing = self.members[self.index]
        if not (self._own.chat_template or options.get("chat_template")):
            raise TokenizerError(
                f"the processor of member {seeing.name} has no chat template; set its `chat_template`, or call "
                "`ensemble.processor(images=..., text=...)`"
            )
        own = self._made(
            lambda **given: apply_chat_template(self._own, seeing.name, conversations, **given),
            **options,
            tokenize=True,
            return_dict=True,
            processor_kwargs=_LEFT,
        )
        plain = [_text_messages(messages, image_text) for messages in conversations]
        rows: list[list[tuple[int, ...]]] = [[] for _ in plain]
        for index in range(len(self.members)):
            found = [[]] * len(plain) if index == self.index else self.tokenizer.chat_ids(index, plain, options)
            for row, ids in zip(rows, found, strict=True):
                row.append(tuple(ids))
        return self._joined(own, rows)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """`tokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """`tokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def _made(self, make: Any, **kwargs: Any) -> BatchFeature:
        """What the processor of the member that sees returns; its errors name that member."""
        try:
            return make(**kwargs)
        except TokenizerError:
            raise
        except Exception as error:  # a processor may raise anything
            raise InputError(
                f"the processor of member {self.members[self.index].name} cannot read these inputs: "
                f"{type(error).__name__}: {first_sentence(error)} Give one {self._own.image_token!r} per image in the "
                "texts (or one part of type 'image' in the messages)"
            ) from error

    def _plain(self, text: str, image_text: str) -> str:
        """A text for the members that do not see."""
        seeing = self.members[self.index]
        names = [seeing.tokenizer.convert_ids_to_tokens(i) for i in sorted(seeing.image_ids)]
        pattern = "(?:" + "|".join(map(re.escape, {*names, self._own.image_token})) + ")+"
        return re.sub(pattern, lambda found: image_text * found.group().count(self._own.image_token), text)

    def _joined(self, own: BatchFeature, rows: list[list[tuple[int, ...]]]) -> BatchFeature:
        """The inputs of all members, from those of the member that sees and the prompts by row and member."""
        for row, seen in zip(rows, rows_of(own["input_ids"], own["attention_mask"]), strict=True):
            row[self.index] = seen
        images = {name: value for name, value in own.items() if name not in ("input_ids", "attention_mask")}
        if self.index == 0:
            first = {"input_ids": own["input_ids"], "attention_mask": own["attention_mask"]}
        else:
            ids, mask = padded([row[0] for row in rows], getattr(self.tokenizer, "pad_token_id", None) or 0)
            first = {"input_ids": ids, "attention_mask": mask}
        return BatchFeature({**first, **member_inputs(list(zip(*rows, strict=True))), **images})


def _check_media(given: dict[str, Any]) -> None:
    for name in ("videos", "video", "audio", "audios"):
        if given.get(name) is not None:
            raise InputError(f"{name}: members see images alone, no videos and no audio; leave {name} out")


def _text_messages(messages: Sequence[Any], image_text: str) -> list[Any]:
    """Messages whose contents are strings: the texts of their parts, one after the other."""
    plain = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [image_text if is_media(part) else str(part.get("text", "")) for part in content]
            message = {**message, "content": "".join(parts)}
        plain.append(message)
    return plain
