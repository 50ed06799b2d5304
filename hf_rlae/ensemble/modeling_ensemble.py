"""`EnsembleForCausalLM`: several members that decode together in one `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from hf_rlae.ensemble.assembly import assemble
from hf_rlae.ensemble.cache_ensemble import EnsembleCache
from hf_rlae.ensemble.chats.member_chats import MemberChats
from hf_rlae.ensemble.configuration_ensemble import EnsembleConfig
from hf_rlae.ensemble.engines.states import StateReader
from hf_rlae.ensemble.forward_pass import begin_spans, label_loss, mixed_logits
from hf_rlae.ensemble.generation_ensemble import EnsembleGenerationMixin
from hf_rlae.ensemble.image_prompts import EnsembleProcessor
from hf_rlae.ensemble.images import set_images, take_images
from hf_rlae.ensemble.inputs import (
    check_cached_states,
    check_flag,
    check_forward_inputs,
    kept_columns,
    prompt_starts,
)
from hf_rlae.ensemble.policy_fit import check_policy_fits, warn_of_other_members
from hf_rlae.ensemble.representation import represented
from hf_rlae.ensemble.saved_ensemble import SavedEnsemble
from hf_rlae.errors import ConfigError, InputError
from hf_rlae.members import Member
from hf_rlae.policies import (
    GivenPolicy,
    Policy,
    UniformPolicy,
    observed_tokens,
    policy_entry,
    resolve_policy,
    saved_policy,
)
from hf_rlae.vocabulary import UnionVocabulary


class EnsembleForCausalLM(SavedEnsemble, EnsembleGenerationMixin):
    """Several causal language models that decode one text together.

    Every next token comes from the weighted mixture of the members' distributions over the union vocabulary. A policy
    gives new weights for every span of `config.span_length` tokens. `generate` is transformers' own. Members are not
    submodules: `parameters()`, `state_dict()` and `save_pretrained()` cover the policy only.

    Source: RLAE (arXiv 2506.00439).

    Args:
        config (`EnsembleConfig`): span length, mixing and the other settings.
        members (`Sequence[Member]`): at least one member.
        policy (`Policy`, *optional*): called with a `PolicyState`, returns weights `(B, M)`; `None` = the named policy
            of `config.policy`, else uniform.

    Attributes:
        members (`tuple[Member, ...]`): the members.
        engine (`Engine`): runs the members and mixes their distributions.
        word_beginnings (`torch.BoolTensor` of shape `(V,)`, *optional*): whether each id starts with a space, if words
            are drawn.

    Raises:
        ConfigError: no `EnsembleConfig`, no members, or a policy for another number of members.
        MemberError, TokenizerError: a model or a tokenizer that cannot be used.
    """

    config_class = EnsembleConfig
    base_model_prefix = "ensemble"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _is_stateful = False
    config: EnsembleConfig
    members: tuple[Member, ...]
    policy: Policy

    def __init__(self, config: EnsembleConfig, members: Sequence[Member] = (), policy: Policy | None = None) -> None:
        if not isinstance(config, EnsembleConfig):
            raise ConfigError(
                f"config must be an EnsembleConfig, got {type(config).__name__}; build an ensemble from models with "
                "`EnsembleForCausalLM.from_members([...])`"
            )
        super().__init__(config)
        if not members:
            raise ConfigError(
                "members is empty: an ensemble needs at least one; build it with "
                "`EnsembleForCausalLM.from_members([...])`"
            )
        object.__setattr__(self, "members", tuple(members))
        named = config.policy if policy is None else None
        self.set_policy(saved_policy("", named, {}) if named is not None and "name" in named else policy)
        parts = assemble(config, members)
        self.config.vocab_size = parts.engine.vocab_size
        lengths = [member.context_length for member in self.members if member.context_length is not None]
        self.config.max_position_embeddings = min(lengths, default=None)  # where tools cut long texts
        self.engine = parts.engine
        self.generation_config = parts.generation_config
        self.generation_config.cache_implementation = None  # a member's: every member makes its own cache here
        self._tokenizer = parts.tokenizer
        self._states = StateReader(self.engine, parts.tokenizer)
        self.word_beginnings = self._find_word_beginnings() if config.draw == "word" else None
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(self.config, name, getattr(self.generation_config, name))
        warn_of_other_members(self.policy, self)

    def __repr__(self) -> str:
        return represented(self)

    def _find_word_beginnings(self) -> torch.Tensor:
        """Whether each id starts with a space, `(V,)`."""
        return torch.tensor([piece is not None and piece.startswith(b" ") for piece in self.pieces])

    @property
    def union(self) -> UnionVocabulary | None:
        """The union vocabulary if tokenizers differ; `None` if the members share one tokenizer."""
        return self.engine.union

    @property
    def pieces(self) -> list[bytes | None]:
        """The bytes of every id, `V` entries; `None` for ids without text, such as STOP."""
        return self.engine.pieces

    @property
    def tokenizer(self) -> MemberChats:
        """The ensemble's tokenizer: encodes prompts as the first member's does, and decodes every union id."""
        return self._tokenizer

    @property
    def processor(self) -> EnsembleProcessor:
        """Makes inputs from images and text, for ensembles with a member that sees (see [`EnsembleProcessor`]).

        Raises:
            InputError: no member sees, or several do.
        """
        return EnsembleProcessor(self.members, self.engine, self._tokenizer)

    def set_policy(self, policy: GivenPolicy | None) -> None:
        """Replaces the policy.

        Args:
            policy (`Policy`, `str` or `os.PathLike`, *optional*): as in `from_members`; `None` = uniform weights.

        Raises:
            ConfigError, PolicyError: no such policy, or one that does not fit (see `check_policy`).
        """
        given = resolve_policy(policy)
        policy = UniformPolicy() if given is None else given
        self.check_policy(policy)
        if "policy" in self._modules:
            del self._modules["policy"]
        self.__dict__.pop("policy", None)
        if isinstance(policy, nn.Module):
            self.policy = policy
        else:
            object.__setattr__(self, "policy", policy)
        self.config.policy = policy_entry(policy)
        if "engine" in self.__dict__:  # else the ensemble is being built
            warn_of_other_members(policy, self)

    def check_policy(self, policy: Policy) -> None:
        """Raises an error if a policy does not fit these members.

        Args:
            policy (`Policy`): the policy.

        Raises:
            ConfigError: the policy was made for another number of members, or for other hidden sizes, or observes
                members with `select="prompt"`.
            PolicyError: it cannot be called with a `PolicyState`, or its `pooled_tokens` is not an integer of at least
                1.
        """
        check_policy_fits(policy, self.members, self.config)

    @property
    def device(self) -> torch.device:
        """The first member's device, which is the device of ids and logits."""
        return self.members[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The first member's dtype."""
        return self.members[0].dtype

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: members are pretrained, and policies initialise themselves."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> EnsembleForCausalLM:
        super()._apply(fn, recurse)
        for member in self._movable_members():
            member.move(fn)
        return self

    def train(self, mode: bool = True) -> EnsembleForCausalLM:
        """Sets the mode of the policy; members can only be set to eval mode."""
        super().train(mode)
        if not mode:
            for member in self.__dict__.get("members", ()):
                member.wrapper.eval()
        return self

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        """Lets the steps of all members run compiled (see [`Member.compile`]); remote members stay as they are.

        Args:
            options: the arguments of `torch.compile`, such as `mode="reduce-overhead"`.
        """
        for member in self.members:
            if not member.is_remote:
                member.compile(**options)

    def _movable_members(self) -> Iterator[Member]:
        """One member for each model that has no device map."""
        done: set[int] = set()
        for member in self.members:
            if not member.has_device_map and id(member.wrapper) not in done:
                done.add(id(member.wrapper))
                yield member

    def get_output_embeddings(self) -> None:
        """`None`: an ensemble has no head of its own."""
        return None

    def get_input_embeddings(self) -> nn.Module:
        """The input embeddings of the first member."""
        self.members[0].prepare()
        return self.members[0].model.get_input_embeddings()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: it would change the embeddings of the first member alone."""
        raise InputError(
            "resize_token_embeddings is not supported: the vocabulary of an ensemble follows from its members' "
            "tokenizers; resize the members' own models before you build the ensemble"
        )

    def new_cache(
        self,
        use_cache: bool = True,
        record: bool = False,
        *,
        policy: Policy | None = None,
        may_draw: bool = True,
        draw_numbers: Callable[[int, int], torch.Tensor] | None = None,
    ) -> EnsembleCache:
        """A new, empty state for one call (see `EnsembleCache`).

        Args:
            use_cache (`bool`, defaults to `True`): whether members keep their own caches from step to step.
            record (`bool`, defaults to `False`): whether to record the members' log-probabilities of every token.
            policy (`Policy`, *optional*): the policy of this call, instead of the ensemble's own.
            may_draw (`bool`, defaults to `True`): `False` mixes the members in `generate` even if the config has
                `draw`.
            draw_numbers (callable, *optional*): where draws take their random numbers from; see `numbers` of
                [`MemberDraws`].

        Returns:
            `EnsembleCache`: the state.

        Raises:
            ConfigError, PolicyError: see `check_policy`.
        """
        if policy is not None:
            self.check_policy(policy)
        call = self.engine.new_call(use_cache, observed_tokens(self.policy if policy is None else policy))
        return EnsembleCache(call, policy, use_cache, record, may_draw, draw_numbers)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        labels: torch.Tensor | None = None,
        prompt_length: int | torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        member_input_ids: torch.Tensor | None = None,
        member_attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """The mixture's log-probabilities for every next token, and a loss by teacher forcing.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, n)`): union ids that follow the text in `past_key_values` (the
                whole text without it). Left and right padding are accepted.
            attention_mask (`torch.LongTensor` of shape `(B, L)`, *optional*): 1 = keep, over the whole text.
            past_key_values (`EnsembleCache`, *optional*): the state of an earlier call; updated in place.
            labels (`torch.LongTensor` of shape `(B, n)`, *optional*): as in transformers: shifted inside, -100 is
                ignored.
            prompt_length (`int` or `torch.LongTensor` of shape `(B,)`, *optional*): the column of the first
                completion token, where span 0 begins. Default: the column of the first label that is not -100, else of
                the first attended token.
            use_cache (`bool`, *optional*): whether members keep their caches, so that the returned state can be
                continued.
            logits_to_keep (`int`, defaults to 0): number of last columns to return logits for; 0 for all.
            member_input_ids, member_attention_mask (`torch.LongTensor` of shape `(B, M, L)`, *optional*): each
                member's own rendering of the prompt, from `tokenizer.apply_chat_template`.
            return_dict (`bool`, *optional*): `False` returns a tuple of the values that are not `None`.
            kwargs: `num_items_in_batch` as in transformers: the loss is the sum divided by it. Images
                for the member that sees (`pixel_values` and so on, from `processor`), with the first columns.

        Returns:
            `CausalLMOutputWithPast`: `logits` of shape `(B, n, V)`. With one member, they are its own logits; else the
            mixture's log-probabilities in fp32, shifted by `sum_k w_k log Z_k`. `loss` is in nats per label. If
            tokenizers differ, every member reads the prompt in its own tokens. The columns inside a prompt that is
            declared (by `prompt_length`, labels or `generate`) then have no next-token distribution: they are NaN.

        Raises:
            InputError: unknown arguments, ids outside the union vocabulary, shapes and types that do not fit, a mask
                with other values than 0 and 1, a row without any token, the cache of another ensemble.
            PolicyError: invalid weights.
        """
        check_flag("use_cache", use_cache)
        check_flag("return_dict", return_dict)
        cache = past_key_values
        if cache is None:
            cache = self.new_cache(use_cache=use_cache is not False)
        starts = None
        if not (isinstance(cache, EnsembleCache) and cache.in_generate):  # `generate` has checked its arguments
            logits_to_keep = kept_columns(logits_to_keep)
            images = take_images(self, input_ids, kwargs)
            check_forward_inputs(self, input_ids, attention_mask, cache, labels, logits_to_keep, kwargs)
            set_images(cache, images)
            check_cached_states(self.engine, cache, cache.policy_or(self.policy))
            if prompt_length is not None:
                starts = prompt_starts(prompt_length, cache, input_ids)
            input_ids = input_ids.long()
            attention_mask = None if attention_mask is None else attention_mask.long()
        policy = cache.policy_or(self.policy)
        cache.extend(input_ids, attention_mask)
        if not cache.has_spans:
            begin_spans(self, cache, labels, starts, member_input_ids, member_attention_mask)
        new_columns = cache.ids.shape[1] - cache.seen
        keep = min(logits_to_keep or new_columns, new_columns)
        if cache.trace.enabled:
            cache.trace.settle(cache.ids, cache.seen + 1)
        with torch.inference_mode() if cache.in_generate else nullcontext():
            logits = mixed_logits(self.config, self._states, cache, policy, keep)
        if cache.is_recording and logits.is_inference():
            logits = logits.clone()  # assisted decoding writes into the logits
        given = cache.given
        cache.finish_step()
        loss = None
        if labels is not None:
            loss = label_loss(self.engine, logits, labels, given, kwargs.get("num_items_in_batch"))
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)
        return output.to_tuple() if return_dict is False else output


AutoModelForCausalLM.register(EnsembleConfig, EnsembleForCausalLM)
