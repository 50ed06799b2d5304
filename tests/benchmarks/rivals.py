"""Decoders to compare: reference ways of mixing members across tokenizers, and the package itself.

The reference decoders share nothing with the package but the bytes of tokens: they give each member plain ids,
let it say what comes next as if its last token ended where the text ends, and mix by bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from hf_rlae import EnsembleForCausalLM, Member
from hf_rlae.vocabulary import Alignment, ByteVocabulary, UnionVocabulary


class Decoder(Protocol):
    """Writes texts in union tokens, one a row and step.

    Attributes:
        union (`UnionVocabulary`): what the tokens are; those without bytes end a text.
    """

    union: UnionVocabulary

    def start(self, prompts: Sequence[str]) -> torch.Tensor:
        """Begins one row a prompt; returns log-probabilities `(B, V)` of the first tokens."""
        ...

    def step(self, tokens: torch.LongTensor) -> torch.Tensor:
        """Appends one token `(B,)` to every row; returns log-probabilities `(B, V)` of the next ones."""
        ...

    def select(self, rows: torch.LongTensor) -> None:
        """Makes row `i` continue what row `rows[i]` was; the number of rows may change."""
        ...


class Reader:
    """A model's next-token probabilities after contexts of any lengths, reusing what it has read before.

    New ids are appended to the cache on the right, behind pads; columns of ids that a row no longer has are masked.

    Args:
        model (`PreTrainedModel`): attention in every layer, over the whole text.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config(decoder=True)
        if getattr(model, "_is_stateful", False) or getattr(config, "sliding_window", None):
            raise ValueError(
                f"{model.name_or_path}: the reference decoders mask columns in the middle of the cache, which only "
                "works with full attention; choose members without recurrent or sliding-window layers"
            )
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.cache = DynamicCache()
        self.known: list[tuple[int, ...]] = []
        self.columns: list[list[int]] = []
        self.mask = torch.zeros(0, 0, dtype=torch.bool)

    def read(self, contexts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Probabilities `(B, V_m)` of what follows each context (never empty)."""
        if not self.known:
            self.known = [()] * len(contexts)
            self.columns = [[] for _ in contexts]
            self.mask = torch.zeros(len(contexts), 0, dtype=torch.bool)
        kept = []
        for row, (old, new) in enumerate(zip(self.known, contexts, strict=True)):
            shared = len(old)
            if new[:shared] != old:
                shared = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), len(new))
            shared = min(shared, len(new) - 1)
            self.mask[row, self.columns[row][shared:]] = False
            kept.append(shared)
        width = max(len(new) - shared for new, shared in zip(contexts, kept, strict=True))
        end = self.mask.shape[1] + width
        ids = torch.zeros(len(contexts), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        fresh = torch.zeros_like(ids, dtype=torch.bool)
        for row, (new, shared) in enumerate(zip(contexts, kept, strict=True)):
            count = len(new) - shared
            ids[row, -count:] = torch.tensor(new[shared:])
            positions[row, -count:] = torch.arange(shared, len(new))
            fresh[row, -count:] = True
            self.columns[row] = self.columns[row][:shared] + list(range(end - count, end))
        self.mask = torch.cat([self.mask, fresh], dim=1)
        self.known = list(contexts)
        device = self.model.device
        logits = self.model(
            input_ids=ids.to(device),
            attention_mask=self.mask.long().to(device),
            position_ids=positions.to(device),
            past_key_values=self.cache,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].float().softmax(-1).cpu()

    def select(self, rows: torch.LongTensor) -> None:
        """Makes row `i` continue what row `rows[i]` was."""
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]
        self.known = [self.known[row] for row in rows.tolist()]
        self.columns = [self.columns[row] for row in rows.tolist()]


class RivalDecoder(ABC):
    """Members that read ids of their own; their next-token probabilities are mixed by bytes.

    `P(u) = sum_k w_k sum_{v: bytes(v) = bytes(u)} p_k(v) / Z_k`; end ids count for STOP, other special tokens for
    nothing (`Z_k` is what is left).

    Args:
        members (`Sequence[Member]`): at least one.
        weights (`Sequence[float]`): one a member; their sum is 1.
    """

    def __init__(self, members: Sequence[Member], weights: Sequence[float]) -> None:
        self.members = list(members)
        self.weights = list(weights)
        self.vocabularies = [ByteVocabulary(member.tokenizer, member.vocab_size) for member in members]
        self.union = UnionVocabulary(self.vocabularies)
        self.alignments = [
            Alignment(vocabulary, self.union, member.end_ids)
            for vocabulary, member in zip(self.vocabularies, members, strict=True)
        ]
        self.readers = [Reader(member.model) for member in members]

    def start(self, prompts: Sequence[str]) -> torch.Tensor:
        """See `Decoder`."""
        for reader in self.readers:
            reader.reset()
        self._begin(prompts)
        return self._mixture()

    def step(self, tokens: torch.LongTensor) -> torch.Tensor:
        """See `Decoder`."""
        pieces = [self.union.pieces[token] for token in tokens.tolist()]
        if None in pieces:
            raise ValueError("a row that has ended cannot be continued: select the others first")
        self._append(pieces)
        return self._mixture()

    def select(self, rows: torch.LongTensor) -> None:
        """See `Decoder`."""
        for reader in self.readers:
            reader.select(rows)
        self._select(rows.tolist())

    def _mixture(self) -> torch.Tensor:
        mixed = 0
        for index, (weight, alignment) in enumerate(zip(self.weights, self.alignments, strict=True)):
            own = self.readers[index].read(self._contexts(index)).double()
            probs = torch.cat([own, own.new_zeros(len(own), 1)], dim=1)[:, alignment.gather]
            probs.index_add_(1, alignment.extra_to, own[:, alignment.extra_from])
            mixed = mixed + weight * probs / probs.sum(1, keepdim=True)
        return mixed.log()

    def _encode(self, index: int, text: str) -> tuple[int, ...]:
        """A member's own ids of a whole text, behind what its tokenizer puts in front of every text."""
        return tuple(self.members[index].tokenizer.backend_tokenizer.encode(text).ids)

    @abstractmethod
    def _begin(self, prompts: Sequence[str]) -> None: ...

    @abstractmethod
    def _append(self, pieces: Sequence[bytes]) -> None: ...

    @abstractmethod
    def _select(self, rows: Sequence[int]) -> None: ...

    @abstractmethod
    def _contexts(self, index: int) -> Sequence[tuple[int, ...]]: ...


class AppendingDecoder(RivalDecoder):
    """Appends every emitted token to every member's ids, as if the member's own tokens ended there.

    A member that has the token takes it; the others tokenise its bytes as in the middle of a text. One member
    alone is that member.

    Source: GaC (arXiv 2406.12585), RLAE (arXiv 2506.00439).
    """

    def _begin(self, prompts: Sequence[str]) -> None:
        self._ids = [[self._encode(k, prompt) for prompt in prompts] for k in range(len(self.members))]

    def _append(self, pieces: Sequence[bytes]) -> None:
        for ids, vocabulary in zip(self._ids, self.vocabularies, strict=True):
            for row, piece in enumerate(pieces):
                known = vocabulary.ids_of.get(piece)
                ids[row] += (known[0],) if known else vocabulary.canonical_ids(piece)

    def _select(self, rows: Sequence[int]) -> None:
        self._ids = [[ids[row] for row in rows] for ids in self._ids]

    def _contexts(self, index: int) -> Sequence[tuple[int, ...]]:
        return self._ids[index]


class RetokenisingDecoder(RivalDecoder):
    """Every member tokenises the whole text anew before each token: what comes next depends on the bytes alone."""

    def read(self, prompts: Sequence[str], texts: Sequence[bytes]) -> torch.Tensor:
        """Log-probabilities `(B, V)` of what follows each prompt and text.

        Rows may be continued by any other text at the next call; they stand for the same rows until `start`.
        """
        self._texts = [prompt.encode() + text for prompt, text in zip(prompts, texts, strict=True)]
        return self._mixture()

    def _begin(self, prompts: Sequence[str]) -> None:
        self._texts = [prompt.encode() for prompt in prompts]

    def _append(self, pieces: Sequence[bytes]) -> None:
        self._texts = [text + piece for text, piece in zip(self._texts, pieces, strict=True)]

    def _select(self, rows: Sequence[int]) -> None:
        self._texts = [self._texts[row] for row in rows]

    def _contexts(self, index: int) -> Sequence[tuple[int, ...]]:
        vocabulary, contexts = self.vocabularies[index], []
        for raw in self._texts:
            raw = vocabulary.representable(raw)
            try:
                text, stray = raw.decode(), b""
            except UnicodeDecodeError as error:  # the text ends within a character
                text, stray = raw[: error.start].decode(), raw[error.start :]
            contexts.append(self._encode(index, text) + vocabulary.canonical_ids(stray))
        return contexts


class EnsembleDecoder:
    """The package itself, step by step through `EnsembleForCausalLM.forward`.

    Args:
        ensemble (`EnsembleForCausalLM`): members with different tokenizers.
    """

    def __init__(self, ensemble: EnsembleForCausalLM) -> None:
        self.ensemble = ensemble
        self.union: UnionVocabulary = ensemble.union

    def start(self, prompts: Sequence[str]) -> torch.Tensor:
        """See `Decoder`."""
        batch = self.ensemble.tokenizer(list(prompts), return_tensors="pt", padding=True)
        self.cache = self.ensemble.new_cache(use_cache=True)
        self.mask = batch["attention_mask"]
        return self._forward(batch["input_ids"], prompt_length=batch["input_ids"].shape[1])

    def step(self, tokens: torch.LongTensor) -> torch.Tensor:
        """See `Decoder`."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return self._forward(tokens[:, None])

    def select(self, rows: torch.LongTensor) -> None:
        """See `Decoder`."""
        self.cache.reorder_cache(rows)
        self.mask = self.mask[rows]

    def _forward(self, ids: torch.LongTensor, prompt_length: int | None = None) -> torch.Tensor:
        device = self.ensemble.device
        logits = self.ensemble(
            input_ids=ids.to(device),
            attention_mask=self.mask.to(device),
            past_key_values=self.cache,
            prompt_length=prompt_length,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].double().log_softmax(-1).cpu()
