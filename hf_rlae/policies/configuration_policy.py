"""The config of a learned policy."""

# no `from __future__ import annotations`: the types of fields are checked, and must not be strings

from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from hf_rlae.checks import COUNT, OPTIONAL_COUNT, POSITIVE, Bounds, check_choice, check_fields
from hf_rlae.errors import ConfigError
from hf_rlae.members import Member
from hf_rlae.remote_code import ConfigWithCode

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
"""Encoders whose positions start after the padding token's id; they read fewer tokens than they have positions."""
ACTIONS = {"joint": ("categorical", "dirichlet", "logistic_normal"), "per_member": ("categorical", "logistic_normal")}
"""The kinds of actions for each kind of actor."""
_DISTRIBUTIONS = {"gaussian": "logistic_normal"}
"""Former values of `distribution`, the former name of `action`, that have another name now."""
MEMBER_FIELDS = ("id", "commit", "vocabulary_hash")
"""What a policy knows of a member that it was trained with."""
_BOUNDS = {
    **dict.fromkeys(("num_members", "pooled_tokens", "hidden_size", "max_text_tokens"), COUNT),
    "span_length": OPTIONAL_COUNT,
    "lookahead_tokens": Bounds(0, is_whole=True, note="0 is for no look-ahead"),
    **dict.fromkeys(("concentration", "noise"), POSITIVE),
}


@strict
class PolicyConfig(ConfigWithCode, PreTrainedConfig):
    r"""What a learned policy observes, and how it computes weights.

    Args:
        num_members (`int`, defaults to 2): number of members, M.
        observation (`str`, defaults to `"members"`): `"members"` (their last hidden states, entropies, margins and
            agreement, at almost no extra cost), `"text"` (an encoder reads the prompt and the text so far) or `"both"`.
        actor (`str`, defaults to `"joint"`): `"joint"` (one agent gives all weights, for PPO) or `"per_member"` (one
            agent per member, each with its own score, for MAPPO). The critic is shared. Source: RLAE (arXiv
            2506.00439).
        encoder_config (`PreTrainedConfig` or `dict`, *optional*): the config of the encoder that reads the text. It is
            saved with this config, so that loading a policy does not need the encoder's repository. See
            [`PolicyModel.from_encoder`].
        member_hidden_sizes (`list[int]`, *optional*): width of each member's last hidden states; required if members
            are observed. See [`PolicyConfig.for_members`].
        pooled_tokens (`int`, defaults to 8): number of newest tokens over which each member's last hidden states are
            averaged. The mean is observed in addition to the newest hidden state; 1 for the newest one alone. The
            newest state of a confident member mostly predicts its next token; the mean also has what it read before,
            and so whether the text is in its domain (ours, measured: see the results of the study).
        lookahead_tokens (`int`, defaults to 0): number of tokens with which each member continues the text by itself,
            greedily, when a span begins; the mean of its hidden states over them is observed, too. 0 for none. It takes
            as many forward passes of each member per span (ours, measured: docs/rlae_trainer.md, "Long spans").
        span_length (`int`, *optional*, defaults to 8): tokens per span for which the policy is made; `None` for a
            policy that is asked once per text (`EnsembleConfig(select="prompt")`). Source: public code of RLAE (4 or
            8).
        hidden_size (`int`, defaults to 128): width of the heads (ours).
        share_trunk (`bool`, defaults to `False`): with `actor="per_member"`, whether the agents share all layers except
            the last (ours).
        max_text_tokens (`int`, defaults to 512): number of newest tokens of the text that the encoder reads. Source:
            public code of RLAE.
        action (`str`, defaults to `"categorical"`): what is drawn for a span in training. `"categorical"`: one member,
            whose weight is 1 (ours). `"dirichlet"` (joint actor only): weights. Source: public code of RLAE.
            `"logistic_normal"`: scores with normal noise (ours). Outside of training the weights are the softmax of the
            scores, which is the mean of the drawn weights for the first two. Configs that were saved with
            `distribution`, the former name, are read.
        concentration (`float`, defaults to 20.0): initial sum of the Dirichlet's parameters (ours).
        noise (`float`, defaults to 0.5): initial standard deviation of drawn scores, for `"logistic_normal"` (ours).
        members (`list[dict]`, *optional*): the members that the policy was trained with, written by `RLAETrainer`, and
            with an ensemble that is saved. Each has `id` (a Hub id, or the name of a folder), `commit` and
            `vocabulary_hash` (see `hf_rlae.vocabulary.vocabulary_hash`); values that are not known are `None`.

    Raises:
        ConfigError: an invalid value; the message names the field.
        StrictDataclassFieldValidationError: a value of the wrong type; the message names the field.
    """

    model_type = "hf_rlae_policy"
    auto_classes: ClassVar[dict[str, str]] = {"AutoConfig": "PolicyConfig", "AutoModel": "PolicyModel"}

    num_members: int = 2
    observation: str = "members"
    actor: str = "joint"
    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    member_hidden_sizes: list[int] | None = None
    pooled_tokens: int = 8
    lookahead_tokens: int = 0
    span_length: int | None = 8
    hidden_size: int = 128
    share_trunk: bool = False
    max_text_tokens: int = 512
    action: str = "categorical"
    concentration: float | int = 20.0
    noise: float | int = 0.5
    members: list[dict[str, Any]] | None = None

    sub_configs: ClassVar[dict[str, Any]] = {"encoder_config": AutoConfig}

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, dict):
            self.encoder_config = _config_of(self.encoder_config)
        former = kwargs.pop("distribution", None)
        if former is not None:
            self.action = _DISTRIBUTIONS.get(former, former)
        super().__post_init__(**kwargs)
        check_fields(self, _BOUNDS)
        check_choice("observation", self.observation, OBSERVATIONS)
        check_choice("actor", self.actor, ACTORS)
        check_choice(f"actor={self.actor!r} with action", self.action, ACTIONS[self.actor])
        if self.lookahead_tokens and not self.observes_members:
            raise ConfigError(
                f"lookahead_tokens={self.lookahead_tokens} with observation={self.observation!r}: it is the members "
                "that look ahead; give observation='members' or 'both', or lookahead_tokens=0"
            )
        sizes = self.member_hidden_sizes
        if sizes is not None and (len(sizes) != self.num_members or min(sizes, default=1) < 1):
            raise ConfigError(
                f"member_hidden_sizes={sizes} for num_members={self.num_members}: give one width per member, each at "
                "least 1, or use `PolicyConfig.for_members(members)`, which fills them in"
            )
        self._check_members()
        self._check_encoder()

    def _check_members(self) -> None:
        if self.members is None:
            return
        values = [entry.get(name) for entry in self.members for name in MEMBER_FIELDS]
        if len(self.members) != self.num_members or not all(isinstance(value, str | None) for value in values):
            raise ConfigError(
                f"members={self.members!r:.200} for num_members={self.num_members}: give one dict per member with "
                f"{', '.join(MEMBER_FIELDS)}, each a string or None, or leave members out"
            )

    def _check_encoder(self) -> None:
        if not isinstance(self.encoder_config, PreTrainedConfig):
            return
        kind = self.encoder_config.model_type
        if self.encoder_config.is_encoder_decoder:
            raise ConfigError(
                f"encoder_config: {kind} is an encoder-decoder model; use an encoder such as DeBERTa or ModernBERT"
            )
        limit = readable_tokens(self.encoder_config)
        if limit is not None and limit < self.max_text_tokens:
            raise ConfigError(
                f"max_text_tokens={self.max_text_tokens}: the encoder ({kind}) reads at most {limit} tokens; set "
                f"max_text_tokens={limit}"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. Policies that were saved before `pooled_tokens` existed observe the newest token only."""
        return super().from_dict({"pooled_tokens": 1, **config_dict}, **kwargs)

    @property
    def observes_members(self) -> bool:
        """Whether the policy observes the members' hidden states and distributions."""
        return self.observation != "text"

    @property
    def observes_text(self) -> bool:
        """Whether the policy reads the text."""
        return self.observation != "members"

    @classmethod
    def for_members(cls, members: Sequence[Any], **settings: Any) -> "PolicyConfig":
        """A config with the number of the given members and the widths of their hidden states.

        Args:
            members: `Member` objects, as in `ensemble.members`, or `(model, tokenizer)` pairs.
            settings: the other fields.

        Returns:
            `PolicyConfig`: the config.

        Raises:
            ConfigError: no members, objects that are not members, or an invalid field.

        Example:

        >>> PolicyConfig.for_members(ensemble.members, actor="per_member")  # doctest: +SKIP
        """
        if isinstance(members, (str, bytes)) or not isinstance(members, Sequence) or not members:
            raise ConfigError(
                f"members must be a list with at least one Member, got {members!r:.80}; give `ensemble.members`"
            )
        sizes = []
        for index, given in enumerate(members):
            if isinstance(given, (tuple, list)) and len(given) == 2:
                given = Member(*given)
            if not isinstance(given, Member):
                raise ConfigError(
                    f"members[{index}] is a {type(given).__name__}, not a Member; give `ensemble.members`, or (model, "
                    "tokenizer) pairs"
                )
            sizes.append(given.hidden_size)
        return cls(**{"num_members": len(sizes), "member_hidden_sizes": sizes, **settings})


def readable_tokens(encoder_config: PreTrainedConfig) -> int | None:
    """The maximum number of tokens of an encoder; `None` if its config does not have it."""
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
            "encoder_config has no model_type, so the class of the encoder is unknown; give the config object, such as "
            "AutoConfig.from_pretrained(...), or its `to_dict()`"
        )
    if str(kind).startswith("hf_rlae"):
        raise ConfigError(f"encoder_config has model_type={kind!r}; give the config of a text encoder")
    try:
        return AutoConfig.for_model(kind, **fields)
    except ValueError as error:
        raise ConfigError(f"encoder_config: transformers knows no model_type={kind!r}; {error}") from error


AutoConfig.register(PolicyConfig.model_type, PolicyConfig)
