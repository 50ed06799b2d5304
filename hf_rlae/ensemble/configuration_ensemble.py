"""The config of an ensemble."""

# no `from __future__ import annotations`: the types of fields are checked, and must not be strings

import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from hf_rlae.checks import COUNT, OPTIONAL_COUNT, Bounds, check_choice, check_fields
from hf_rlae.ensemble.draws import SCOPES, UNITS
from hf_rlae.ensemble.faults import ACTIONS
from hf_rlae.ensemble.mixing import has_trait, make_mixing, mixings
from hf_rlae.ensemble.spans import WHOLE_TEXT
from hf_rlae.ensemble.warping import WARPS
from hf_rlae.errors import ConfigError
from hf_rlae.remote_code import ConfigWithCode
from hf_rlae.vocabulary.grain import AUTO_GRAIN, GRAINS, TOKEN
from hf_rlae.vocabulary.round_trip import AUTO, FORMS

if TYPE_CHECKING:
    MixingName: TypeAlias = Literal["linear", "log", "power", "contrast", "guidance"]
else:
    MixingName = str  # mixings that a user registers are accepted too

SELECTIONS = ("span", "prompt")
WEIGHT_UNITS = ("token", "byte")

_BOUNDS = {
    "span_length": COUNT,
    "min_weight": Bounds(0, below=1),
    "max_active_members": OPTIONAL_COUNT,
    "max_readings": COUNT,
    "min_reading": Bounds(0, below=1),
}


@strict
class EnsembleConfig(ConfigWithCode, PreTrainedConfig):
    r"""The settings with which several members decode one text together.

    Args:
        members (`list[str]`): a folder or Hub id per member, for loading.
        revisions (`list[str | None]`, *optional*): the commit, branch or tag of each member. An ensemble has the
            commits that its members were loaded from, so that it is saved with these.
        base_revisions (`list[str | None]`, *optional*): the same of the base model of each member that is an adapter.
        vocabulary_hashes (`list[str | None]`, *optional*): a hash of the text that each member's ids stand for; written
            when the ensemble is saved, and compared when it is loaded. See [`vocabulary_hash`].
        span_length (`int`, defaults to 8): consecutive tokens that share one weight vector. Source: public
            code of RLAE (4 or 8).
        select (`str`, defaults to `"span"`): `"span"` asks the policy for every span. `"prompt"` asks it once per text,
            before any member runs; the weights hold to the end of the text, and `span_length` is not used. With
            `max_active_members=k` the policy picks k members from the prompt: the others are never run in that row, and
            members that are given by name are loaded when they first run. The policy must not observe the members
            (ours).
        mixing (`str`, defaults to `"linear"`): `"linear"` (mixture of probabilities), `"log"` (product of
            experts), `"power"` (between them, see [`PowerMixing`]), `"contrast"` (a strong member minus weak ones, see
            [`ContrastMixing`]) or `"guidance"` (one model with and without its prompt, see [`GuidanceMixing`]).
        mixing_kwargs (`dict`, *optional*): settings of the mixing, such as `{"alpha": 0.1}`: the arguments of its
            class.
        warp (`str`, defaults to `"mixture"`): where temperature, top-k, top-p and the like act in sampling.
            `"mixture"`: on the mixture. `"members"`: on each member's distribution, before they are mixed, as with
            `draw` (ours).
        weight_unit (`str`, defaults to `"token"`): what weights are a share of, if tokenizers differ and tokens are
            written (`grain="token"`). `"token"`: of the choices of tokens. `"byte"`: of the text. A member with long
            tokens writes more of the text with one choice, so its weight is divided by its bytes per token, and the
            weights are renormalised (ours).
        grain (`str`, defaults to `"token"`): if tokenizers differ, the byte strings that are written: `"token"` (the
            tokens of all members), `"character"`, `"byte"`, `"common"` (the tokens that every member has, and bytes),
            or `"auto"`: characters for `mixing="log"`, `"contrast"` and `"guidance"`, else tokens. Spans,
            `max_new_tokens`, `min_new_tokens` and draws count these strings. See "The grain" in docs/concepts.md
            (ours).
        min_weight (`float`, defaults to 0.0): weights below it become 0; a member with weight 0 does not run in the
            span.
        max_active_members (`int`, *optional*): maximum number of members with weight in a span.
        max_readings (`int`, defaults to 4): maximum number of readings that a member keeps per row; twice as many at
            other grains than `"token"` (ours).
        min_reading (`float`, defaults to 1e-4): readings with less probability are dropped (ours).
        draw (`str`, *optional*): sample from one member at a time, which is drawn by the weights for every `"token"`,
            `"word"` or `"span"`; see [`MemberDraws`]. `None` mixes the members' distributions. Source: ME (arXiv
            2605.00419) for tokens; words and spans are ours.
        draw_scope (`str`, defaults to `"row"`): `"row"` draws one member per row, `"batch"` uses one random number for
            all rows.
        normalizes (`str`, *optional*, defaults to `"auto"`): if tokenizers differ, the Unicode form to which the
            prompts of all members are normalised: `"NFC"`, `"NFD"`, `"NFKC"` or `"NFKD"`. `"auto"` is `"NFC"` if a
            member's tokenizer changes text to NFC and in no other way (it is logged), else no form. With `None` such
            a tokenizer is refused.
        on_non_finite (`str`, defaults to `"raise"`): what `generate` does if a member's logits are NaN or infinite:
            `"raise"` a [`NonFiniteError`], or `"drop"` the member out of the row, as if its context had ended (ours).
            On an accelerator, `"drop"` waits for the device at every token.
        on_lost_member (`str`, defaults to `"raise"`): what `generate` does if the worker of a remote member has ended
            or is late: `"raise"` a [`MemberLostError`], or `"drop"` the member, as if its context had ended (ours).
        policy (`dict`, *optional*): name and settings of a policy without files, such as `{"name": "static", "weights":
            [0.7, 0.3]}`, or the `model_type` of a policy with files. An ensemble fills it in; `None` for a policy that
            cannot be saved.
        end_token_ids (`list[list[int] | None]`, *optional*): each member's end ids, if they are set by the user.
        adapter_names (`list[str | None]`, *optional*): each member's adapter.
        sees (`list[bool | None]`, *optional*): whether each member sees images; `None` for text models.
        vocab_size (`int`, defaults to 0): size of the union vocabulary, V; filled in from the members.
        max_position_embeddings (`int`, *optional*): the shortest context of a member; filled in from the members.

    Raises:
        ConfigError: an invalid value; the message names the field.
        StrictDataclassFieldValidationError: a value of the wrong type; the message names the field.
    """

    model_type = "hf_rlae_ensemble"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "EnsembleConfig",
        "AutoModelForCausalLM": "EnsembleForCausalLM",
    }

    members: list[str | None] | None = None
    revisions: list[str | None] | None = None
    base_revisions: list[str | None] | None = None
    vocabulary_hashes: list[str | None] | None = None
    span_length: int = 8
    select: str = "span"
    mixing: MixingName = "linear"
    mixing_kwargs: dict[str, Any] | None = None
    warp: str = "mixture"
    weight_unit: str = "token"
    grain: str = TOKEN
    min_weight: float | int = 0.0
    max_active_members: int | None = None
    max_readings: int = 4
    min_reading: float | int = 1e-4
    draw: str | None = None
    draw_scope: str = "row"
    normalizes: str | None = AUTO
    on_non_finite: str = "raise"
    on_lost_member: str = "raise"
    policy: dict[str, Any] | None = None
    end_token_ids: list[list[int] | None] | None = None
    adapter_names: list[str | None] | None = None
    sees: list[bool | None] | None = None
    vocab_size: int = 0
    max_position_embeddings: int | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    is_decoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_fields(self, _BOUNDS)
        check_choice("select", self.select, SELECTIONS)
        check_choice("mixing", self.mixing, mixings)
        compares = has_trait(make_mixing(self.mixing, self.mixing_kwargs), "compares_members")
        check_choice("warp", self.warp, WARPS)
        check_choice("weight_unit", self.weight_unit, WEIGHT_UNITS)
        check_choice("grain", self.grain, (*GRAINS, AUTO_GRAIN))
        for name in ("policy", "mixing_kwargs"):
            try:
                json.dumps(getattr(self, name))
            except (TypeError, ValueError, RecursionError) as error:
                raise ConfigError(f"{name} must be a dict of JSON values: {error}") from error
        check_choice("draw_scope", self.draw_scope, SCOPES)
        check_choice("on_non_finite", self.on_non_finite, ACTIONS)
        check_choice("on_lost_member", self.on_lost_member, ACTIONS)
        if self.draw is not None:
            check_choice("draw", self.draw, UNITS)
        if self.normalizes is not None:
            check_choice("normalizes", self.normalizes, (AUTO, *FORMS))
        if self.draw is not None and self.mixing != "linear":
            raise ConfigError(
                f"draw={self.draw!r} with mixing={self.mixing!r}: drawing a member and sampling from it is linear "
                "mixing; leave draw out, or set mixing='linear'"
            )
        if self.warp == "members" and compares:
            raise ConfigError(
                f"warp='members' with mixing={self.mixing!r}: top-p and the like give tokens of members the "
                "probability 0, whose logarithm cannot be subtracted; leave warp out"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; `members` and `policy` are left to the model's `from_pretrained`, which replaces them."""
        given = {name: kwargs.pop(name) for name in ("members", "policy") if name in kwargs}
        found: Any = super().from_dict(config_dict, **kwargs)
        return (found[0], {**found[1], **given}) if kwargs.get("return_unused_kwargs") else found

    @property
    def span_length_of_policy(self) -> int | None:
        """`span_length`, or `None` with `select="prompt"`; see `PolicyConfig.span_length`."""
        return None if self.select == "prompt" else self.span_length

    @property
    def tokens_per_weights(self) -> int:
        """Number of tokens that share one weight vector: `span_length`, or `WHOLE_TEXT` with `select="prompt"`."""
        return WHOLE_TEXT if self.select == "prompt" else self.span_length


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
