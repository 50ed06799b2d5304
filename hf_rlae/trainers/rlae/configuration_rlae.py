"""`RLAEConfig`: how a policy is trained."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from trl.trainer.base_config import _BaseConfig

from hf_rlae.errors import ConfigError, nearest
from hf_rlae.objectives import ObjectiveSettings, objectives
from hf_rlae.objectives.advantages import SCALES
from hf_rlae.trainers.precision import default_bf16

logger = logging.getLogger(__name__)

ADVANTAGES = ("gae", "group_relative")
_OPTIONAL_COUNTS = ("span_length", "generation_batch_size", "steps_per_generation", "num_completions_to_print")
_COUNTS = (
    *_OPTIONAL_COUNTS,
    "num_generations",
    "num_generations_eval",
    "max_completion_length",
    "num_iterations",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)


@dataclass
class RLAEConfig(_BaseConfig):
    r"""Arguments of [`RLAETrainer`]; those not listed here are `transformers.TrainingArguments`'.

    One *rollout* writes `generation_batch_size` texts, `num_generations` for each prompt. An update takes
    `per_device_train_batch_size * gradient_accumulation_steps` of them a process; `num_iterations` times over all of
    them, in a new order each time, and the next rollout begins.

    Args:
        objective (`str`, defaults to `"ppo"`): `"ppo"` (an actor of kind `"joint"`), `"mappo"` (`"per_member"`) or
            `"mixture"` (either). Source: RLAE (arXiv 2506.00439) for the first two; the third is ours.
        span_length (`int`, *optional*): tokens that share one weight vector; `None` keeps the ensemble's. Source:
            public code of RLAE, 4 or 8.
        num_generations (`int`, defaults to 8): G, texts per prompt.
        num_generations_eval (`int`, defaults to 1): texts per prompt in evaluations.
        max_completion_length (`int`, defaults to 256): tokens of a text at most.
        generation_batch_size (`int`, *optional*): texts of one rollout, over all processes.
        steps_per_generation (`int`, *optional*): the same, in micro-batches; `None` = `gradient_accumulation_steps`.
        num_iterations (`int`, defaults to 3): how many times the texts of a rollout are gone through. Source: public
            code of RLAE.
        temperature (`float`, defaults to 1.0), top_p (`float`, defaults to 1.0), top_k (`int`, defaults to 0): of the
            mixture that texts are sampled from. With `"mixture"` anything but these defaults biases the ratios.
        eval_do_sample (`bool`, defaults to `False`): whether evaluations sample; else they write the likeliest tokens.
            The weights of evaluations are always the deterministic ones.
        advantages (`str`, *optional*): `"gae"` (over spans, with the critic) or `"group_relative"` (against the other
            texts of the prompt, no critic); `None` = what the objective prefers.
        gamma (`float`, defaults to 0.99), lam (`float`, defaults to 0.95): of GAE, per span. Source: public code of
            RLAE.
        whiten_advantages (`bool`, defaults to `True`): whether GAE's advantages get mean 0 and deviation 1 in each
            rollout (ours).
        scale_rewards (`str`, defaults to `"group"`): what group-relative advantages are divided by: `"group"`,
            `"batch"` or `"none"`. TRL's word.
        epsilon (`float`, defaults to 0.2), epsilon_high (`float`, *optional*): clipping of ratios. Source: public code
            of RLAE.
        value_epsilon (`float`, *optional*, defaults to 0.2): clipping of the critic (ours, for rewards from 0 to 1).
        value_coef (`float`, defaults to 0.5): weight of the critic's loss. Source: public code of RLAE.
        entropy_coef (`float`, *optional*): weight of the entropy bonus; `None` = 0.01 (source: public code of RLAE),
            and 0.03 for `"mixture"` (ours).
        reduction (`str`, defaults to `"token"`): see [`ObjectiveSettings`].
        target_kl (`float`, *optional*): once an update's estimate of the KL is larger, the rest of the rollout's
            updates is left out.
        reward_weights (`list[float]`, *optional*): one a reward function; `None` = all 1.
        reward_timeout (`float`, defaults to 60.0): seconds that a reward function may take; 0 for no limit.
        disable_dropout (`bool`, defaults to `True`): whether the policy's dropout is switched off. With dropout the
            ratios of an unchanged policy are not 1.
        shuffle_dataset (`bool`, defaults to `True`): whether prompts come in a new order each epoch.
        log_completions (`bool`, defaults to `False`): whether texts, rewards and weights are shown and kept as tables.
        num_completions_to_print (`int`, *optional*): how many of them; `None` for all.

    Raises:
        ConfigError: a value that cannot be used; the message names the field.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate. Source: public code of RLAE."})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Gradients are clipped to this norm. Source: public code of RLAE."}
    )
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Whether activations are computed anew in the backward pass. Off if not set."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Whether columns that no reward function needs are dropped."}
    )
    dataloader_pin_memory: bool = field(
        default=False, metadata={"help": "Batches are lists of examples, which have nothing to pin."}
    )
    objective: str = field(default="ppo", metadata={"help": "ppo, mappo or mixture."})
    span_length: int | None = field(
        default=None, metadata={"help": "Tokens that share one weight vector; None keeps the ensemble's."}
    )
    num_generations: int = field(default=8, metadata={"help": "Texts per prompt."})
    num_generations_eval: int = field(default=1, metadata={"help": "Texts per prompt in evaluations."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of a text at most."})
    generation_batch_size: int | None = field(
        default=None, metadata={"help": "Texts of one rollout, over all processes."}
    )
    steps_per_generation: int | None = field(
        default=None, metadata={"help": "Micro-batches of one rollout; None takes gradient_accumulation_steps."}
    )
    num_iterations: int = field(
        default=3, metadata={"help": "How many times a rollout is gone through. Source: public code of RLAE."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Of the mixture that texts are sampled from."})
    top_p: float = field(default=1.0, metadata={"help": "Of the mixture that texts are sampled from; 1 for all."})
    top_k: int = field(default=0, metadata={"help": "Of the mixture that texts are sampled from; 0 for all."})
    eval_do_sample: bool = field(default=False, metadata={"help": "Whether evaluations sample."})
    advantages: str | None = field(
        default=None, metadata={"help": "gae or group_relative; None takes what the objective prefers."}
    )
    gamma: float = field(default=0.99, metadata={"help": "Discount per span, for GAE. Source: public code of RLAE."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE. Source: public code of RLAE."})
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Whether GAE's advantages are standardised in each rollout."}
    )
    scale_rewards: str = field(
        default="group", metadata={"help": "What group-relative advantages are divided by: group, batch or none."}
    )
    epsilon: float = field(default=0.2, metadata={"help": "Ratios are clipped at 1 - epsilon and 1 + epsilon."})
    epsilon_high: float | None = field(default=None, metadata={"help": "The upper bound, if it is another one."})
    value_epsilon: float | None = field(default=0.2, metadata={"help": "Clipping of the critic; None for none."})
    value_coef: float = field(default=0.5, metadata={"help": "Weight of the critic's loss."})
    entropy_coef: float | None = field(
        default=None, metadata={"help": "Weight of the entropy bonus; None takes 0.01, and 0.03 for mixture."}
    )
    reduction: str = field(default="token", metadata={"help": "token or sequence: what counts the same."})
    target_kl: float | None = field(
        default=None, metadata={"help": "Beyond this KL the rest of a rollout's updates is left out."}
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One a reward function."})
    reward_timeout: float = field(
        default=60.0, metadata={"help": "Seconds that a reward function may take; 0 for no limit."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Whether the policy's dropout is switched off."})
    shuffle_dataset: bool = field(default=True, metadata={"help": "Whether prompts come in a new order each epoch."})
    log_completions: bool = field(
        default=False, metadata={"help": "Whether texts, rewards and weights are shown and kept as tables."}
    )
    num_completions_to_print: int | None = field(default=None, metadata={"help": "How many texts are shown."})

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = default_bf16(bool(self.fp16), bool(self.use_cpu))
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "reward", True
        if self.ddp_find_unused_parameters is None:  # some parameters serve some objectives only
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        self._check_fields()
        self._resolve_batches()

    def _check_fields(self) -> None:
        self._check_names()
        for name in _COUNTS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL_COUNTS:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r}: it must be a whole number of at least 1")
        if self.advantages == "group_relative" and self.num_generations < 2:
            raise ConfigError(
                f"num_generations={self.num_generations} with group-relative advantages: a text is compared with the "
                "others of its prompt; give at least 2, or advantages='gae'"
            )
        for name in ("gamma", "lam", "top_p"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1 or (name == "top_p" and value == 0):
                raise ConfigError(
                    f"{name}={value!r}: it must be a number from 0 to 1{' but not 0' * (name == 'top_p')}"
                )
        for name in ("temperature", "target_kl"):
            value = getattr(self, name)
            if (value is None and name == "target_kl") or (_is_number(value) and value > 0):
                continue
            raise ConfigError(f"{name}={value!r}: it must be finite and above 0")
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k!r}: it must be a whole number of at least 0 (0 keeps all tokens)")
        if not _is_number(self.reward_timeout) or self.reward_timeout < 0:
            raise ConfigError(f"reward_timeout={self.reward_timeout!r}: it must be a finite number of at least 0")
        weights = self.reward_weights
        if weights is not None and not (isinstance(weights, list | tuple) and all(map(_is_number, weights))):
            raise ConfigError(f"reward_weights={weights!r}: give a list of one finite number a reward function")
        self.objective_settings()

    def _check_names(self) -> None:
        if self.objective not in objectives:
            raise ConfigError(f"objective={self.objective!r}: {nearest(str(self.objective), objectives)}")
        if self.advantages is None:
            self.advantages = objectives[self.objective].default_advantages
        for name, known in (("advantages", ADVANTAGES), ("scale_rewards", SCALES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name}={value!r}: {nearest(str(value), known)}")

    def objective_settings(self) -> ObjectiveSettings:
        """What the objective is told."""
        entropy_coef = self.entropy_coef
        if entropy_coef is None:
            entropy_coef = objectives[self.objective].defaults.entropy_coef
        return ObjectiveSettings(
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            value_epsilon=self.value_epsilon,
            value_coef=self.value_coef,
            entropy_coef=entropy_coef,
            reduction=self.reduction,
        )

    def _resolve_batches(self) -> None:
        """Fills in how many texts a rollout has, and checks that updates, processes and groups come out even."""
        micro_batch = self.per_device_train_batch_size * self.world_size
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ConfigError("generation_batch_size and steps_per_generation mean the same; give one of them")
        if self.generation_batch_size is None:
            steps = self.steps_per_generation or self.gradient_accumulation_steps
            self.generation_batch_size = micro_batch * steps
        if self.generation_batch_size % micro_batch:
            raise ConfigError(
                f"generation_batch_size={self.generation_batch_size}: it must be a multiple of "
                f"per_device_train_batch_size times the processes, {micro_batch}"
            )
        self.steps_per_generation = self.generation_batch_size // micro_batch
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ConfigError(
                f"steps_per_generation={self.steps_per_generation}: it must be a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}, so that an update is made of one "
                "rollout"
            )
        if self.generation_batch_size % self.num_generations:
            raise ConfigError(
                f"num_generations={self.num_generations} does not divide the {self.generation_batch_size} texts of a "
                "rollout (generation_batch_size); change one of them"
            )
        eval_batch = self.per_device_eval_batch_size * self.world_size
        if eval_batch % self.num_generations_eval:
            raise ConfigError(
                f"num_generations_eval={self.num_generations_eval} does not divide the {eval_batch} texts of an "
                "evaluation's batch (per_device_eval_batch_size times the processes); change one of them"
            )
        if self.num_generations_eval > 1 and not self.eval_do_sample:
            logger.warning(
                "num_generations_eval=%d without eval_do_sample=True writes the same text of a prompt as often",
                self.num_generations_eval,
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
