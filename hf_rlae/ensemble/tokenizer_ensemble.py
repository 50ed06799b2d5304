"""Tokenizers of ensembles: encode as the first member's, decode every union id, render chats per member."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_rlae.ensemble.chats.member_chats import MemberChats
from hf_rlae.ensemble.chats.parser import Chat
from hf_rlae.ensemble.chats.reader import ChatReader
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.tokenizer_files import SETTINGS, TokenizerParts, own_settings, read_tokenizer
from hf_rlae.ensemble.tokenizer_shared import shared_tokenizer
from hf_rlae.errors import InputError, TokenizerError
from hf_rlae.members.model_files import tokenizer_failures
from hf_rlae.remote_code import NotRemote
from hf_rlae.vocabulary import ByteVocabulary, Form, UnionVocabulary, same_vocabulary, vocabulary_hash
from hf_rlae.vocabulary.grain import TOKEN
from hf_rlae.vocabulary.spelling import byte_level_alphabet

STOP_TOKEN = "<|stop|>"  # noqa: S105 (a token of the vocabulary)
"""The token string of STOP, which has no bytes."""

_NEED_ENCODINGS = (
    "is_split_into_words",
    "return_offsets_mapping",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_token_type_ids",
    "return_length",
)
"""Arguments that only the encodings of the first member's backend can answer."""


class EnsembleTokenizer(NotRemote, MemberChats, PreTrainedTokenizerFast):
    """Encodes as the first member's tokenizer does and decodes every id of the union vocabulary.

    Text is text: the name of a control token in a text stands for its characters (`split_special_tokens=True`), except
    in a text that `apply_chat_template(..., tokenize=False)` has rendered. `split_special_tokens=False` reads names as
    control tokens.

    Args:
        union (`UnionVocabulary`): the union vocabulary.
        tokenizers (`Sequence[PreTrainedTokenizerBase]`): the members' tokenizers, the first member's first.
        names (`Sequence[str]`): the members' names, for messages.
        vocabularies (`Sequence[ByteVocabulary]`): one per member.
        form (`str`, *optional*): the Unicode form to which texts are normalised.

    Attributes:
        eos_token (`str`): the token string of STOP; `eos_token_id` is `union.stop_id`.
        chats (`ChatReader`): renders and recognises chats.
    """

    def __init__(
        self,
        union: UnionVocabulary,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        names: Sequence[str],
        vocabularies: Sequence[ByteVocabulary],
        form: Form | None = None,
    ) -> None:
        first: Any = tokenizers[0]
        self.union = union
        self.member_tokenizers = list(tokenizers)
        self.member_names = list(names)
        self.chats = ChatReader(tokenizers, names, vocabularies, form)
        self._tokenizer: Any  # the backend, set by transformers
        self._strips = vocabularies[0].strips_space
        self._vocabulary = vocabularies[0]
        self._tokens: dict[int, str] = {}
        self._extra_ids: dict[str, int] = {}
        named = {name: token for name, token in first.special_tokens_map.items() if isinstance(token, str)}
        first_end = named.pop("eos_token", None)
        super().__init__(
            tokenizer_object=vocabularies[0].backend,
            padding_side="left",
            clean_up_tokenization_spaces=False,
            model_max_length=first.model_max_length,
            model_input_names=["input_ids", "attention_mask"],
            chat_template=first.chat_template,
            split_special_tokens=True,
            extra_special_tokens=[t for t in first.all_special_tokens if t not in named.values()],
            **named,
        )
        self.first_template = self.chat_template
        self._tokens = self._names_of_extra_tokens()
        self._extra_ids = {token: i for i, token in self._tokens.items()}
        self.eos_token: Any = self._tokens[union.stop_id]
        if self.pad_token_id is None:
            self.pad_token: Any = first_end or self._tokens[union.stop_id]
        self._texts = [piece or b"" for piece in union.pieces]
        self._texts_with_names = [
            (self._convert_id_to_token(i) or "").encode("utf-8", "surrogatepass") if piece is None else piece
            for i, piece in enumerate(union.pieces)
        ]

    def _names_of_extra_tokens(self) -> dict[int, str]:
        """A unique token string for every union id that the first tokenizer lacks; readable if the bytes are text."""
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        taken = set(known)
        decoder = self._tokenizer.decoder
        byte_level = decoder is not None and b"ByteLevel" in bytes(decoder.__getstate__())
        letters = {byte: char for char, byte in byte_level_alphabet().items()}
        names: dict[int, str] = {}
        for i in range(max(known.values()) + 1, self.union.size):
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

    # -- encoding -----------------------------------------------------------------------------------------

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        if self.chats.form is not None:
            text, text_pair = _mapped(self.chats.normalised, text), _mapped(self.chats.normalised, text_pair)
        split = kwargs.get("split_special_tokens")
        is_plain = text_pair is None and not any(kwargs.get(name) for name in _NEED_ENCODINGS)
        if is_plain and (self.split_special_tokens if split is None else split):
            texts = [text] if isinstance(text, str) else list(text)
            chats = [self.chats.recognised(entry) if isinstance(entry, str) else None for entry in texts]
            if any(chat is not None or self._is_awkward(entry) for chat, entry in zip(chats, texts, strict=True)):
                return self._encode_rows(texts, chats, isinstance(text, str), kwargs)
        return super()._encode_plus(text=text, text_pair=text_pair, **kwargs)

    def tokenize(self, text: Any, pair: Any = None, add_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """The token strings of a text."""
        encoded = self(text, pair, add_special_tokens=add_special_tokens, **kwargs)
        return list(self.convert_ids_to_tokens(encoded["input_ids"]))

    def completion_ids(self, text: str) -> list[int]:
        """The ids with which the ensemble writes a text after a prompt, for labels and scores.

        With `grain="token"` they are those of the first member's tokenizer, without special tokens; else the strings of
        the grain, from the start of the text always the longest. The bytes of the text do not change.

        Args:
            text (`str`): what follows the prompt.

        Raises:
            TokenizerError: no member has a token for a part of the text.
        """
        raw = self.chats.normalised(text).encode("utf-8", "surrogatepass")
        return list(self._vocabulary.inner_ids(raw)) if self.union.grain == TOKEN else self.union.written(raw)

    def _is_awkward(self, text: Any) -> bool:
        return isinstance(text, str) and self._vocabulary.is_awkward(text)

    def _encode_rows(
        self, texts: Sequence[str], chats: Sequence[Chat | None], is_single: bool, kwargs: dict[str, Any]
    ) -> BatchEncoding:
        """Encodes texts row by row: rendered chats, which have control tokens, and other texts."""
        has_start = kwargs.get("add_special_tokens", True)
        max_length: int | None = kwargs.get("max_length")
        is_cut = kwargs.get("truncation_strategy", "do_not_truncate") != "do_not_truncate"
        rows: Any = []
        for text, chat in zip(texts, chats, strict=True):
            ids = self.chats.first_ids(chat) if chat is not None else None
            if chat is None and self._is_awkward(text):
                ids = list(self._vocabulary.text_ids(text.encode("utf-8", "surrogatepass")))
            if ids is None:
                # two backends, because transformers switches the reading of control tokens on and off in a backend
                encode = super()._encode_plus if chat is None else self.member_tokenizers[0]
                options = {"add_special_tokens": has_start, "split_special_tokens": chat is None, "verbose": False}
                ids = list(encode(text=text, **options)["input_ids"])
            elif has_start:
                ids = [*self._vocabulary.start_ids, *ids]
            if is_cut and max_length is not None:
                ids = ids[:max_length] if self.truncation_side == "right" else ids[-max_length:]
            if chat is not None:
                self.chats.memory.keep(ids, chat)
            rows.append(ids)
        return self.pad(
            {"input_ids": rows[0] if is_single and not kwargs.get("return_tensors") else rows},
            padding=kwargs.get("padding_strategy", False),
            max_length=max_length,
            pad_to_multiple_of=kwargs.get("pad_to_multiple_of"),
            padding_side=kwargs.get("padding_side"),
            return_attention_mask=kwargs.get("return_attention_mask"),
            return_tensors=kwargs.get("return_tensors"),
        )

    def rendered(self, conversations: Sequence[Any], options: dict[str, Any]) -> list[str]:
        """See [`MemberChats`]; remembers the texts."""
        texts = super().rendered(conversations, options)
        self.chats.memory.add([self.chats.normalised(text) for text in texts], texts, conversations, options)
        return texts

    def chat_ids(self, index: int, conversations: Sequence[Any], options: dict[str, Any]) -> list[list[int]]:
        """See [`MemberChats`]; contents are text."""
        return self.chats.ids(index, conversations, options)

    def remember(self, rows: Sequence[Sequence[int]], conversations: Sequence[Any], options: dict[str, Any]) -> None:
        """See [`MemberChats`]."""
        self.chats.memory.add(rows, super().rendered(conversations, options), conversations, options)

    # -- decoding -----------------------------------------------------------------------------------------

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
        """The token strings of union ids; `None` for ids beyond the vocabulary."""
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._convert_id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of a list of token strings."""
        return self._decode([self._convert_token_to_id_with_added_voc(token) for token in tokens])

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        given: Any = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        ids = list(given) if isinstance(given, Iterable) else [given]
        if min(ids, default=0) < 0:
            raise InputError(
                f"token_ids has the id {min(ids)}; ids are at least 0 (labels are -100 where there is none)"
            )
        table = self._texts if skip_special_tokens else self._texts_with_names
        if max(ids, default=0) >= len(table):
            ids = [i for i in ids if i < len(table)]
        text = b"".join([table[i] for i in ids]).decode("utf-8", "replace")
        text = text[1:] if self._strips and text.startswith(" ") else text
        clean = clean_up_tokenization_spaces
        return self._cleaned(text) if (self.clean_up_tokenization_spaces if clean is None else clean) else text

    def _cleaned(self, text: str) -> str:
        """As in transformers: only tokenizers of words have spaces to clean up, BPE has not."""
        is_bpe = type(self.backend_tokenizer.model).__name__ == "BPE"
        cleans_bpe = getattr(self, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
        return text if is_bpe and not cleans_bpe else self.clean_up_tokenization(text)

    # -- saving -------------------------------------------------------------------------------------------

    def parts(self) -> TokenizerParts:
        """See [`MemberChats`]."""
        sizes = [vocabulary.size for vocabulary in self.chats.vocabularies]
        return TokenizerParts(
            list(self.member_tokenizers),
            list(self.member_names),
            sizes,
            self.union.grain,
            self.chats.form,
            own_settings(self),
            vocabulary_hash(self.union.pieces),
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Any,
        *inputs: Any,
        members: Any = None,
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> MemberChats:
        """Loads the tokenizer of a saved ensemble, without its members' weights.

        The members' tokenizers come from the same folder, if they were saved with it, or from the places of the
        members, at the saved revisions.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a folder, or an id on the Hub.
            members (`Sequence[str]`, *optional*): folders or Hub ids of the members in place of the saved ones.
            allow_outside (`bool`, defaults to `False`): whether members may be folders outside of the ensemble's own.
            kwargs: options of the Hub, `subfolder`, `trust_remote_code`, and attributes such as `padding_side`.

        Returns:
            `EnsembleTokenizer`, or a tokenizer of the members' own class if they share one: as `ensemble.tokenizer`.

        Raises:
            TokenizerError: no saved tokenizer of an ensemble, or one that no longer matches the saved one: the
                members' tokenizers have changed.
        """
        source = os.fspath(pretrained_model_name_or_path)
        found = read_tokenizer(source, kwargs, members, allow_outside)
        wanted = {name: kwargs[name] for name in SETTINGS if kwargs.get(name) is not None}
        with tokenizer_failures(f"the ensemble {source}"):
            made = _from_parts(found)
            now = made.parts().vocabulary_hash
            if found.vocabulary_hash not in (None, now):
                raise TokenizerError(
                    f"the tokenizer of {source} no longer matches: its members' tokenizers give a vocabulary with the "
                    f"hash {now}, and it was saved with {found.vocabulary_hash}; load the members at the revisions "
                    "with which the ensemble was saved, or build a new ensemble and save it again"
                )
            for name, value in {**found.settings, **wanted}.items():
                if getattr(made, name) != value:
                    setattr(made, name, value)
        return made


def _from_parts(parts: TokenizerParts) -> MemberChats:
    if parts.grain is None:
        return shared_tokenizer(parts.tokenizers, parts.names, None)
    vocabularies = distinct_vocabularies(parts.tokenizers, parts.sizes, parts.names)
    union = UnionVocabulary(vocabularies, parts.grain)
    form: Any = parts.form
    return EnsembleTokenizer(union, parts.tokenizers, parts.names, vocabularies, form)


def distinct_vocabularies(
    tokenizers: Sequence[Any], sizes: Sequence[int], names: Sequence[str]
) -> list[ByteVocabulary]:
    """The vocabulary of each member; equal tokenizers share one."""
    tables = [tokenizer.get_vocab() for tokenizer in tokenizers]
    found: list[ByteVocabulary] = []
    for index, table in enumerate(tables):
        same = (j for j in range(index) if sizes[j] == sizes[index] and same_vocabulary(tables[j], table))
        known = next(same, None)
        if known is not None:
            found.append(found[known])
            continue
        with tokenizer_failures(f"member {names[index]}"):
            found.append(ByteVocabulary(tokenizers[index], sizes[index]))
    return found


def _mapped(function: Callable[[str], str], given: Any) -> Any:
    """Applies a function to a string, or to all strings of nested lists."""
    if isinstance(given, str):
        return function(given)
    return [_mapped(function, entry) for entry in given] if isinstance(given, list | tuple) else given


AutoTokenizer.register(EnsembleConfig, tokenizer_class=EnsembleTokenizer)
