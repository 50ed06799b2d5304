"""The engine of members with different tokenizers: each reads the text in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hf_rlae.ensemble.chats.member_chats import padded
from hf_rlae.ensemble.engines.host_runs import ReadingsHost, RereadingHost
from hf_rlae.ensemble.engines.host_vocabulary import HostVocabulary
from hf_rlae.ensemble.engines.prompts import PromptEncoder, member_prompts, rows_of
from hf_rlae.ensemble.engines.readings_step import ReadingsStep
from hf_rlae.ensemble.mixing import Mixing
from hf_rlae.errors import InputError
from hf_rlae.members import Member, PromptImages, ReadingsRun, RowRunner
from hf_rlae.members.paths import MakeRunner
from hf_rlae.policies import MemberObservation
from hf_rlae.sharing import SharedInCopies
from hf_rlae.vocabulary import Alignment, ByteVocabulary, UnionVocabulary, bytes_per_token, token_ids
from hf_rlae.vocabulary.grain import TOKEN

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache


_Run = TypeVar("_Run", bound=ReadingsRun)


class ReadingsEngine(SharedInCopies):
    """Members read the text in their own tokens; their distributions are mixed over the union vocabulary (`Engine`).

    Source: RLAE (arXiv 2506.00439) for the mixture; readings are ours.

    Args:
        members (`Sequence[Member]`): M members.
        vocabularies (`Sequence[ByteVocabulary]`): one per member; members with one tokenizer share theirs.
        union (`UnionVocabulary`): the union vocabulary, of size V.
        runners (`Sequence[Callable]`): `BatchRunner`, `RowRunner` or `LazyRunner` for each member.
        mixing (`Mixing`): mixes the members' distributions.
        encoder (`PromptEncoder`): encodes prompts for every member.
        max_readings (`int`), min_reading (`float`), weight_unit (`str`): see `EnsembleConfig`.
    """

    has_prompt_logits = always_shows_states = scores_texts_at_once = False

    def __init__(
        self,
        members: Sequence[Member],
        vocabularies: Sequence[ByteVocabulary],
        union: UnionVocabulary,
        runners: Sequence[MakeRunner],
        mixing: Mixing,
        encoder: PromptEncoder,
        max_readings: int,
        min_reading: float,
        weight_unit: str = "token",
    ) -> None:
        self.members = list(members)
        self.vocabularies = list(vocabularies)
        self.union: UnionVocabulary = union
        self.vocab_size = self.num_input_ids = union.size
        self.runners = list(runners)
        self.mixing = mixing
        self.encoder = encoder
        self.max_readings = max_readings
        self.min_reading = min_reading
        self.weight_scale: torch.Tensor | None = None
        if weight_unit == "byte" and union.grain == TOKEN:  # else weights are shares of short strings already
            self.weight_scale = 1 / torch.tensor([bytes_per_token(vocabulary) for vocabulary in vocabularies])
        self.alignments = [
            Alignment(vocabulary, union, member.end_ids)
            for member, vocabulary in zip(members, vocabularies, strict=True)
        ]
        # for each member, the first member with the same tokenizer
        self.groups = [
            next(j for j, other in enumerate(vocabularies) if other is vocabulary) for vocabulary in vocabularies
        ]

    @property
    def prompt_tokenizers(self) -> list[PreTrainedTokenizerBase]:
        """See `Engine`: every member's own."""
        return [member.tokenizer for member in self.members]

    @property
    def pieces(self) -> list[bytes | None]:
        """See `Engine`."""
        return self.union.pieces

    def _new_run(self, index: int, use_cache: bool, hidden_tokens: int, kind: type[_Run]) -> _Run:
        return kind(
            self.members[index],
            self.vocabularies[index],
            self.alignments[index],
            self.max_readings,
            self.min_reading,
            use_cache,
            self.runners[index],
            hidden_tokens,
        )

    def encode_prompt(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Engine`."""
        return self.encoder(ids)

    def new_call(self, use_cache: bool, hidden_tokens: int) -> ReadingsCall:
        """See `Engine`; `hidden_tokens` is passed to `BatchRunner`."""
        members = range(len(self.members))
        return ReadingsCall(
            self, [self._new_run(index, use_cache, hidden_tokens, ReadingsRun) for index in members], hidden_tokens
        )

    def new_host_call(self, hidden_tokens: int, rereads: bool) -> tuple[ReadingsCall, ReadingsHost | RereadingHost]:
        """See `Engine`."""
        call = self.new_call(True, hidden_tokens)
        kind: type[ReadingsHost] | type[RereadingHost] = RereadingHost if rereads else ReadingsHost
        host = self._new_run(0, True, hidden_tokens, kind)
        call.runs[0] = host
        return call, host

    def check_generation(self, settings: GenerationConfig) -> None:
        """See `Engine`."""
        if settings.guidance_scale not in (None, 1):
            raise InputError(
                f"guidance_scale={settings.guidance_scale}: classifier-free guidance subtracts log-probabilities, and "
                "with different tokenizers some of them are -inf; leave guidance_scale out"
            )

    def to_union(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        ends = torch.tensor(self.members[0].end_ids, dtype=ids.dtype, device=ids.device)
        return torch.where(torch.isin(ids, ends), self.union.stop_id, ids)

    def to_first_member(self, sequences: torch.Tensor, columns: int, pad_token_id: int | None) -> torch.Tensor:
        """See `Engine`; a completion with ids that the first member lacks is encoded from its bytes."""
        host, size = self.members[0], self.vocabularies[0].size
        wanted = token_ids(getattr(host.generation_config, "eos_token_id", None))
        ends = [i for i in wanted if i in host.end_ids] or list(host.end_ids)
        rows = []
        for row in sequences[:, columns:].tolist():
            has_ended = self.union.stop_id in row
            ids = self._encoded_by_first(row[: row.index(self.union.stop_id)] if has_ended else row)
            rows.append(ids + ends[:1] if has_ended else ids)
        if pad_token_id is None or pad_token_id >= size:
            pad_token_id = ends[0] if ends else 0
        longest = max(map(len, rows))
        tail = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows], dtype=sequences.dtype)
        return torch.cat([sequences[:, :columns], tail.to(sequences.device)], dim=1)

    def _encoded_by_first(self, row: list[int]) -> list[int]:
        vocabulary = self.vocabularies[0]
        if all(i < vocabulary.size for i in row) and self.union.grain == TOKEN:
            return row
        ids: list[int] = []
        raw = b""
        for i in row:
            piece = self.union.pieces[i]
            if piece is None and i < vocabulary.size:  # a special token of the first member
                ids += [*vocabulary.canonical_ids(raw), i]
                raw = b""
            else:
                raw += piece or b""
        return [*ids, *vocabulary.canonical_ids(raw)]

    @cached_property
    def _host_vocabulary(self) -> HostVocabulary:
        host = self.members[0]
        wanted = set(token_ids(getattr(host.generation_config, "eos_token_id", None)))
        stop_ids = [i for i in host.end_ids if i in wanted] or list(host.end_ids)
        return HostVocabulary(self.vocabularies[0], host.end_ids, self.union, stop_ids)

    def scores_of_first_member(self, logits: torch.Tensor, host_scores: torch.Tensor) -> torch.Tensor:
        """See `Engine` and `HostVocabulary`."""
        return self._host_vocabulary.to(logits.device).restrict(logits, host_scores)


class ReadingsCall:
    """The members' runs in one call (see `EngineCall`).

    Args:
        engine (`ReadingsEngine`): the engine of the ensemble.
        runs (`list[ReadingsRun]`): one per member.
        hidden_tokens (`int`): see `observed_tokens`.

    Attributes:
        num_read (`int`): number of columns whose text the members have taken in.
    """

    def __init__(self, engine: ReadingsEngine, runs: list[ReadingsRun], hidden_tokens: int) -> None:
        self.engine = engine
        self.runs = runs
        self.hidden_tokens = hidden_tokens
        self.num_read = 0
        self.has_warned_of_end = False
        self._own_prompts: list[list[tuple[int, ...]]] | None = None  # by row and member
        self._encoded: dict[tuple[int, ...], list[tuple[int, ...]]] = {}  # by prompt: the ids of each member

    @property
    def rereads_own_prompts(self) -> bool:
        """See `EngineCall`."""
        return self._own_prompts is not None

    def step(self, cache: EnsembleCache, keep: int) -> ReadingsStep:
        """See `EngineCall`."""
        return ReadingsStep(self, cache, keep)

    def set_prompts(self, cache: EnsembleCache, starts: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """See `EngineCall`."""
        self._own_prompts = member_prompts(ids, mask)

    def own_prompts(self, cache: EnsembleCache, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `EngineCall`."""
        return padded([self.prompts(cache, row)[index] for row in range(len(cache.ids))], 0)

    def set_images(self, index: int, images: PromptImages) -> None:
        """See `EngineCall`; the member then reads row by row, with the masks of its own model."""
        run = self.runs[index]
        run.runner = RowRunner(run.member, self.hidden_tokens, images)

    def prompts(self, cache: EnsembleCache, row: int) -> list[tuple[int, ...]]:
        """See `EngineCall`."""
        if self._own_prompts is not None:
            return self._own_prompts[row]
        return self._encode(cache.prompt_ids(row))

    def _encode(self, prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
        if prompt not in self._encoded:
            self._encoded[prompt] = self.engine.encoder(prompt)
        return self._encoded[prompt]

    def encoded(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[tuple[int, ...]]]:
        """See `EngineCall`."""
        return [self._encode(prompt) for prompt in rows_of(ids, mask)]

    def prompt_lengths(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
        """See `EngineCall`."""
        return [max(map(len, prompts)) for prompts in zip(*self.encoded(ids, mask), strict=True)]

    def next_bytes(
        self, observations: Sequence[MemberObservation], best: torch.Tensor, rows: Sequence[int]
    ) -> list[list[bytes | None]]:
        """See `EngineCall`."""
        members = range(len(observations))
        longer: dict[tuple[int, int], torch.Tensor] = {}
        for at, row in enumerate(rows):
            for index in members:
                tail = self._tail(index, row)
                stays = self.engine.alignments[index].stays(tail) if tail else None
                if stays:  # the member is inside a token: only longer tokens that start with the tail can come next
                    logits = observations[index].logits[at]
                    ids = stays.on(logits.device)
                    longer[at, index] = ids.take(logits[ids].argmax()).to(best.device)
        together = [best.flatten(), *([torch.stack(list(longer.values()))] if longer else [])]
        known = torch.cat(together).tolist()  # the device is waited for once
        found = dict(zip(longer, known[best.numel() :], strict=True))
        return [
            [
                self._next_bytes(index, row, found.get((at, index)), known[at * len(members) + index])
                for index in members
            ]
            for at, row in enumerate(rows)
        ]

    def _tail(self, index: int, row: int) -> bytes:
        readings = self.runs[index].rows[row].readings
        return readings[0].tail if readings else b""

    def _next_bytes(self, index: int, row: int, longer: int | None, best: int) -> bytes | None:
        tail = self._tail(index, row)
        if tail and longer is None:
            return None
        best = best if longer is None else longer
        if best in self.engine.members[index].end_ids:
            return b""
        pieces = self.engine.vocabularies[index].pieces
        piece = pieces[best] if best < len(pieces) else None
        return piece[len(tail) :] if piece else None

    def reorder(self, rows: torch.Tensor) -> None:
        """See `EngineCall`."""
        for run in self.runs:
            run.reorder(rows)
        if self._own_prompts is not None:
            self._own_prompts = [self._own_prompts[row] for row in rows.tolist()]

    def record(self) -> None:
        """See `EngineCall`."""
        for run in self.runs:
            run.record()

    def crop(self, length: int) -> None:
        """See `EngineCall`."""
        went_back = [run.crop(length) for run in self.runs]
        self.num_read = min(self.num_read, length)
        if not all(went_back):
            self.reset()

    def reset(self) -> None:
        """See `EngineCall`."""
        self.num_read = 0
        for run in self.runs:
            run.reset()
