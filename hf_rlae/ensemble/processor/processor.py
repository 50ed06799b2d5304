"""`EnsembleLogitsProcessor`: an ensemble in the plain `generate` of its first member."""

from __future__ import annotations

import copy
import logging
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack, cast

import torch
from transformers import LogitsProcessor

from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.faults import MemberFaults
from hf_rlae.ensemble.generation_inputs import check_prompt_lengths, check_prompts
from hf_rlae.ensemble.images import without_images
from hf_rlae.ensemble.loading import BUILD_DEFAULTS
from hf_rlae.ensemble.mixing import has_trait
from hf_rlae.ensemble.modeling_ensemble import EnsembleForCausalLM
from hf_rlae.ensemble.options import BuildOptions, with_keywords
from hf_rlae.ensemble.processor.capture import HostCapture, HostPass
from hf_rlae.ensemble.processor.host_call import HostCall, ThreadCall
from hf_rlae.ensemble.processor.host_scores import HostScores
from hf_rlae.errors import ConfigError, InputError
from hf_rlae.members import ColumnStates, Member
from hf_rlae.policies import GivenPolicy, observed_tokens
from hf_rlae.vocabulary.grain import TOKEN

logger = logging.getLogger(__name__)


class EnsembleLogitsProcessor(LogitsProcessor):
    """An ensemble in the plain `generate` of its first member, the host.

    `generate` runs the host; the processor runs the other members and returns the mixture. With one shared tokenizer
    the tokens are those of [`EnsembleForCausalLM`]. With several tokenizers, the text has only tokens of the host: the
    scores are the ensemble's mixture, restricted to the host's vocabulary. The mass of a union token that the host
    lacks is added to the longest host token that is a prefix of it, STOP becomes an end token of the host, and special
    tokens that are not text get no mass.

    One object can be used for many calls, also from several threads. A call continues as long as every row is a row of
    the previous step with one more token; any other input starts a new call. Ids that earlier processors rule out
    (-inf) stay ruled out. Other changes by earlier processors, such as a repetition penalty, would act on the host
    alone; a warning says so.

    Source: ours.

    Args:
        ensemble (`EnsembleForCausalLM`): its first member is the host.
        attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): the mask of the prompts of the next calls,
            1 = keep. By default, the mask that `generate` passes to the host is used; if the host has no 2-D mask, the
            leading padding ids are padding. The attribute can be set before each call.
        host_rereads (`bool`, defaults to `False`): if tokenizers differ, `generate` conditions the host on the
            generated tokens, for example on single letters where the host would have generated a word. With `True` the
            host keeps its own readings, as in [`EnsembleForCausalLM`], and runs once more if it would have generated
            the text in other tokens. The text is better, the cost is higher. It makes no difference with one shared
            tokenizer, or if the host has the shortest tokens.

    Raises:
        ConfigError: an ensemble that draws members, warps them, guides them, picks them from the prompt or has another
            grain than `"token"`, or an adapter name for the host.

    Example:

    >>> processor = EnsembleLogitsProcessor.from_members(model_1, ["owner/second"])  # doctest: +SKIP
    >>> model_1.generate(**t1("Once", return_tensors="pt"), logits_processor=[processor])  # doctest: +SKIP
    """

    def __init__(
        self,
        ensemble: EnsembleForCausalLM,
        attention_mask: torch.Tensor | None = None,
        host_rereads: bool = False,
    ) -> None:
        if not isinstance(ensemble, EnsembleForCausalLM):
            raise ConfigError(
                f"ensemble must be an EnsembleForCausalLM, got {type(ensemble).__name__}; of models, the processor is "
                "built by `EnsembleLogitsProcessor.from_members(model, [model_2])`, with `tokenizers=[tokenizer, "
                "tokenizer_2]` if they cannot be loaded from where the models are"
            )
        _check_ensemble(ensemble)
        self.ensemble = ensemble
        self.attention_mask = attention_mask
        self.host_rereads = host_rereads
        self.host: Member = ensemble.members[0]
        self._attach()

    def _attach(self) -> None:
        self._local = threading.local()
        self._capture = HostCapture()
        self._capture.attach(self.host, partial(_hidden_tokens, weakref.ref(self.ensemble)))
        self._capture.keep_for(self)

    def __copy__(self) -> EnsembleLogitsProcessor:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__, _local=threading.local())
        twin._capture.keep_for(twin)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> EnsembleLogitsProcessor:
        """A processor with its own calls and the same ensemble, for tools that copy the arguments of `generate`."""
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickling, which includes the members."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_local", "_capture")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    @classmethod
    @with_keywords(BuildOptions, BUILD_DEFAULTS)
    def from_members(
        cls,
        host: Any,
        others: Sequence[Any],
        tokenizers: Sequence[Any] | None = None,
        policy: GivenPolicy | None = None,
        attention_mask: torch.Tensor | None = None,
        host_rereads: bool = False,
        **settings: Unpack[BuildOptions],
    ) -> EnsembleLogitsProcessor:
        """Builds the processor from models.

        Args:
            host (`PreTrainedModel` or `PeftModel`): the model whose `generate` is called. What else
                [`EnsembleForCausalLM.from_members`] takes is accepted, too: `processor.host.model` is the model then.
            others (`Sequence`): the other members: models, folders, Hub ids, or `(model, tokenizer)` pairs.
            tokenizers (`Sequence[PreTrainedTokenizerBase | None]`, *optional*): one per member, the host's first.
                `None` loads a member's from its folder or Hub id; for a model, from where `from_pretrained` has loaded
                it.
            policy (`Policy`, `str` or `os.PathLike`, *optional*): as in [`EnsembleForCausalLM.from_members`]; its
                weights `(B, M)` have the host's first; `None` = uniform.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*), host_rereads (`bool`): see the class.
            settings: as in [`EnsembleForCausalLM.from_members`], such as `span_length`, `mixing`, `end_token_ids`.

        Raises:
            ConfigError: the number of tokenizers is not the number of members, or an option is invalid.
            MemberError, TokenizerError: a model or a tokenizer that cannot be used.
        """
        if isinstance(others, (str, bytes)) or not isinstance(others, Sequence):
            raise ConfigError(f"others must be a list of models, got {type(others).__name__}; give [model_2, ...]")
        members = [host, *others]
        if tokenizers is not None:
            given = list(tokenizers) if isinstance(tokenizers, Sequence) else [tokenizers]
            if len(given) != len(members):
                raise ConfigError(
                    f"tokenizers has {len(given)} entries for {len(members)} members (the host and {len(others)} "
                    "others); give one per member, the host's first"
                )
            pairs = zip(members, given, strict=True)
            members = [one if tokenizer is None else (one, tokenizer) for one, tokenizer in pairs]
        ensemble = EnsembleForCausalLM.from_members(members, policy, **settings)
        return cls(ensemble, attention_mask, host_rereads)

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """Replaces the host's scores for the next token by the ensemble's.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): the text so far.
            scores (`torch.FloatTensor` of shape `(B, V)`): the scores of the host.

        Returns:
            `torch.FloatTensor` of shape `(B, V)`: the mixture's log-probabilities; normalised for beams, else shifted
            by `sum_k w_k log Z_k` as in [`EnsembleForCausalLM`].

        Raises:
            InputError: the scores are not from the host's newest forward pass, prompts are invalid, or the attention
                mask has another shape.
            PolicyError: invalid weights.
        """
        of_thread = self._of_thread()
        call, of_thread.call = of_thread.call, None  # after an exception, the next step starts a new call
        try:
            host_pass = self._newest_pass(input_ids, scores)
            own = HostScores.of(host_pass, scores)
            parents = None if call is None else call.parents(input_ids, host_pass.columns)
            if call is None or parents is None:
                call = self._begin(of_thread, input_ids, host_pass)
            elif not isinstance(parents, range):
                call.reorder(parents)
            if own.is_changed and not call.has_warned:
                call.has_warned = True
                _warn_of_changes()
            call.ids = input_ids
            call.has_host_cache = host_pass.cache is not None
            call.host.feed(own.logits.clone(), call.hidden(host_pass), input_ids, call.pads)
            mixed = self._mixed(call, input_ids)
        finally:
            self._capture.take()  # if another member has the same model, its passes were captured, too
        of_thread.call = call
        return cast(torch.FloatTensor, self._finished(mixed.to(scores.device), own, scores))

    def _of_thread(self) -> ThreadCall:
        of_thread: ThreadCall | None = getattr(self._local, "call", None)
        if of_thread is None:
            of_thread = self._local.call = ThreadCall()
        return of_thread

    def _newest_pass(self, ids: torch.Tensor, scores: torch.Tensor) -> HostPass:
        """The host's newest forward pass; raises `InputError` if the scores are not from it."""
        host_pass = self._capture.take()
        if (
            host_pass is None
            or ids.shape[1] == 0
            or host_pass.logits.shape != scores.shape
            or len(ids) != len(scores)
            or not torch.equal(host_pass.last_ids.to(ids.device), ids[:, -1])
        ):
            raise InputError(
                f"scores of shape {tuple(scores.shape)} are not from the newest forward pass of the host "
                f"{self.host.name} for these rows: pass the processor to the `generate` of the model it was built for, "
                "with input_ids, and without assisted decoding (`assistant_model`, `prompt_lookup_num_tokens`), in "
                "which one pass gives several tokens (the `generate` of `EnsembleForCausalLM` supports it)"
            )
        return host_pass

    def _begin(self, of_thread: ThreadCall, ids: torch.Tensor, host_pass: HostPass) -> HostCall:
        """Starts a new call."""
        mask = self._mask(ids, host_pass)
        check_prompts(self.ensemble, ids, mask)
        own_prompts = self._own_prompts(ids, mask)
        hidden_tokens = observed_tokens(self.ensemble.policy)
        engine_call, host = self.ensemble.engine.new_host_call(hidden_tokens, self.host_rereads)
        cache = EnsembleCache(engine_call)
        cache.has_images = bool(own_prompts)
        check_prompt_lengths(self.ensemble, cache, ids, {"attention_mask": mask, **own_prompts})
        faults = MemberFaults(self.ensemble.members, ids.shape[1], drops=self.ensemble.config.on_non_finite == "drop")
        cache.begin_generate(ids.shape[1], self.ensemble.policy, faults=faults)
        key = ids if mask is None else torch.cat([ids, mask.to(ids.device, ids.dtype)], dim=1)
        groups = torch.unique(key, dim=0, return_inverse=True)[1]
        pads = [0] * len(ids) if mask is None else (mask == 0).sum(1).tolist()
        call = HostCall(cache, host, ids, mask, groups, pads, own_prompts, host_pass.cache is not None)
        if hidden_tokens > 1:
            _check_columns(host_pass, min(hidden_tokens, ids.shape[1]))
            call.states = ColumnStates(hidden_tokens)
        call.host_cache = of_thread.reference(host_pass.cache)
        return call

    def _own_prompts(self, ids: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The other members' prompts without images, if the host's prompts have some; `generate` gives them to it."""
        images = self.host.image_ids
        if not images or not bool(torch.isin(ids, torch.tensor(sorted(images), device=ids.device)).any()):
            return {}
        if self.host_rereads:
            raise InputError(
                "the prompt has images, and with host_rereads=True the host would read it again without them; leave "
                "host_rereads out, or call the `generate` of `EnsembleForCausalLM`"
            )
        return without_images(self.ensemble.engine, 0, ids, mask)

    def _mask(self, ids: torch.Tensor, host_pass: HostPass) -> torch.Tensor | None:
        """The mask of the prompts, 1 = keep; `None` without padding."""
        rows, columns = ids.shape
        mask = self.attention_mask
        if mask is not None:
            if mask.dim() != 2 or rows % len(mask) or mask.shape[1] != columns:
                raise InputError(
                    f"attention_mask of shape {tuple(mask.shape)} does not fit prompts of shape {(rows, columns)}; set "
                    "`processor.attention_mask` to the mask of the call, or to None"
                )
            mask = mask.to(ids.device).repeat_interleave(rows // len(mask), 0)
        elif host_pass.mask is not None and host_pass.mask.shape == ids.shape:
            mask = host_pass.mask.to(ids.device)
        elif not host_pass.has_mask:
            mask = self._without_leading_pads(ids)
        return None if mask is None or bool(mask.all()) else mask.long()

    def _without_leading_pads(self, ids: torch.Tensor) -> torch.Tensor:
        pads = {getattr(self.host.generation_config, "pad_token_id", None), self.host.tokenizer.pad_token_id}
        is_pad = torch.isin(ids, torch.tensor([i for i in pads if i is not None], dtype=ids.dtype, device=ids.device))
        mask = 1 - is_pad.long().cumprod(1)
        mask[:, -1] = 1
        return mask

    def _mixed(self, call: HostCall, ids: torch.Tensor) -> torch.Tensor:
        """One step of the ensemble: logits `(B, V)`."""
        mask = call.mask
        if mask is not None and mask.shape[1] < ids.shape[1]:
            mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], dim=1)
        inputs = self.ensemble.prepare_inputs_for_generation(ids, past_key_values=call.cache, attention_mask=mask)
        own_prompts = {} if call.cache.has_spans else call.own_prompts
        logits = self.ensemble(**inputs, **own_prompts, logits_to_keep=1).logits[:, -1].float()
        if call.cache.faults is not None:  # here, because the processor does not know when the call ends
            call.cache.faults.read()
        return logits

    def _finished(self, mixed: torch.Tensor, own: HostScores, scores: torch.Tensor) -> torch.Tensor:
        """The scores that `generate` gets: restricted to the host's ids, normalised for beams, without blocked ids."""
        mixed = self.ensemble.engine.scores_of_first_member(mixed, scores)
        if own.is_normalised:
            mixed = mixed.log_softmax(-1)
        mixed = mixed.masked_fill(own.blocked, -torch.inf)
        # if all ids that the ensemble allows are blocked, the host's scores stay
        lost = ~torch.isfinite(mixed).any(1, keepdim=True)
        return torch.where(lost, scores, mixed)


def _check_ensemble(ensemble: EnsembleForCausalLM) -> None:
    if ensemble.config.select == "prompt":
        raise ConfigError(
            'select="prompt": in a plain `generate` the host runs for every token, even if it is not picked; leave it '
            "out, or call the `generate` of `EnsembleForCausalLM`"
        )
    if ensemble.config.draw is not None:
        raise ConfigError(
            f"draw={ensemble.config.draw!r}: in a plain `generate` the host runs for every token, even if another "
            "member is drawn; leave draw out, or call the `generate` of `EnsembleForCausalLM`"
        )
    if ensemble.config.warp == "members":
        raise ConfigError(
            'warp="members": a plain `generate` has one temperature, top_p and so on, for what the processor returns; '
            "leave warp out, or call the `generate` of `EnsembleForCausalLM`"
        )
    if has_trait(ensemble.engine.mixing, "reads_negative_prompt"):
        raise ConfigError(
            f"mixing={ensemble.config.mixing!r}: the `generate` of one model has guidance of its own; call it with "
            "guidance_scale and negative_prompt_ids, without the processor"
        )
    if ensemble.union is not None and ensemble.union.grain != TOKEN:
        raise ConfigError(
            f"grain={ensemble.union.grain!r}: a plain `generate` writes the host's tokens; set grain='token', or call "
            "the `generate` of `EnsembleForCausalLM`"
        )
    if ensemble.members[0].adapter_name is not None:
        raise ConfigError(
            f"adapter_names[0]={ensemble.members[0].adapter_name!r}: the host uses the adapter that is active "
            "when `generate` is called; give None for the host, and call `model.set_adapter(...)`"
        )


def _hidden_tokens(reference: weakref.ref[EnsembleForCausalLM]) -> int:
    ensemble = reference()
    return 0 if ensemble is None else observed_tokens(ensemble.policy)


def _check_columns(host_pass: HostPass, needed: int) -> None:
    given = 0 if host_pass.hidden is None else host_pass.hidden.shape[1]
    if given < needed:
        raise InputError(
            f"the policy reads the mean of the host's newest {needed} hidden states, but the host's last pass over the "
            f"prompt has {given}: leave out `prefill_chunk_size`, and pass a shorter cache (`past_key_values`); or "
            "make the policy with `pooled_tokens=1`, or call the `generate` of `EnsembleForCausalLM`"
        )


def _warn_of_changes() -> None:
    logger.warning(
        "the host's scores were changed before EnsembleLogitsProcessor (by repetition_penalty, sequence_bias, "
        "guidance_scale, or an earlier processor), so the change acts on the host alone, not on the ensemble; put the "
        "processor first: leave that option out (repetition_penalty=1.0) and pass "
        "logits_processor=[processor, RepetitionPenaltyLogitsProcessor(...)]"
    )
