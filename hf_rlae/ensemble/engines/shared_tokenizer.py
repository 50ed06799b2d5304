"""The engine of members that share a tokenizer: they read the same ids, and their logits are mixed directly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hf_rlae.ensemble.engines.host_runs import SharedTokenizerHost
from hf_rlae.ensemble.engines.prompts import rows_of
from hf_rlae.ensemble.engines.shared_tokenizer_step import SharedTokenizerStep
from hf_rlae.ensemble.mixing import Mixing
from hf_rlae.errors import InputError
from hf_rlae.members import (
    ChosenRowsRun,
    Member,
    OwnPromptRun,
    PromptImages,
    RemoteMember,
    RemoteSharedRun,
    SeparateRowsRun,
    SharedRun,
    new_shared_run,
)
from hf_rlae.policies import MemberObservation
from hf_rlae.sharing import SharedInCopies
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache

AnySharedRun: TypeAlias = (
    SharedRun | SeparateRowsRun | RemoteSharedRun | ChosenRowsRun | OwnPromptRun | SharedTokenizerHost
)


class SharedTokenizerEngine(SharedInCopies):
    """Members read the same ids, and their logits are mixed without a mapping (see `Engine`).

    Args:
        members (`Sequence[Member]`): M members with one vocabulary.
        mixing (`Mixing`): mixes the members' distributions.

    Attributes:
        vocab_size (`int`): the largest number of logits of any member, V.
        num_input_ids (`int`): the smallest number of logits of any member; all members can read ids below it.
        contexts (`list[float]`): the context length of each member, or infinity.
        survivor (`int`): the member with the largest context, which stays if all contexts are outgrown.
    """

    union: UnionVocabulary | None = None
    weight_scale: torch.Tensor | None = None
    has_prompt_logits = always_shows_states = scores_texts_at_once = True

    def __init__(self, members: Sequence[Member], mixing: Mixing) -> None:
        self.members = list(members)
        self.mixing = mixing
        self.vocab_size = max(member.vocab_size for member in members)
        self.num_input_ids = min(member.vocab_size for member in members)
        self.contexts = [
            torch.inf if member.context_length is None else float(member.context_length) for member in members
        ]
        self.survivor = self.contexts.index(max(self.contexts))

    @property
    def prompt_tokenizers(self) -> list[PreTrainedTokenizerBase]:
        """See `Engine`: the first member's encodes for all."""
        return [self.members[0].tokenizer] * len(self.members)

    @cached_property
    def vocabularies(self) -> list[ByteVocabulary]:
        """See `Engine`; members with one tokenizer share one object."""
        return [ByteVocabulary(self.members[0].tokenizer, self.vocab_size)] * len(self.members)

    @property
    def pieces(self) -> list[bytes | None]:
        """See `Engine`."""
        return self.vocabularies[0].pieces

    def encode_prompt(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Engine`; all members have the same ids."""
        return [tuple(ids)] * len(self.members)

    def new_call(self, use_cache: bool, hidden_tokens: int) -> SharedTokenizerCall:
        """See `Engine`."""
        shares_prompts = len(self.members) > 1
        runs: list[AnySharedRun] = []
        for index, member in enumerate(self.members):
            options = (use_cache, shares_prompts, index != self.survivor, hidden_tokens)
            if isinstance(member, RemoteMember):
                runs.append(RemoteSharedRun(member, *options))
            else:
                runs.append(new_shared_run(member, *options))
        return SharedTokenizerCall(self, runs, hidden_tokens)

    def new_host_call(self, hidden_tokens: int, rereads: bool) -> tuple[SharedTokenizerCall, SharedTokenizerHost]:
        """See `Engine`; `rereads` makes no difference here."""
        call = self.new_call(True, hidden_tokens)
        host = SharedTokenizerHost(self.members[0])
        call.runs[0] = host
        return call, host

    def check_generation(self, settings: GenerationConfig) -> None:
        """See `Engine`."""
        if settings.prefill_chunk_size is not None:
            raise InputError(
                f"prefill_chunk_size={settings.prefill_chunk_size}: the policy observes the whole prompt, so members "
                "read it in one forward pass; leave prefill_chunk_size out"
            )

    def to_union(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Engine`: the ids are the ensemble's own."""
        return ids

    def to_first_member(self, sequences: torch.Tensor, columns: int, pad_token_id: int | None) -> torch.Tensor:
        """See `Engine`: the ids are the ensemble's own."""
        return sequences

    def scores_of_first_member(self, logits: torch.Tensor, host_scores: torch.Tensor) -> torch.Tensor:
        """See `Engine`; ids past the first member's logits are left out."""
        width = host_scores.shape[1]
        if logits.shape[1] <= width:
            return logits
        kept = logits[:, :width]
        return kept + (logits.logsumexp(1, keepdim=True) - kept.logsumexp(1, keepdim=True))

    def padded(self, logits: torch.Tensor) -> torch.Tensor:
        """A member's logits, padded to V with -inf for the ids that it lacks."""
        missing = self.vocab_size - logits.shape[-1]
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def readable(self, logits: torch.Tensor) -> torch.Tensor:
        """Mixed logits with -inf for the ids that some member cannot read; they are not ids of the tokenizer."""
        if self.num_input_ids == self.vocab_size:
            return logits
        beyond = torch.full_like(logits[..., self.num_input_ids :], -torch.inf)
        return torch.cat([logits[..., : self.num_input_ids], beyond], dim=-1)


class SharedTokenizerCall:
    """The members' runs in one call (see `EngineCall`).

    Args:
        engine (`SharedTokenizerEngine`): the engine of the ensemble.
        runs (`list`): one per member.
        hidden_tokens (`int`): see `observed_tokens`.
    """

    def __init__(self, engine: SharedTokenizerEngine, runs: list[AnySharedRun], hidden_tokens: int) -> None:
        self.engine = engine
        self.runs = runs
        self.hidden_tokens = hidden_tokens
        self.warned_of: set[int] = set()  # members whose outgrown context was logged

    @property
    def has_own_prompts(self) -> bool:
        """Whether some member has its own prompt."""
        return any(isinstance(run, OwnPromptRun) for run in self.runs)

    @property
    def rereads_own_prompts(self) -> bool:
        """See `EngineCall`; `False`, because every run continues after the text that it has read."""
        return False

    def step(self, cache: EnsembleCache, keep: int) -> SharedTokenizerStep:
        """See `EngineCall`."""
        return SharedTokenizerStep(self, cache, keep)

    def set_prompts(self, cache: EnsembleCache, starts: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """See `EngineCall`; a member whose own prompt equals the shared one keeps its run."""
        start = int(starts[0])
        if bool((starts != start).any()):
            raise InputError(
                "member_input_ids: the completions of all rows must begin at the same column, got the columns "
                f"{starts.tolist()}; pad the prompts on the left"
            )
        shared = cache.ids[:, :start]
        shared_mask = torch.ones_like(shared) if cache.mask is None else cache.mask[:, :start]
        for index, run in enumerate(self.runs):
            own, own_mask = ids[:, index], mask[:, index]
            first = int(own_mask.argmax(1).min())
            own, own_mask = own[:, first:], own_mask[:, first:]
            same = own_mask.shape == shared_mask.shape and torch.equal(own_mask.bool().cpu(), shared_mask.bool().cpu())
            if same and torch.equal((own * own_mask).cpu(), (shared * shared_mask).cpu()):
                continue
            if isinstance(run, SharedRun | SeparateRowsRun | RemoteSharedRun | ChosenRowsRun):
                self.runs[index] = OwnPromptRun(run, own, own_mask, start)

    def own_prompts(self, cache: EnsembleCache, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `EngineCall`; the whole text if the completions of its rows begin at different columns, or with it."""
        run = self.runs[index]
        if isinstance(run, OwnPromptRun):
            return run.ids, run.mask
        mask = torch.ones_like(cache.ids) if cache.mask is None else cache.mask
        starts, firsts = cache.spans.starts, cache.spans.firsts
        is_prompt = bool((starts == starts[0]).all()) and bool((starts > firsts).all())
        columns = int(starts[0]) if is_prompt else cache.ids.shape[1]
        return cache.ids[:, :columns], mask[:, :columns]

    def set_images(self, index: int, images: PromptImages) -> None:
        """See `EngineCall`."""
        run = self.runs[index]
        reader: Any = run.inner if isinstance(run, OwnPromptRun) else run
        if not isinstance(reader, SharedRun):
            raise InputError(
                f"pixel_values: member {self.engine.members[index].name} reads each row separately, because its model "
                "mixes the rows of a batch, and cannot see; leave the images out"
            )
        reader.images = images

    def choose_rows(self, index: int, rows: Sequence[int]) -> None:
        """Lets a member read only the rows `rows` from now on (see `ChosenRowsRun`)."""
        run = self.runs[index]
        own_prompt = run if isinstance(run, OwnPromptRun) else None
        reader: Any = run if own_prompt is None else own_prompt.inner
        if not isinstance(reader, ChosenRowsRun):
            reader = ChosenRowsRun(reader)
            if own_prompt is None:
                self.runs[index] = reader
            else:
                own_prompt.inner = reader
        reader.choose(rows)

    def prompts(self, cache: EnsembleCache, row: int) -> list[tuple[int, ...]]:
        """See `EngineCall`."""
        shared = cache.prompt_ids(row)
        return [
            (*run.prompt(row), *shared[len(cache.text_ids(row, run.start)) :])
            if isinstance(run, OwnPromptRun)
            else shared
            for run in self.runs
        ]

    def encoded(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[tuple[int, ...]]]:
        """See `EngineCall`."""
        return [[prompt] * len(self.runs) for prompt in rows_of(ids, mask)]

    def prompt_lengths(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
        """See `EngineCall`."""
        return [ids.shape[1] if mask is None else int((mask != 0).sum(1).max())] * len(self.runs)

    def next_bytes(self, observations: Sequence[MemberObservation], best: torch.Tensor, rows: Sequence[int]) -> None:
        """See `EngineCall`; `None`, because members that share a tokenizer have the same ids."""

    def reorder(self, rows: torch.Tensor) -> None:
        """See `EngineCall`."""
        for run in self.runs:
            run.reorder(rows)

    def record(self) -> None:
        """See `EngineCall`."""
        for run in self.runs:
            run.record()

    def crop(self, length: int) -> None:
        """See `EngineCall`."""
        went_back = [run.crop(length) for run in self.runs]
        if not all(went_back):
            self.reset()

    def reset(self) -> None:
        """See `EngineCall`."""
        for run in self.runs:
            run.reset()
