"""`PolicyModel`: a learned policy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from hf_rlae.cards import CardedPush
from hf_rlae.errors import ConfigError, PolicyError
from hf_rlae.hub_revisions import resolved
from hf_rlae.members.model_files import load_whole, readable, tokenizer_failures
from hf_rlae.policies.actions import Actions, DirichletActions, LogisticNormalActions
from hf_rlae.policies.card import policy_card
from hf_rlae.policies.configuration_policy import PolicyConfig, readable_tokens
from hf_rlae.policies.heads import MAX_SCORE_AT_START, Heads, Score
from hf_rlae.policies.state import PolicyOutput, PolicyState
from hf_rlae.remote_code import NotRemote
from hf_rlae.transfers import upload

Observation = Mapping[str, torch.Tensor]
"""What a policy observes, as tensors that can be stored; see `PolicyModel.observe`."""

FORMER_CRITIC = {"heads.critic.": "heads.critic.0."}
"""A policy whose files hold the former critic, in another unit and without positions, starts with a new one."""
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class PolicyModel(NotRemote, CardedPush, PreTrainedModel):
    """A learned policy that observes the members, the text or both; an actor returns weights, a critic values.

    With random heads the weights are within 2% of 1/M. Weights are deterministic (the softmax of the actor's scores),
    except for the encoder's dropout in training mode. Inside `exploring()` they are drawn, for training.

    Source: RLAE (arXiv 2506.00439) for the policy that reads the text, its actors and its critic; observing members is
    ours.

    Args:
        config (`PolicyConfig`): the config; to observe members, make it with [`PolicyConfig.for_members`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the encoder's tokenizer, if text is observed; it is saved and
            loaded with the policy.

    Attributes:
        encoder_batch_size (`int` or `None`): the largest number of texts that the encoder reads at a time; `None`, the
            default, for all. If there are more, gradients are computed with the activations of one part at a time,
            which are computed twice. Results and gradients are the same, up to rounding.

    Raises:
        ConfigError: `member_hidden_sizes` is missing although members are observed, or `encoder_config` is missing
            although text is observed.

    Example:

    >>> config = PolicyConfig(num_members=2, member_hidden_sizes=[32, 48])
    >>> policy = PolicyModel(config)  # policy=policy of EnsembleForCausalLM
    >>> policy.num_parameters() < 200_000
    True
    """

    config_class = PolicyConfig
    base_model_prefix = "policy"
    main_input_name = "observation"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _keep_in_fp32_modules_strict = ["heads"]  # noqa: RUF012
    config: PolicyConfig

    def __init__(self, config: PolicyConfig, tokenizer: Any = None) -> None:
        super().__init__(config)
        if config.observes_members and config.member_hidden_sizes is None:
            raise ConfigError(
                f"member_hidden_sizes is missing, but observation={config.observation!r} reads hidden states: make the "
                "config with `PolicyConfig.for_members(ensemble.members, ...)`, which fills it in, or give the width "
                "of each member's hidden states"
            )
        if config.observes_text and not isinstance(config.encoder_config, PreTrainedConfig):
            raise ConfigError(
                f"encoder_config is missing, but observation={config.observation!r} reads the text: build the policy "
                "with `PolicyModel.from_encoder(encoder, members)`, or give the config of an encoder"
            )
        self.encoder = None
        text_size = None
        if config.observes_text:
            self.encoder = AutoModel.from_config(config.encoder_config, trust_remote_code=False)
            text_size = int(self.encoder.config.hidden_size)
        self.heads = Heads(config, text_size)
        self.tokenizer = None if tokenizer is None else _prepared(tokenizer, config.max_text_tokens)
        self.encoder_batch_size: int | None = None
        self._explores = False
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        encoder: Any,
        members: Sequence[Any],
        *,
        observation: str = "text",
        revision: str | None = None,
        **settings: Any,
    ) -> PolicyModel:
        """A policy with a pretrained text encoder, in float32 for any dtype of the encoder's files.

        Args:
            encoder (`str` or pair): a folder or Hub id, such as the paper's `microsoft/deberta-v3-large`, or a
                `(model, tokenizer)` pair. Any encoder of transformers' `AutoModel` works.
            members: as in [`PolicyConfig.for_members`].
            observation (`str`, defaults to `"text"`): `"text"` or `"both"`.
            revision (`str`, *optional*): the encoder's commit, branch or tag on the Hub.
            settings: other fields of `PolicyConfig`. `max_text_tokens` defaults to 512, or to the encoder's maximum if
                that is smaller.

        Returns:
            `PolicyModel`: in eval mode, on the device of the encoder.

        Raises:
            ConfigError: an observation without text, an invalid encoder, or an invalid field.
        """
        if observation == "members":
            raise ConfigError("observation='members' needs no encoder: use PolicyModel(PolicyConfig.for_members(...))")
        if isinstance(encoder, (tuple, list)) and len(encoder) == 2 and isinstance(encoder[0], nn.Module):
            model, tokenizer = encoder
        elif isinstance(encoder, (tuple, list, nn.Module)):
            raise ConfigError(
                "encoder must be a folder, a Hub id or a (model, tokenizer) pair, got "
                f"{type(encoder).__name__}; give a loaded model together with its tokenizer"
            )
        else:
            # transformers' default is the dtype of the files; in half precision Adam's small steps would be lost
            owner = f"encoder {encoder}"
            with readable(encoder, owner, ConfigError), tokenizer_failures(owner):
                revision = resolved(encoder, revision, {})
                options: dict[str, Any] = {"may_miss": ("pooler.",), "dtype": torch.float32, "revision": revision}
                model, _ = load_whole(AutoModel.from_pretrained, encoder, owner, ConfigError, **options)
                tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False, revision=revision)
        encoder_config = copy.deepcopy(model.config)
        encoder_config.dtype = torch.float32
        encoder_config.name_or_path = ""  # may be a local folder, which must not be published
        limits = [readable_tokens(encoder_config), tokenizer.model_max_length]
        longest = min([512, *(limit for limit in limits if isinstance(limit, int) and limit > 0)])
        settings = {"max_text_tokens": longest, **settings}
        config = PolicyConfig.for_members(members, observation=observation, encoder_config=encoder_config, **settings)
        policy = cls(config, tokenizer)
        policy.get_submodule("encoder").load_state_dict(model.state_dict())
        return policy.to(model.device).eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the encoder's tokenizer is loaded from the same folder or repository.

        Args:
            pretrained_model_name_or_path, args, kwargs: as in transformers, and `check_files` (`bool`, defaults to
                `True`): whether to refuse a config that declares more than the files and the free memory can hold.

        Raises:
            PolicyError: files that are missing, damaged or too large, or that do not hold every tensor of the policy.
        """
        source, owner = pretrained_model_name_or_path, f"policy {pretrained_model_name_or_path}"
        wants_info = kwargs.pop("output_loading_info", False)

        def load(name: Any, **options: Any) -> Any:
            return super(PolicyModel, cls).from_pretrained(name, *args, **options)

        with readable(source, owner, PolicyError), tokenizer_failures(owner):
            kwargs["revision"] = resolved(source, kwargs.get("revision"), kwargs)  # of weights and tokenizer alike
            policy, info = load_whole(load, source, owner, PolicyError, replaced=FORMER_CRITIC, **kwargs)
            if policy.config.observes_text and policy.tokenizer is None:
                options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
                options["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
                tokenizer = AutoTokenizer.from_pretrained(source, **options)
                policy.tokenizer = _prepared(tokenizer, policy.config.max_text_tokens)
        for name, parameter in policy.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise PolicyError(
                    f"{owner} has NaN or infinite values in {name}; its files are damaged. Load another one"
                )
        return (policy, info) if wants_info else policy

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the encoder's tokenizer is saved to the same folder or repository."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None:
            wanted = ("push_to_hub", "repo_id", "token", "private", "commit_message", "revision", "create_pr")
            options = {name: kwargs[name] for name in wanted if name in kwargs}
            self.tokenizer.save_pretrained(save_directory, **options)

    def model_card(self, name: str | None = None) -> ModelCard:
        """The model card that `push_to_hub` publishes, unless the repository has one of a user.

        Args:
            name (`str`, *optional*): the repository or folder that the card's code loads.
        """
        return policy_card(self.config, name or "policy").render()

    @property
    def num_members(self) -> int:
        """Number of members, M."""
        return self.config.num_members

    @property
    def observes_members(self) -> bool:
        """Whether this policy needs the members to run and to keep their hidden states."""
        return self.config.observes_members

    @property
    def pooled_tokens(self) -> int:
        """Number of newest tokens over which each member's hidden states are averaged; 1 for the last one alone."""
        return self.config.pooled_tokens

    @property
    def lookahead_tokens(self) -> int:
        """Number of tokens that each member continues the text by itself at a span's first token."""
        return self.config.lookahead_tokens

    @contextmanager
    def exploring(self) -> Iterator[None]:
        """Draws actions within this context; `PolicyOutput` then has the actions and their log-densities."""
        before, self._explores = self._explores, True
        try:
            yield
        finally:
            self._explores = before

    @torch.no_grad()
    def observe(self, state: PolicyState) -> dict[str, torch.Tensor]:
        """The observation of a state, as tensors that a rollout can store.

        Args:
            state (`PolicyState`): B rows at a span's first token.

        Returns:
            `dict[str, torch.Tensor]`: on the policy's device. `positions` `(B,)`, the tokens of the completion before
            the span, for the critic. If members are observed: `hidden_states_0`, ... of shape `(B, H_m)`, or
            `(B, 2 H_m)` with means (`pooled_tokens`), in each member's dtype, `entropies` and `margins` `(B, M)`,
            `agreement` `(B, M, M)`, and with `lookahead_tokens` `lookahead_0`, ... of shape `(B, H_m)`, in each
            member's dtype. If text is observed: `input_ids` and `attention_mask` `(B, L)`, the newest
            `max_text_tokens` tokens of the encoder's tokenizer.

        Raises:
            PolicyError: the state has another number of members, or hidden states are missing or have another width.
            ConfigError: text is observed, and the policy has no tokenizer.
        """
        device = self.device
        if state.num_members != self.num_members:
            raise PolicyError(
                f"{type(self).__name__} weighs {self.num_members} members, the state has {state.num_members}; make the "
                "policy for that number of members"
            )
        tokens = state.span_index * (self.config.span_length or 1)  # `None` is one span: it is the first
        observation = {"positions": upload(tokens, device)}
        if self.config.observes_members:
            sizes = self.config.member_hidden_sizes or []
            run_for = state.hidden_tokens
            is_mismatch = run_for is not None and max(run_for, 1) != self.pooled_tokens
            if is_mismatch or (run_for == 0 and any(hidden is None for hidden in state.hidden_states)):
                raise PolicyError(
                    f"the policy was made for pooled_tokens={self.pooled_tokens}, and the members were run for "
                    f"{run_for}: a policy that calls this one must have the same attributes `observes_members` and "
                    "`pooled_tokens`"
                )
            parts = 2 if self.pooled_tokens > 1 else 1
            for index, (hidden, size) in enumerate(zip(state.hidden_states, sizes, strict=True)):
                if hidden is None or hidden.shape[-1] != parts * size:
                    given = "are missing" if hidden is None else f"have width {hidden.shape[-1]}"
                    raise PolicyError(
                        f"the hidden states of member {index} {given}, but the policy was made for width "
                        f"{parts * size}; make it with `PolicyConfig.for_members(ensemble.members)`"
                    )
                observation[f"hidden_states_{index}"] = hidden.to(device)
            for name in ("entropies", "margins", "agreement"):
                observation[name] = getattr(state, name).to(device)
            if self.lookahead_tokens:
                for index, mean in enumerate(state.look_ahead(self.lookahead_tokens)):
                    observation[f"lookahead_{index}"] = mean.to(device)
        if self.config.observes_text:
            if self.tokenizer is None:
                raise ConfigError(
                    "the policy reads text but has no tokenizer: build it with `PolicyModel.from_encoder(...)`, or "
                    "`PolicyModel(config, tokenizer)` with the encoder's"
                )
            options: dict[str, Any] = {"max_length": self.config.max_text_tokens, "return_tensors": "pt"}
            with tokenizer_failures(type(self).__name__):
                encoded = self.tokenizer(state.text, padding=True, truncation=True, **options)
            ids, mask = encoded["input_ids"].long(), encoded["attention_mask"].long()
            if not ids.shape[1]:
                ids, mask = ids.new_full((len(ids), 1), self.tokenizer.pad_token_id), mask.new_zeros(len(ids), 1)
            mask[mask.sum(1) == 0, 0] = 1  # an empty text is one padding token
            observation.update(input_ids=ids.to(device), attention_mask=mask.to(device))
        return observation

    def forward(
        self,
        observation: PolicyState | Observation,
        actions: torch.Tensor | None = None,
        sample: bool | Sequence[int] | None = None,
    ) -> PolicyOutput:
        """Weights for every row, and the outputs that training needs.

        Args:
            observation (`PolicyState` or `dict[str, torch.Tensor]`): a state, or the result of `observe`, or the rows
                of several results joined by `stack`.
            actions (`torch.Tensor` of shape `(B, M)`, *optional*): actions drawn before, to get their
                log-probabilities.
            sample (`bool` or `Sequence[int]`, *optional*): whether to draw actions; `None` = only inside
                `exploring()`. With one seed per row (at least 0, below 2**63) the draw of a row is the same in every
                batch.

        Returns:
            `PolicyOutput`: fp32 `weights` `(B, M)` and `state_values` `(B,)`. With actions, drawn or given: `actions`
            `(B, M)`, and `log_probs` and `entropies` in nats, `(B,)` with a joint actor and `(B, M)` with one actor per
            member.

        Raises:
            PolicyError: the number of seeds is not the number of rows; and see `observe`.
            ConfigError: see `observe`.
        """
        seen = self.observe(observation) if isinstance(observation, PolicyState) else observation
        if torch.is_grad_enabled():  # autograd cannot use inference tensors, which `generate` leaves
            seen = {name: tensor.clone() if tensor.is_inference() else tensor for name, tensor in seen.items()}
        pooled = None
        if self.encoder is not None:
            dtype = next(self.heads.parameters()).dtype
            pooled = _mean_states(self.encoder, seen, self.encoder_batch_size).to(dtype)
        head: Actions = self.heads.actions
        kind = self.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            scores, values = self.heads(seen, pooled)
            seeds = None if sample is None or isinstance(sample, bool) else sample
            if seeds is not None and len(seeds) != len(scores):
                raise PolicyError(f"sample has {len(seeds)} seeds for {len(scores)} rows; give one seed per row")
            if actions is None and (self._explores if sample is None else sample):
                actions = head.draw(scores, seeds)
            if actions is None:
                return PolicyOutput(scores.softmax(-1), state_values=values)
            actions = actions.to(scores.device)
            return PolicyOutput(
                head.weights(actions), actions, head.log_probs(scores, actions), values, head.entropies(scores)
            )

    def stack(self, observations: Sequence[Observation]) -> dict[str, torch.Tensor]:
        """Concatenates the rows of several observations; shorter texts are padded."""
        stacked: dict[str, torch.Tensor] = {}
        for name in observations[0]:
            parts = [observation[name] for observation in observations]
            if name in ("input_ids", "attention_mask"):
                width = max(part.shape[1] for part in parts)
                pad = 0 if name == "attention_mask" or self.tokenizer is None else self.tokenizer.pad_token_id
                parts = [nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in parts]
            stacked[name] = torch.cat(parts)
        return stacked

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Score):
            bound = MAX_SCORE_AT_START / module.in_features
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DirichletActions | LogisticNormalActions):
            init.constant_(module.log_scale, module.start)


def _mean_states(encoder: nn.Module, observation: Observation, batch_size: int | None) -> torch.Tensor:
    """The mean of the encoder's last hidden states over each text, `(B, H)`; see `PolicyModel.encoder_batch_size`."""
    ids, mask = observation["input_ids"], observation["attention_mask"]
    if batch_size is None or len(ids) <= batch_size:
        return _mean_state(encoder, ids, mask)
    parts = zip(ids.split(batch_size), mask.split(batch_size), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(_mean_state, encoder, *part, use_reentrant=False) for part in parts])
    return torch.cat([_mean_state(encoder, *part) for part in parts])


def _mean_state(encoder: nn.Module, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    states = encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    kept = mask[..., None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1).clamp(min=1.0)


def _prepared(tokenizer: Any, max_length: int) -> Any:
    """A copy that truncates on the left and pads on the right; called once, because the first call changes settings."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ConfigError("the encoder's tokenizer has no padding token; set its `pad_token`")
    tokenizer([""], padding=True, truncation=True, max_length=max_length)
    return tokenizer


AutoModel.register(PolicyConfig, PolicyModel)
