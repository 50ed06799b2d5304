"""Settings of a learned policy."""

# no `from __future__ import annotations`: the types of fields are checked, and must not be strings

from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from hf_rlae.checks import COUNT, POSITIVE, check_choice, check_fields
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member

OBSERVATIONS = ("members", "text", "both")
ACTORS = ("joint", "per_member")
_COUNTS_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Encoders whose positions begin after the padding token's id, so that they read fewer tokens than they have."""
DISTRIBUTIONS = {"joint": ("dirichlet", "logistic_normal"), "per_member": ("gaussian",)}
"""What actions can be drawn from, for each kind of actor; the first one is the default."""
_BOUNDS = {
    **dict.fromkeys(("num_members", "pooled_tokens", "span_length", "hidden_size", "max_text_tokens"), COUNT),
    **dict.fromkeys(("concentration", "noise"), POSITIVE),
}


@strict
class PolicyConfig(PreTrainedConfig):
    r"""What a learned policy sees, and how it weighs members.

    Args:
        num_members (`int`, defaults to 2): M.
        observation (`str`, defaults to `"members"`): `"members"` (their last hidden states, entropies, margins and
            agreement: almost free), `"text"` (an encoder reads prompt and text so far) or `"both"`.
        actor (`str`, defaults to `"joint"`): `"joint"` (one agent gives all weights, for PPO) or `"per_member"` (one
            agent a member, each with its own score, for MAPPO). The critic is shared. Source: RLAE (arXiv 2506.00439).
        encoder_config (`PreTrainedConfig` or `dict`, *optional*): of the encoder that reads the text; saved inside, so
            that loading a policy never asks for the encoder's own repository. See [`PolicyModel.from_encoder`].
        member_hidden_sizes (`list[int]`, *optional*): width of each member's last hidden states; needed where
            members are observed. See [`PolicyConfig.for_members`].
        pooled_tokens (`int`, defaults to 8): over how many of its newest tokens each member's last hidden states are
            averaged; the mean is observed beside the newest one. 1 for the newest one alone. A confident member's
            newest state says what it is about to write; what it read a few tokens ago, and whether that is any business
            of its own, is in the mean (ours, measured: see the results of the study).
        span_length (`int`, defaults to 8): tokens per span that the policy was made for. Source: public code of
            RLAE (4 or 8).
        hidden_size (`int`, defaults to 128): width of the heads (ours).
        share_trunk (`bool`, defaults to `False`): with `actor="per_member"`, whether the agents share all layers but
            the last (ours).
        max_text_tokens (`int`, defaults to 512): the newest so many tokens of the text are read. Source: public code of
            RLAE.
        distribution (`str`, *optional*): what actions are drawn from while training: `"dirichlet"` (default) or
            `"logistic_normal"` for the joint actor, `"gaussian"` for one actor a member. Without training the weights
            are always the softmax of the scores, which is the mean of the Dirichlet.
        concentration (`float`, defaults to 20.0): what the Dirichlet's parameters sum to at first (ours).
        noise (`float`, defaults to 0.5): standard deviation of drawn scores at first, for the other two (ours).

    Raises:
        ConfigError: a value that cannot be used; the message names the field.
        StrictDataclassFieldValidationError: a value of another type; the message names the field.
    """

    model_type = "hf_rlae_policy"

    num_members: int = 2
    observation: str = "members"
    actor: str = "joint"
    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    member_hidden_sizes: list[int] | None = None
    pooled_tokens: int = 8
    span_length: int = 8
    hidden_size: int = 128
    share_trunk: bool = False
    max_text_tokens: int = 512
    distribution: str | None = None
    concentration: float | int = 20.0
    noise: float | int = 0.5

    sub_configs: ClassVar[dict[str, Any]] = {"encoder_config": AutoConfig}

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, dict):
            self.encoder_config = _config_of(self.encoder_config)
        super().__post_init__(**kwargs)
        check_fields(self, _BOUNDS)
        check_choice("observation", self.observation, OBSERVATIONS)
        check_choice("actor", self.actor, ACTORS)
        if self.distribution is None:
            self.distribution = DISTRIBUTIONS[self.actor][0]
        check_choice(f"actor={self.actor!r} with distribution", self.distribution, DISTRIBUTIONS[self.actor])
        sizes = self.member_hidden_sizes
        if sizes is not None and (len(sizes) != self.num_members or min(sizes, default=1) < 1):
            raise ConfigError(
                f"member_hidden_sizes={sizes} for num_members={self.num_members}: give one width a member, each at "
                "least 1, or let `PolicyConfig.for_members(members)` fill them in"
            )
        self._check_encoder()

    def _check_encoder(self) -> None:
        if not isinstance(self.encoder_config, PreTrainedConfig):
            return
        kind = self.encoder_config.model_type
        if self.encoder_config.is_encoder_decoder:
            raise ConfigError(
                f"encoder_config: {kind} is an encoder-decoder model; take an encoder such as DeBERTa or ModernBERT"
            )
        limit = readable_tokens(self.encoder_config)
        if limit is not None and limit < self.max_text_tokens:
            raise ConfigError(
                f"max_text_tokens={self.max_text_tokens}: the encoder ({kind}) reads at most {limit} tokens; set "
                f"max_text_tokens={limit}"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. Policies that were saved before there was `pooled_tokens` see the newest token alone."""
        return super().from_dict({"pooled_tokens": 1, **config_dict}, **kwargs)

    @property
    def observes_members(self) -> bool:
        """Whether the members' hidden states and distributions are looked at."""
        return self.observation != "text"

    @property
    def observes_text(self) -> bool:
        """Whether the text is read."""
        return self.observation != "members"

    @classmethod
    def for_members(cls, members: Sequence[Any], **settings: Any) -> "PolicyConfig":
        """A config with the number and the widths of some members filled in.

        Args:
            members: `Member` objects, as in `ensemble.members`, or `(model, tokenizer)` pairs.
            settings: the other fields.

        Raises:
            ConfigError: no members, something else than members, or a field that cannot be used.

        Example:

        >>> PolicyConfig.for_members(ensemble.members, actor="per_member")  # doctest: +SKIP
        """
        if isinstance(members, (str, bytes)) or not isinstance(members, Sequence) or not members:
            raise ConfigError("members must be a list with at least one Member; give `ensemble.members`")
        sizes = []
        for index, given in enumerate(members):
            if isinstance(given, (tuple, list)) and len(given) == 2:
                given = Member(*given)
            if not isinstance(given, Member):
                raise ConfigError(
                    f"members[{index}] is a {type(given).__name__}, whose width is not known; give `ensemble.members`, "
                    "or (model, tokenizer) pairs"
                )
            sizes.append(given.hidden_size)
        return cls(**{"num_members": len(sizes), "member_hidden_sizes": sizes, **settings})


def readable_tokens(encoder_config: PreTrainedConfig) -> int | None:
    """How many tokens an encoder can read at once; `None` where its config does not say."""
    limit = getattr(encoder_config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if encoder_config.model_type in _COUNTS_AFTER_PADDING:
        limit -= int(encoder_config.pad_token_id or 0) + 1
    return limit


def _config_of(given: dict[str, Any]) -> PreTrainedConfig:
    fields = dict(given)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise ConfigError(
            "encoder_config has no model_type, so it cannot be told which encoder it is of; give the config object, "
            "such as AutoConfig.from_pretrained(...), or its `to_dict()`"
        )
    try:
        return AutoConfig.for_model(kind, **fields)
    except ValueError as error:
        raise ConfigError(f"encoder_config: transformers knows no model_type={kind!r}; {error}") from error


AutoConfig.register(PolicyConfig.model_type, PolicyConfig)
