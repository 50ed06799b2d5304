"""What an engine is: it runs members and mixes their distributions, whatever their tokenizers are.

There are two: [`SharedTokenizerEngine`] for members with one vocabulary, and [`ReadingsEngine`] for members with
different tokenizers. Nothing outside this folder knows which one an ensemble has.

* An `Engine` belongs to the ensemble and never changes.
* An `EngineCall` belongs to one call (one `EnsembleCache`): each member's run, and how far it has read.
* An `EngineStep` is one forward pass of the ensemble over new columns:

      step = cache.call.step(cache, keep)
      for query in step.queries():
          cache.spans.set(query, weights_of_the_policy(step.state(query)))
      logits = step.logits()
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import GenerationConfig

from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.members import Member
from hf_rlae.policies import MemberObservation
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache


class MemberRun(Protocol):
    """One member's state in one call: what it has read, with its key-value cache."""

    @property
    def forward_calls(self) -> int:
        """Forward passes so far."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was; the number of rows may change."""

    def record(self) -> None:
        """Keeps what is needed to take columns back, from now on."""

    def crop(self, length: int) -> bool:
        """Goes back to the first `length` columns; `False` if that is not possible without reading them again."""

    def reset(self) -> None:
        """Forgets everything."""


class HostRun(MemberRun, Protocol):
    """The run of a member that is not run by the engine: another `generate` runs it and hands its outputs in."""

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes the host's outputs after the newest column.

        Args:
            logits (`torch.Tensor` of shape `(B, V_m)`): next-token logits; may be overwritten.
            hidden (`torch.Tensor` of shape `(B, H)` or `None`): as policies see it.
            text (`torch.LongTensor` of shape `(B, L)`): all ids so far.
            pads (`Sequence[int]`): columns of padding in front of each row.
        """


class EngineStep(Protocol):
    """One forward pass over the columns that the members have not read yet."""

    def queries(self) -> Iterable[SpanQuery]:
        """The rows in which a span begins. Each query must be answered (`SpanWeights.set`) before the next is taken."""

    def observe(self, query: SpanQuery) -> list[MemberObservation]:
        """What each member shows at the query's column, for all B rows; runs members that have not been run."""

    def logits(self) -> torch.Tensor:
        """The mixture's log-probabilities, of shape `(B, keep, V)`, once all queries are answered."""


class EngineCall(Protocol):
    """The members' runs in one call."""

    @property
    def runs(self) -> Sequence[MemberRun]:
        """One run per member."""

    @property
    def hidden_tokens(self) -> int:
        """The `observed_tokens` of the policy for which members are run."""

    def step(self, cache: EnsembleCache, keep: int) -> EngineStep:
        """A forward pass that gives logits for the last `keep` columns of `cache.ids`."""

    def set_prompts(self, cache: EnsembleCache, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Gives every member a prompt of its own, in place of the columns before the completion.

        Args:
            cache (`EnsembleCache`): of the call; its spans have begun.
            ids, mask (`torch.LongTensor` of shape `(B, M, L)`): the prompts, in each member's own ids; 1 = keep.

        Raises:
            InputError: the completions of the rows begin in different columns, where the engine needs one.
        """

    @property
    def rereads_own_prompts(self) -> bool:
        """Whether a further `generate` with this call's cache would read the members' own prompts again."""

    def prompts(self, cache: EnsembleCache, row: int) -> list[tuple[int, ...]]:
        """The prompt of a row in each member's own ids."""

    def prompt_lengths(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
        """The longest of the prompts `(B, L)` in each member's own tokens."""

    def next_bytes(
        self, observations: Sequence[MemberObservation], best: torch.Tensor, rows: Sequence[int]
    ) -> list[list[bytes | None]] | None:
        """The bytes that each member's most likely next token adds to each text.

        Args:
            observations (`Sequence[MemberObservation]`): one per member, of R rows.
            best (`torch.LongTensor` of shape `(R, M)`): each member's most likely id.
            rows (`Sequence[int]`): their row numbers.

        Returns:
            `list[list[bytes | None]]` or `None`: by row and member; `b""` for the end of the text, and `None` for an
            id that adds no text. `None` in place of the lists if the ids themselves can be compared.
        """

    def reorder(self, rows: torch.Tensor) -> None:
        """Makes row `i` continue what row `rows[i]` was; the number of rows may change."""

    def record(self) -> None:
        """Keeps what is needed to take columns back, from now on."""

    def crop(self, length: int) -> None:
        """Goes back to the first `length` columns; what cannot go back is read again with the next step."""

    def reset(self) -> None:
        """Forgets everything that was read."""


class Engine(Protocol):
    """Runs members and mixes their distributions over one vocabulary of V ids."""

    @property
    def members(self) -> Sequence[Member]:
        """M members."""

    @property
    def vocab_size(self) -> int:
        """The number of ids that logits are given for, V."""

    @property
    def num_input_ids(self) -> int:
        """`input_ids` must be below this."""

    @property
    def union(self) -> UnionVocabulary | None:
        """What the ids mean if tokenizers differ; `None` if the members share one."""

    @property
    def vocabularies(self) -> Sequence[ByteVocabulary]:
        """Each member's tokens as bytes."""

    @property
    def pieces(self) -> list[bytes | None]:
        """The bytes of every id, `V` entries; `None` for ids without text, such as STOP."""

    @property
    def has_prompt_logits(self) -> bool:
        """Whether the columns inside a prompt have next-token distributions."""

    def new_call(self, use_cache: bool, hidden_tokens: int) -> EngineCall:
        """Fresh runs for one call.

        Args:
            use_cache (`bool`): whether members keep their own caches from step to step.
            hidden_tokens (`int`): see `observed_tokens`.
        """

    def new_host_call(self, hidden_tokens: int, rereads: bool) -> tuple[EngineCall, HostRun]:
        """Fresh runs for one call inside the `generate` of the first member, and the run of that member.

        Args:
            hidden_tokens (`int`): see `observed_tokens`.
            rereads (`bool`): whether the first member keeps readings of its own, see `EnsembleLogitsProcessor`.
        """

    def check_generation(self, settings: GenerationConfig) -> None:
        """Raises `InputError` for generation settings that this engine cannot follow."""

    def to_union(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids of the first member's tokenizer as ids of the ensemble: its end ids mean STOP, where there is one."""

    def to_first_member(self, sequences: torch.Tensor, columns: int, pad_token_id: int | None) -> torch.Tensor:
        """Written texts in ids of the first member's tokenizer.

        Args:
            sequences (`torch.LongTensor` of shape `(B, L)`): ids of the ensemble.
            columns (`int`): the width of the prompts, which are left as they are.
            pad_token_id (`int`, *optional*): fills shorter rows on the right.
        """

    def scores_of_first_member(self, logits: torch.Tensor, host_scores: torch.Tensor) -> torch.Tensor:
        """The mixture over the first member's own ids, with the same sum of exponentials.

        Args:
            logits (`torch.FloatTensor` of shape `(B, V)`): fp32, of the mixture.
            host_scores (`torch.FloatTensor` of shape `(B, V_1)`): the first member's own scores.
        """
