"""`RLAEConfig`: how a policy is trained."""

import logging
from dataclasses import dataclass, fields
from typing import Any, Literal

from trl.trainer.base_config import _BaseConfig

from hf_rlae.checks import (
    COUNT,
    NOT_NEGATIVE,
    OPTIONAL_COUNT,
    OPTIONAL_POSITIVE,
    POSITIVE,
    SHARE,
    Bounds,
    check_choice,
    check_fields,
    check_list,
)
from hf_rlae.errors import ConfigError
from hf_rlae.objectives import ObjectiveSettings, objectives
from hf_rlae.objectives.advantages import SCALES
from hf_rlae.objectives.multi_objective import AGGREGATIONS
from hf_rlae.objectives.objective import ObjectiveName
from hf_rlae.trainers.constraints import ConstraintArguments
from hf_rlae.trainers.defaults import option, set_defaults
from hf_rlae.trainers.prompt_datasets import check_template_kwargs
from hf_rlae.trainers.rlae.generation_options import FIELDS, SUPPORTED, check_names

logger = logging.getLogger(__name__)

ADVANTAGES = ("gae", "group_relative")

_COUNTS = (
    "num_generations",
    "num_generations_eval",
    "max_completion_length",
    "num_iterations",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)
_OPTIONAL_COUNTS = (
    "span_length",
    "generation_batch_size",
    "rollout_batch_size",
    "encoder_batch_size",
    "steps_per_generation",
    "num_completions_to_print",
)
_BOUNDS = {
    **dict.fromkeys(_COUNTS, COUNT),
    **dict.fromkeys(_OPTIONAL_COUNTS, OPTIONAL_COUNT),
    "gamma": SHARE,
    "lam": SHARE,
    "top_p": Bounds(above=0, most=1),
    "top_k": Bounds(0, is_whole=True, note="0 keeps all tokens"),
    "temperature": POSITIVE,
    "target_kl": OPTIONAL_POSITIVE,
    "reward_timeout": Bounds(0, note="0 is no limit"),
}


@dataclass
class RLAEConfig(ConstraintArguments, _BaseConfig):
    r"""Arguments of [`RLAETrainer`]; all others are those of [`ConstraintArguments`] and
    `transformers.TrainingArguments`.

    One *rollout* has `generation_batch_size` completions, `num_generations` per prompt. An update takes
    `per_device_train_batch_size * gradient_accumulation_steps` of them per process. Updates go through the rollout
    `num_iterations` times, each time in a new order; then the next rollout begins.

    Args:
        objective (`str`, defaults to `"ppo"`): `"ppo"` (for an actor of kind `"joint"`), `"mappo"` (`"per_member"`),
            `"mixture"` (either), or any other registered objective. Source: RLAE (arXiv 2506.00439) for the first two;
            the third is ours.
        span_length (`int`, *optional*): tokens that share one weight vector; `None` keeps the ensemble's. Source:
            public code of RLAE, 4 or 8.
        num_generations (`int`, defaults to 8): G, completions per prompt.
        num_generations_eval (`int`, defaults to 1): completions per prompt in evaluations.
        max_completion_length (`int`, defaults to 256): the largest number of tokens of a completion.
        generation_batch_size (`int`, *optional*): completions of one rollout, over all processes.
        steps_per_generation (`int`, *optional*): the same, in micro-batches; `None` = `gradient_accumulation_steps`.
        rollout_batch_size (`int`, *optional*): completions that a process generates at a time, in rollouts and
            evaluations; `None` = all of its own. A smaller number needs less memory, above all for the members' caches
            of keys and values, and more time. The completions do not depend on it.
        num_iterations (`int`, defaults to 3): passes over each rollout. Source: public code of RLAE.
        temperature (`float`, defaults to 1.0), top_p (`float`, defaults to 1.0), top_k (`int`, defaults to 0): of the
            mixture that completions are sampled from. With `"mixture"` any other value biases the ratios.
        generation_kwargs (`dict[str, Any]` or `str`, *optional*): further options of `generate`, in rollouts and
            evaluations: `stop_strings`, `min_new_tokens`, `repetition_penalty`, `no_repeat_ngram_size`,
            `bad_words_ids`, `suppress_tokens`, `begin_suppress_tokens`, `sequence_bias`, `forced_eos_token_id`,
            `exponential_decay_length_penalty`, `min_p`, `top_h`, `typical_p`, `epsilon_cutoff` and `eta_cutoff`. Ids
            are those of `ensemble.tokenizer`. As in TRL, `temperature`, `top_p`, `top_k` and `max_new_tokens` override
            the fields. A string is read as JSON.
        chat_template_kwargs (`dict[str, Any]` or `str`, *optional*): further arguments of each member's chat template,
            such as `enable_thinking`. A string is read as JSON.
        eval_do_sample (`bool`, defaults to `False`): whether evaluations sample; otherwise they are greedy. The weights
            of evaluations are always the deterministic ones.
        advantages (`str`, *optional*): `"gae"` (over spans, with the critic) or `"group_relative"` (relative to the
            other completions of the prompt, without a critic); `None` takes the default of the objective.
        gamma (`float`, defaults to 1.0), lam (`float`, defaults to 1.0): of GAE, per span (ours). A completion has one
            reward, at its end, and with 1.0 all of its spans receive it in full: the advantage is the reward minus the
            critic's value, at any span length and any length of completions. Below 1.0 the share of early spans
            depends on the number of spans: the 0.99 and 0.95 of RLAE's public code leave `(0.99 * 0.95) ** 70 = 0.014`
            of a reward to a span that is 70 spans from the end.
        whiten_advantages (`bool`, defaults to `True`): whether the advantages of GAE have mean 0 and deviation 1 in
            each rollout (ours).
        scale_rewards (`str`, defaults to `"group"`): what group-relative advantages are divided by: `"group"`,
            `"batch"` or `"none"`. TRL's word.
        epsilon (`float`, defaults to 0.2), epsilon_high (`float`, *optional*): clipping of ratios. Source: public code
            of RLAE.
        value_epsilon (`float`, *optional*, defaults to 0.2): clipping of the critic, in units of the running standard
            deviation of the rewards, by which the critic's targets are normalised (ours).
        value_coef (`float`, defaults to 0.5): weight of the critic's loss. Source: public code of RLAE.
        entropy_coef (`float`, *optional*): weight of the entropy bonus; `None` = 0.01 (source: public code of RLAE),
            and 0.03 for `"mixture"` (ours).
        reduction (`str`, defaults to `"token"`): `"token"` or `"sequence"`; see [`ObjectiveSettings`].
        target_kl (`float`, *optional*): once the estimated KL of an update exceeds it, the remaining updates of the
            rollout are skipped.
        encoder_batch_size (`int`, *optional*): texts, one per span, that a policy's encoder reads at a time; `None` =
            all of a micro-batch. A smaller number needs less memory in updates, because the activations of one part at
            a time are kept, and more time, because they are computed twice. Gradients are the same, up to rounding.
        observation_dtype (`str`, *optional*): `"bfloat16"` keeps members' hidden states in bfloat16 in rollouts, which
            halves the size of rollouts if members are in float32. In rollouts the policy then observes the rounded
            states. `None` keeps the members' own dtypes.
        reward_weights (`list[float]`, *optional*): one per reward function; `None` = all 1.
        multi_objective_aggregation (`str`, defaults to `"sum_then_normalize"`): how several rewards become one.
            `"normalize_then_sum"` gives each the mean 0 and the deviation 1 before their weighted sum: among the
            completions of a prompt with group-relative advantages, which are then standardised over the rollout
            (`scale_rewards` is not used), and over the rollout with GAE. TRL's words; source: GDPO (arXiv 2601.05242).
        member_cost (`list[float]` or `float`, *optional*): the price of one member-token: one completion token for
            which a member runs, because it has weight or the policy observes it (see `count_member_tokens`). One number
            for all members, or one per member. The policy learns from the reward less the price; logged rewards and
            evaluations do not contain it (ours).
        reward_timeout (`float`, defaults to 60.0): seconds that a reward function may take; 0 for no limit.
        disable_dropout (`bool`, defaults to `True`): whether the policy's dropout is switched off. With dropout the
            ratios of an unchanged policy are not 1.
        shuffle_dataset (`bool`, defaults to `True`): whether each epoch has a new order of prompts.
        log_completions (`bool`, defaults to `False`): whether completions, rewards and weights are printed and saved as
            tables.
        num_completions_to_print (`int`, *optional*): how many of them are printed; `None` for all.

    Raises:
        ConfigError: a value that cannot be used; the message names the field.
    """

    _VALID_DICT_FIELDS = [*_BaseConfig._VALID_DICT_FIELDS, "generation_kwargs", "chat_template_kwargs"]  # noqa: RUF012

    learning_rate: float = option(default=1e-4, help="Initial learning rate. Source: public code of RLAE.")
    max_grad_norm: float = option(default=1.0, help="Maximum norm of gradients. Source: public code of RLAE.")
    gradient_checkpointing: bool | None = option(
        default=None, help="Whether the backward pass recomputes activations. Off if not set."
    )  # type: ignore[assignment]
    remove_unused_columns: bool = option(default=False, help="Whether to drop columns that no reward function names.")
    dataloader_pin_memory: bool = option(default=False, help="Off: batches are lists of examples, not tensors.")
    objective: ObjectiveName = option(default="ppo", help="ppo, mappo, mixture, or another registered objective.")
    span_length: int | None = option(default=None, help="Tokens per weight vector; None keeps the ensemble's.")
    num_generations: int = option(default=8, help="Completions per prompt.")
    num_generations_eval: int = option(default=1, help="Completions per prompt in evaluations.")
    max_completion_length: int = option(default=256, help="Maximum number of tokens of a completion.")
    generation_batch_size: int | None = option(default=None, help="Completions of one rollout, over all processes.")
    steps_per_generation: int | None = option(default=None, help="Micro-batches per rollout; None: as accumulated.")
    rollout_batch_size: int | None = option(default=None, help="Completions that a process generates at a time.")
    num_iterations: int = option(default=3, help="Passes over each rollout. Source: public code of RLAE.")
    temperature: float = option(default=1.0, help="Temperature of the mixture in rollouts.")
    top_p: float = option(default=1.0, help="Nucleus sampling from the mixture; 1 keeps all tokens.")
    top_k: int = option(default=0, help="Top-k sampling from the mixture; 0 keeps all tokens.")
    generation_kwargs: dict | str | None = option(  # type: ignore[type-arg]  # for HfArgumentParser
        default=None, help="Further options of generate, such as stop_strings; they override the fields."
    )
    chat_template_kwargs: dict | str | None = option(  # type: ignore[type-arg]
        default=None, help="Further arguments of each member's chat template."
    )
    eval_do_sample: bool = option(default=False, help="Whether evaluations sample.")
    advantages: Literal["gae", "group_relative"] | None = option(
        default=None, help="None takes the objective's default."
    )
    gamma: float = option(default=1.0, help="Discount per span, for GAE. Source: ours.")
    lam: float = option(default=1.0, help="Lambda of GAE. Source: ours.")
    whiten_advantages: bool = option(default=True, help="Whether to standardise GAE's advantages per rollout.")
    scale_rewards: Literal["group", "batch", "none"] = option(
        default="group", help="Divisor of group-relative advantages."
    )
    epsilon: float = option(default=0.2, help="Ratios are clipped at 1 - epsilon and 1 + epsilon.")
    epsilon_high: float | None = option(default=None, help="Upper clipping bound, if it differs.")
    value_epsilon: float | None = option(default=0.2, help="Clipping of the normalised critic; None for none.")
    value_coef: float = option(default=0.5, help="Weight of the critic's loss.")
    entropy_coef: float | None = option(default=None, help="Weight of the entropy bonus; None: 0.01, mixture 0.03.")
    reduction: Literal["token", "sequence"] = option(default="token", help="What counts the same in the policy's loss.")
    target_kl: float | None = option(default=None, help="KL above which the rest of a rollout is skipped.")
    encoder_batch_size: int | None = option(default=None, help="Texts that a policy's encoder reads at a time.")
    observation_dtype: Literal["bfloat16"] | None = option(
        default=None, help="Dtype of hidden states in rollouts; None keeps the members' own."
    )
    reward_weights: list[float] | None = option(default=None, help="One per reward function.")
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = option(
        default="sum_then_normalize", help="Whether rewards are brought to one scale before they are summed."
    )
    member_cost: list[float] | None = option(
        default=None, help="Price per token that a member runs, one or per member."
    )
    reward_timeout: float = option(default=60.0, help="Seconds that a reward function may take; 0 for no limit.")
    disable_dropout: bool = option(default=True, help="Whether the policy's dropout is switched off.")
    shuffle_dataset: bool = option(default=True, help="Whether each epoch has a new order of prompts.")
    log_completions: bool = option(default=False, help="Whether to print and save tables of completions.")
    num_completions_to_print: int | None = option(default=None, help="How many completions are printed.")

    def __post_init__(self) -> None:
        set_defaults(self)
        super().__post_init__()
        self._read_generation_kwargs()
        check_template_kwargs(self.chat_template_kwargs)
        check_choice("objective", self.objective, objectives)
        if self.advantages is None:
            self.advantages = objectives[self.objective].default_advantages  # type: ignore[assignment]
        check_choice("advantages", self.advantages, ADVANTAGES)
        check_choice("scale_rewards", self.scale_rewards, SCALES)
        if self.observation_dtype is not None:
            check_choice("observation_dtype", self.observation_dtype, ("bfloat16",))
        check_choice("multi_objective_aggregation", self.multi_objective_aggregation, AGGREGATIONS)
        check_fields(self, _BOUNDS)
        check_list("reward_weights", self.reward_weights, Bounds())
        if isinstance(self.member_cost, int | float) and not isinstance(self.member_cost, bool):
            self.member_cost = [float(self.member_cost)]
        check_list("member_cost", self.member_cost, NOT_NEGATIVE)
        self.objective_settings()  # checks the fields of the objective
        self._resolve_batches()

    def objective_settings(self) -> ObjectiveSettings:
        """The settings of the objective, with its default entropy bonus where `entropy_coef` is `None`."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(ObjectiveSettings)}
        if self.entropy_coef is None:
            given["entropy_coef"] = objectives[self.objective].defaults.entropy_coef
        return ObjectiveSettings(**given)

    @property
    def generation_options(self) -> dict[str, Any]:
        """The options of `generate` that change the probabilities of tokens in rollouts."""
        given: Any = self.generation_kwargs or {}
        others = {name: given[name] for name in SUPPORTED if given.get(name) is not None}
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, **others}

    @property
    def stop_strings(self) -> Any:
        """The strings that end a completion, or `None`."""
        given: Any = self.generation_kwargs or {}
        return given.get("stop_strings")

    def _read_generation_kwargs(self) -> None:
        """Checks them, and gives the fields of the same meaning their values, as TRL does."""
        given: Any = self.generation_kwargs
        check_names(given)
        for name, field in FIELDS.items():
            if (given or {}).get(name) is not None:
                setattr(self, field, given[name])

    def _resolve_batches(self) -> None:
        """Fills in the size of a rollout, and checks that updates, processes and groups divide it evenly."""
        micro_batch = self.per_device_train_batch_size * self.world_size
        size, steps = self.generation_batch_size, self.steps_per_generation
        if size is not None and steps is not None and size != steps * micro_batch:  # equal in a copy of a config
            raise ConfigError(
                f"generation_batch_size={size} and steps_per_generation={steps}, which are {steps * micro_batch} "
                "completions; both are the size of a rollout, give one of them"
            )
        if self.generation_batch_size is None:
            self.generation_batch_size = micro_batch * (self.steps_per_generation or self.gradient_accumulation_steps)
        size = self.generation_batch_size
        self.steps_per_generation = steps = size // micro_batch
        eval_batch = self.per_device_eval_batch_size * self.world_size
        updates = "gradient_accumulation_steps, so that an update uses one rollout"
        for name, value, divisor, meaning in (
            ("generation_batch_size", size, micro_batch, "per_device_train_batch_size * processes"),
            ("steps_per_generation", steps, self.gradient_accumulation_steps, updates),
            ("generation_batch_size", size, self.num_generations, "num_generations"),
            ("per_device_eval_batch_size * processes", eval_batch, self.num_generations_eval, "num_generations_eval"),
        ):
            if value % divisor:
                raise ConfigError(f"{name}={value}: it must be a multiple of {divisor} ({meaning})")
        if self.advantages == "group_relative" and self.num_generations < 2:
            raise ConfigError(
                f"num_generations={self.num_generations} with group-relative advantages, which compare a completion "
                "with the others of its prompt; give at least 2, or advantages='gae'"
            )
        if self.num_generations_eval > 1 and not self.eval_do_sample:
            logger.warning(
                "num_generations_eval=%d without eval_do_sample=True writes the same greedy completion several times",
                self.num_generations_eval,
            )
