"""The interface of engines, which run members and mix their distributions.

There are two engines: [`SharedTokenizerEngine`] for members with one tokenizer, and [`ReadingsEngine`] for members with
different tokenizers. Code outside of this folder does not depend on the engine of an ensemble.

* An `Engine` belongs to the ensemble and does not change.
* An `EngineCall` belongs to one call (one `EnsembleCache`): the run of each member, and how far it has read.
* An `EngineStep` is one forward pass of the ensemble over new columns:

      step = cache.call.step(cache, keep)
      for query in step.queries():
          weights = answered(policy, states.state(cache, step, query)).output.weights  # looks at `step.observe(query)`
          cache.spans.set(query, weights)
      logits = step.logits()
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hf_rlae.ensemble.mixing import Mixing
from hf_rlae.ensemble.spans import SpanQuery
from hf_rlae.members import Member, PromptImages
from hf_rlae.policies import MemberObservation
from hf_rlae.vocabulary import ByteVocabulary, UnionVocabulary

if TYPE_CHECKING:
    from hf_rlae.ensemble.cache_ensemble import EnsembleCache


class MemberRun(Protocol):
    """One member's state in one call: the text that it has read, and its key-value cache."""

    @property
    def forward_calls(self) -> int:
        """Number of forward passes so far."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`; the number of rows may change."""

    def record(self) -> None:
        """Records what `crop` needs, from now on."""

    def crop(self, length: int) -> bool:
        """Goes back to the first `length` columns; `False` if they must be read again."""

    def reset(self) -> None:
        """Drops everything that was read."""


class HostRun(MemberRun, Protocol):
    """The run of the host: its plain `generate` runs it, and its outputs are fed to the engine."""

    def feed(self, logits: torch.Tensor, hidden: torch.Tensor | None, text: torch.Tensor, pads: Sequence[int]) -> None:
        """Takes the host's outputs after the newest column.

        Args:
            logits (`torch.Tensor` of shape `(B, V_m)`): next-token logits; may be overwritten.
            hidden (`torch.Tensor` of shape `(B, H)` or `None`): hidden states, as policies observe them.
            text (`torch.LongTensor` of shape `(B, L)`): all ids so far.
            pads (`Sequence[int]`): number of padding columns before each row.
        """


class EngineStep(Protocol):
    """One forward pass over the columns that the members have not read yet."""

    def queries(self) -> Iterable[SpanQuery]:
        """The spans that begin; the weights of each must be set (`SpanWeights.set`) before the next query is taken."""

    def observe(self, query: SpanQuery) -> list[MemberObservation]:
        """Each member's outputs at the query's column, for all B rows; runs members that have not run yet."""

    def look_ahead(self, query: SpanQuery, num_tokens: int) -> list[torch.Tensor]:
        """Each member's look-ahead in the R rows of the query, of shape `(R, H_m)`; see `PolicyState.look_ahead`."""

    def logits(self) -> torch.Tensor:
        """The mixture's log-probabilities, of shape `(B, keep, V)`; call it after all queries."""


class EngineCall(Protocol):
    """The members' runs in one call."""

    @property
    def engine(self) -> Engine:
        """The engine that made the call."""

    @property
    def runs(self) -> Sequence[MemberRun]:
        """One run per member."""

    @property
    def hidden_tokens(self) -> int:
        """The `observed_tokens` of the policy for which the members run."""

    def step(self, cache: EnsembleCache, keep: int) -> EngineStep:
        """A forward pass that gives logits for the last `keep` columns of `cache.ids`."""

    def set_prompts(self, cache: EnsembleCache, starts: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Sets a separate prompt for every member, which replaces the columns before the completion.

        Args:
            cache (`EnsembleCache`): the cache of the call.
            starts (`torch.LongTensor` of shape `(B,)`, on the CPU): the column of each row's first completion token.
            ids, mask (`torch.LongTensor` of shape `(B, M, L)`): the prompts, in each member's own ids; 1 = keep.

        Raises:
            InputError: the completions of the rows begin at different columns, which the engine does not support.
        """

    def own_prompts(self, cache: EnsembleCache, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask `(B, L)` of the columns that member `index` reads first, in its own ids."""

    def set_images(self, index: int, images: PromptImages) -> None:
        """Sets the images in the prompts of member `index`, before it reads them.

        Raises:
            InputError: the member reads in a way in which it cannot see.
        """

    @property
    def rereads_own_prompts(self) -> bool:
        """Whether another `generate` with this call's cache would read the members' own prompts again."""

    def prompts(self, cache: EnsembleCache, row: int) -> list[tuple[int, ...]]:
        """The prompt of a row in each member's own ids."""

    def encoded(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[tuple[int, ...]]]:
        """Prompts `(B, L)` in each member's own ids, without padding: by row and member."""

    def prompt_lengths(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
        """For each member, the length of the longest prompt of `(B, L)` in its own tokens."""

    def next_bytes(
        self, observations: Sequence[MemberObservation], best: torch.Tensor, rows: Sequence[int]
    ) -> list[list[bytes | None]] | None:
        """The bytes that each member's most likely next token adds to each text.

        Args:
            observations (`Sequence[MemberObservation]`): one per member, with R rows.
            best (`torch.LongTensor` of shape `(R, M)`): each member's most likely id.
            rows (`Sequence[int]`): the R row numbers.

        Returns:
            `list[list[bytes | None]]` or `None`: the bytes by row and member; `b""` for the end of the text, `None` for
            an id that adds no text. `None` instead of the list if the ids themselves can be compared.
        """

    def reorder(self, rows: torch.Tensor) -> None:
        """Row `i` becomes the former row `rows[i]`; the number of rows may change."""

    def record(self) -> None:
        """Records what `crop` needs, from now on."""

    def crop(self, length: int) -> None:
        """Goes back to the first `length` columns; if some run cannot go back, all runs read again in the next step."""

    def reset(self) -> None:
        """Drops everything that was read."""


class Engine(Protocol):
    """Runs members and mixes their distributions over one vocabulary of V ids."""

    @property
    def members(self) -> Sequence[Member]:
        """The M members."""

    @property
    def mixing(self) -> Mixing:
        """Mixes the members' distributions."""

    @property
    def vocab_size(self) -> int:
        """The width of logits, V."""

    @property
    def num_input_ids(self) -> int:
        """The number of ids that `input_ids` can have."""

    @property
    def union(self) -> UnionVocabulary | None:
        """The union vocabulary if tokenizers differ; `None` if the members share one tokenizer."""

    @property
    def vocabularies(self) -> Sequence[ByteVocabulary]:
        """Each member's tokens as bytes."""

    @property
    def weight_scale(self) -> torch.Tensor | None:
        """Factors `(M,)` from a policy's weights to those of tokens; see `EnsembleConfig.weight_unit`."""

    @property
    def pieces(self) -> list[bytes | None]:
        """The bytes of every id, `V` entries; `None` for ids without text, such as STOP."""

    @property
    def has_prompt_logits(self) -> bool:
        """Whether the columns inside a prompt have next-token distributions."""

    @property
    def always_shows_states(self) -> bool:
        """Whether `EngineStep.observe` has the newest hidden states even if `hidden_tokens` is 0."""

    @property
    def scores_texts_at_once(self) -> bool:
        """Whether teacher forcing takes one forward pass per member, whatever the length of the text."""

    @property
    def prompt_tokenizers(self) -> Sequence[PreTrainedTokenizerBase]:
        """The tokenizer that encodes each member's prompts."""

    def encode_prompt(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """A prompt without padding, in each member's own ids."""

    def new_call(self, use_cache: bool, hidden_tokens: int) -> EngineCall:
        """New runs for one call.

        Args:
            use_cache (`bool`): whether members keep their own caches from step to step.
            hidden_tokens (`int`): see `observed_tokens`.
        """

    def new_host_call(self, hidden_tokens: int, rereads: bool) -> tuple[EngineCall, HostRun]:
        """New runs for one call in the plain `generate` of the first member, and the run of that member.

        Args:
            hidden_tokens (`int`): see `observed_tokens`.
            rereads (`bool`): whether the first member keeps its own readings, see `EnsembleLogitsProcessor`.
        """

    def check_generation(self, settings: GenerationConfig) -> None:
        """Raises `InputError` for generation settings that this engine does not support."""

    def to_union(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps ids of the first member's tokenizer to ids of the ensemble: its end ids become STOP, if there is one."""

    def to_first_member(self, sequences: torch.Tensor, columns: int, pad_token_id: int | None) -> torch.Tensor:
        """Maps generated sequences to ids of the first member's tokenizer.

        Args:
            sequences (`torch.LongTensor` of shape `(B, L)`): ids of the ensemble.
            columns (`int`): the width of the prompts, which do not change.
            pad_token_id (`int`, *optional*): pads shorter rows on the right.

        Returns:
            `torch.LongTensor` of shape `(B, L')`: the same texts in ids of the first member.
        """

    def scores_of_first_member(self, logits: torch.Tensor, host_scores: torch.Tensor) -> torch.Tensor:
        """Maps the mixture to the first member's own ids, with the same sum of exponentials.

        Args:
            logits (`torch.FloatTensor` of shape `(B, V)`): the logits of the mixture, in fp32.
            host_scores (`torch.FloatTensor` of shape `(B, V_1)`): the first member's own scores.

        Returns:
            `torch.FloatTensor` of shape `(B, V_1)`: the logits of the mixture for the first member's ids.
        """
