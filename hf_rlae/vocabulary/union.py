"""The union vocabulary of several tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from hf_rlae.errors import TokenizerError
from hf_rlae.sharing import SharedInCopies
from hf_rlae.vocabulary.grain import TOKEN, grain_strings
from hf_rlae.vocabulary.token_bytes import ByteVocabulary

OUTSIDE = -1
"""The union id of a token that is not in the union (special tokens, bytes of which no union token is a prefix)."""


class UnionVocabulary(SharedInCopies):
    """The byte strings that an ensemble may write, plus one virtual STOP symbol.

    The ids `0 .. V_1 - 1` are the first member's own ids, so that its tokenizer can encode prompts. The byte strings
    of the grain that the first member does not have follow, and STOP is last. If several ids of the first member have
    the same bytes, the id that its tokenizer writes receives the mass. Distributions have one column per byte string of
    the grain, and one for STOP; with `grain="token"` columns are ids.

    Args:
        vocabularies (`Sequence[ByteVocabulary]`): one per tokenizer, the first member's first.
        grain (`str`, defaults to `"token"`): which byte strings may be written, see `grain_strings`.

    Attributes:
        size (`int`): number of union ids, V.
        stop_id (`int`): the id of STOP, V - 1.
        pieces (`list[bytes | None]`): the bytes of each union id; `None` for ids without bytes.
        id_of (`dict[bytes, int]`): the union id of each byte string that may be written.
        column_of (`dict[bytes, int]`): the column of each byte string that may be written.
        written_ids (`torch.LongTensor` of shape `(G,)` or `None`): the union id of each column; `None` if equal.
        num_columns (`int`): G; STOP is the last column.

    Raises:
        TokenizerError: no vocabulary was given, or two of them have no byte in common.
    """

    def __init__(self, vocabularies: Sequence[ByteVocabulary], grain: str = TOKEN) -> None:
        if not vocabularies:
            raise TokenizerError("vocabularies is empty: a union vocabulary needs at least one tokenizer")
        first = vocabularies[0]
        self.grain = grain
        self.pieces: list[bytes | None] = list(first.pieces)
        self.id_of: dict[bytes, int] = {piece: ids[0] for piece, ids in first.ids_of.items()}
        if grain == TOKEN:
            for vocabulary in vocabularies[1:]:
                self._add(piece for piece in vocabulary.ids_of if piece not in self.id_of)
        else:
            strings = sorted(grain_strings(vocabularies, grain))
            self._add(string for string in strings if string not in self.id_of)
            self.id_of = {string: self.id_of[string] for string in strings}
        self.stop_id = len(self.pieces)
        self.pieces.append(None)
        self.size = len(self.pieces)
        self.column_of = self.id_of
        self.written_ids: torch.Tensor | None = None
        self._columns: torch.Tensor | None = None
        self._split: torch.Tensor | None = None
        self.num_columns = self.size
        if grain != TOKEN:
            self.column_of = {string: column for column, string in enumerate(self.id_of)}
            self.written_ids = torch.tensor([*self.id_of.values(), self.stop_id])
            self.num_columns = len(self.written_ids)
            self._columns = torch.full((self.size,), self.num_columns)
            self._columns[self.written_ids] = torch.arange(self.num_columns)
            self._split = torch.tensor([piece is not None for piece in self.pieces])
            self._split[self.written_ids] = False
        self.max_piece = max(map(len, self.id_of), default=0)
        used = [set(b"".join(vocabulary.ids_of)) for vocabulary in vocabularies]
        for index, members_bytes in enumerate(used):
            if not used[0] & members_bytes:
                raise TokenizerError(
                    f"members 0 and {index} have no byte in common, so they cannot generate the same text; use members "
                    "whose tokenizers cover the same language and kind of text"
                )

    def _add(self, strings: Iterable[bytes]) -> None:
        """Appends byte strings that have no id yet."""
        new = list(strings)
        start = len(self.pieces)
        self.id_of.update(zip(new, range(start, start + len(new)), strict=True))
        self.pieces.extend(new)

    @property
    def stop_column(self) -> int:
        """The column of STOP, G - 1."""
        return self.num_columns - 1

    def spread(self, columns: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `(..., V)` from those of the columns `(..., G)`; -inf for ids that may not be written."""
        if self.written_ids is None:
            return columns
        full = columns.new_full((*columns.shape[:-1], self.size), -torch.inf)
        return full.index_copy_(-1, self.written_ids.to(columns.device), columns)

    def gathered(self, full: torch.Tensor) -> torch.Tensor:
        """The columns `(..., G)` of values for all ids `(..., V)`; the reverse of `spread`."""
        return full if self.written_ids is None else full.index_select(-1, self.written_ids.to(full.device))

    def are_split(self, ids: torch.Tensor) -> torch.Tensor:
        """Which union ids are text that is only written in several strings, in the shape of `ids`."""
        return torch.zeros_like(ids, dtype=torch.bool) if self._split is None else self._split.to(ids.device)[ids]

    def columns_of(self, ids: torch.Tensor) -> torch.Tensor:
        """The columns of union ids, in their shape; G for ids that may not be written."""
        return ids if self._columns is None else self._columns.to(ids.device)[ids]

    def written(self, raw: bytes) -> list[int]:
        """The union ids with which a text is written: from its start, the longest byte string that may be written.

        Raises:
            TokenizerError: no byte string that may be written begins the rest of the text.
        """
        ids: list[int] = []
        at = 0
        while at < len(raw):
            piece = self.longest_prefix(raw[at : at + self.max_piece])
            if not piece:
                raise TokenizerError(
                    f"no member has a token for {raw[at : at + 8]!r}, so the ensemble cannot write the text"
                )
            ids.append(self.id_of[piece])
            at += len(piece)
        return ids

    def longest_prefix(self, raw: bytes) -> bytes:
        """The longest byte string that may be written and is a prefix of `raw`; empty if there is none."""
        for length in range(min(len(raw), self.max_piece), 0, -1):
            if raw[:length] in self.id_of:
                return raw[:length]
        return b""


def same_vocabulary(first: dict[str, int], second: dict[str, int]) -> bool:
    """Whether two tokenizers have the same token for every id (`get_vocab()` of each).

    The tokens are compared, not their bytes: duplicates by byte fallback make the byte maps of equal tokenizers
    differ.

    Example:

    >>> same_vocabulary({"a": 0}, {"a": 0}), same_vocabulary({"a": 0}, {"a": 1})
    (True, False)
    """
    return first is second or first == second
