"""What a run needs besides the trainer's configuration: members or a base model, a policy, a task, processes."""

# no `from __future__ import annotations`: the parser reads the types of fields

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trl import ModelConfig

from hf_rlae.checks import check_choice
from hf_rlae.ensemble.options import EnsembleOptions
from hf_rlae.errors import ConfigError
from hf_rlae.trainers.defaults import option

ALGORITHMS = ("grpo", "rloo", "ppo")
_ENSEMBLE_OPTIONS = sorted(set(EnsembleOptions.__annotations__) - {"mixing", "grain", "span_length"})
_MEMBER_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class EnsembleArguments:
    """The members of the ensemble, and how they are combined.

    Args:
        members (`list[str]`): folders or Hub ids, in order.
        revisions (`list[str]`, *optional*): a branch, tag or commit per member; `none` for a folder.
        dtype (`str`, defaults to `"auto"`): of the members.
        device_map (`str`, *optional*): such as `"auto"`.
        mixing (`str`, defaults to `"linear"`), grain (`str`, defaults to `"token"`): see `EnsembleConfig`.
        ensemble_options (`dict`, *optional*): its other fields, such as `mixing_kwargs`, `draw` or `min_weight`; on the
            command line as JSON.

    Raises:
        ConfigError: no members, an unknown dtype or option.
    """

    members: list[str] | None = option(default=None, help="Folders or Hub ids of the members, in order.")
    revisions: list[str] | None = option(default=None, help="A branch, tag or commit per member; none for a folder.")
    dtype: str = option(default="auto", help="Of the members: auto, float32, bfloat16 or float16.")
    device_map: str | None = option(default=None, help="Where members are loaded, such as auto.")
    mixing: str = option(default="linear", help="linear, log, power, or another registered mixing.")
    grain: str = option(default="token", help="What is written if tokenizers differ; see EnsembleConfig.")

    ensemble_options: dict | str | None = option(  # type: ignore[type-arg]
        default=None, help="Other fields of EnsembleConfig, as JSON."
    )

    def __post_init__(self) -> None:
        self.members = _listed(self.members)
        self.revisions = _listed(self.revisions)
        if not self.members:
            raise ConfigError("members is missing; give at least one folder or Hub id, such as --members FOLDER HUB_ID")
        check_choice("dtype", self.dtype, _MEMBER_DTYPES)
        self.ensemble_options = _of_json("ensemble_options", self.ensemble_options)
        for name in self.ensemble_options or ():
            check_choice("ensemble_options", name, _ENSEMBLE_OPTIONS)

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `EnsembleConfig`."""
        others: Any = self.ensemble_options or {}
        return {"mixing": self.mixing, "grain": self.grain, **others}

    @property
    def given_revisions(self) -> list[str | None] | None:
        """One revision or `None` per member."""
        if self.revisions is None:
            return None
        return [None if str(revision).lower() in ("", "none") else revision for revision in self.revisions]


@dataclass
class PolicyArguments:
    """The policy that is trained: a new one, or one that was saved. Fields that are `None` keep their usual defaults.

    Args:
        policy (`str`, *optional*): a folder or Hub id of a learned policy, from which training continues. All fields
            below except those of LoRA then belong to it and are refused.
        policy_revision (`str`, *optional*): of the policy, on the Hub.
        observation (`str`, *optional*): `"members"`, `"text"` or `"both"`.
        actor (`str`, *optional*): `"joint"` or `"per_member"`; by default the one that the objective trains.
        action, pooled_tokens, lookahead_tokens, max_text_tokens (*optional*): see `PolicyConfig`.
        policy_hidden_size (`int`, *optional*): width of the heads, `PolicyConfig.hidden_size`.
        encoder (`str`, *optional*): a folder or Hub id of the text encoder; needed to observe the text.
        encoder_revision (`str`, *optional*): of the encoder, on the Hub.
        use_peft (`bool`, defaults to `False`): whether the encoder is trained by LoRA.
        lora_r, lora_alpha, lora_dropout, lora_target_modules: of that LoRA, with TRL's names and defaults.
    """

    policy: str | None = option(default=None, help="A learned policy to continue from: a folder or Hub id.")
    policy_revision: str | None = option(default=None, help="Of the policy, on the Hub.")
    observation: str | None = option(default=None, help="members, text or both.")
    actor: str | None = option(default=None, help="joint or per_member; by default as the objective needs it.")
    action: str | None = option(default=None, help="What is drawn for a span; see PolicyConfig.")
    pooled_tokens: int | None = option(default=None, help="Newest tokens over which hidden states are averaged.")
    lookahead_tokens: int | None = option(default=None, help="Tokens of look-ahead per member and span.")
    max_text_tokens: int | None = option(default=None, help="Newest tokens of the text that the encoder reads.")
    policy_hidden_size: int | None = option(default=None, help="Width of the policy's heads.")
    encoder: str | None = option(default=None, help="Folder or Hub id of the encoder that reads the text.")
    encoder_revision: str | None = option(default=None, help="Of the encoder, on the Hub.")
    use_peft: bool = option(default=False, help="Whether the policy's encoder is trained by LoRA.")
    lora_r: int = option(default=16, help="Rank of LoRA.")
    lora_alpha: int = option(default=32, help="Alpha of LoRA.")
    lora_dropout: float = option(default=0.05, help="Dropout of LoRA; 0 with disable_dropout.")
    lora_target_modules: list[str] | None = option(default=None, help="Layers with LoRA; all linear ones by default.")

    def __post_init__(self) -> None:
        own = sorted(self.config_fields) + (["encoder"] if self.encoder is not None else [])
        if self.policy is not None and own:
            raise ConfigError(f"{own[0]} belongs to a new policy, but policy={self.policy!r} continues a saved one")
        for name in ("policy", "encoder"):
            if getattr(self, name) is None and getattr(self, f"{name}_revision") is not None:
                raise ConfigError(f"{name}_revision is given without {name}; give both, or neither")
        observation = self.observation or "members"
        if self.policy is None and (self.encoder is None) != (observation == "members"):
            given = "an encoder" if self.encoder is not None else "no encoder"
            raise ConfigError(
                f"observation={observation!r} with {given}: the encoder reads the text; give both observation='text' "
                "(or 'both') and encoder, or neither"
            )

    @property
    def config_fields(self) -> dict[str, Any]:
        """The fields of `PolicyConfig` that were given."""
        names = ("observation", "actor", "action", "pooled_tokens", "lookahead_tokens", "max_text_tokens")
        fields = {name: getattr(self, name) for name in names} | {"hidden_size": self.policy_hidden_size}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class CoryRunArguments(ModelConfig):
    """The base model and the adapters, with TRL's names (`trl.ModelConfig`), and the algorithm.

    Args:
        algorithm (`str`, defaults to `"grpo"`): `"grpo"`, `"rloo"` or `"ppo"`.
        use_peft (`bool`, defaults to `True`): must be `True`; agents are LoRA adapters.
        lora_target_modules (`list[str]`, *optional*): all linear layers by default.

    Raises:
        ConfigError: an unknown algorithm, no base model, or no LoRA.
    """

    algorithm: Literal["grpo", "rloo", "ppo"] = option(default="grpo", help="grpo, rloo or ppo (over tokens).")
    use_peft: bool = option(default=True, help="Must be true: agents are LoRA adapters.")

    def __post_init__(self) -> None:
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        if not self.model_name_or_path:
            raise ConfigError("model_name_or_path is missing; give the folder or Hub id of the base model")
        if not self.use_peft:
            raise ConfigError("use_peft=False: the agents of CORY are LoRA adapters on one base model; leave it out")
        self.lora_target_modules = _listed(self.lora_target_modules) or ["all-linear"]
        super().__post_init__()


@dataclass
class TaskArguments:
    """The questions, and the rewards of the answers. See `load_task` for what the fields mean.

    Args:
        task (`str`): of a registered task.
        train_split (`str`, defaults to `"train"`), train_size (`int`, *optional*): rows to train on; all by default.
        eval_split (`str`, *optional*), eval_size (`int`, *optional*): rows of a validation set. If it is the split of
            the training rows, `eval_size` rows are held out of it, and training has none of them.
        task_source, task_config, task_revision, num_few_shot, few_shot_split, prompt_format, prompt_template: as in
            `load_task`.
        task_seed (`int`, defaults to 0): of the choice of rows and shots.
        task_options (`dict`, *optional*): the task's own options; on the command line as JSON.
        rewards (`list`, *optional*): names of registered rewards, dotted paths of functions, folders or Hub ids of
            reward models; the task's own reward by default. An entry with options is a mapping with `name` and the
            options, such as `{name: owner/model, label: 1}`; on the command line as JSON.

    Raises:
        ConfigError: no task, a split of validation without a size, or text that is not JSON.
    """

    task: str | None = option(default=None, help="Name of a registered task.")
    train_split: str = option(default="train", help="Split to train on.")
    train_size: int | None = option(default=None, help="Rows to train on; all by default.")
    eval_split: str | None = option(default=None, help="Split of a validation set; none by default.")
    eval_size: int | None = option(default=None, help="Rows of the validation set; all of another split by default.")
    task_source: str | None = option(default=None, help="A file, a folder or a Hub id instead of the task's own.")
    task_config: str | None = option(default=None, help="Config of the dataset on the Hub.")
    task_revision: str | None = option(default=None, help="Revision of the dataset on the Hub.")
    task_seed: int = option(default=0, help="Seed of the choice of rows and shots.")
    task_options: dict | str | None = option(default=None, help="The task's own options, as JSON.")  # type: ignore[type-arg]
    num_few_shot: int | None = option(default=0, help="Worked examples per prompt; none: as is customary.")
    few_shot_split: str | None = option(default=None, help="Split of the worked examples.")
    prompt_format: str | None = option(default=None, help="conversational or standard.")
    prompt_template: str | None = option(default=None, help="Replaces the task's template; contains {question}.")
    rewards: list[str] | None = option(default=None, help="Rewards; the task's own by default.")

    def __post_init__(self) -> None:
        if self.task is None:
            raise ConfigError("task is missing; give the name of a registered task, such as --task gsm8k")
        if self.eval_split == self.train_split and self.eval_size is None:
            raise ConfigError(
                f"eval_split={self.eval_split!r} is the split of the training rows; give eval_size, the number of rows "
                "that are held out of it"
            )
        if self.eval_split is None and self.eval_size is not None:
            raise ConfigError(f"eval_size={self.eval_size} is given without eval_split; give both, or neither")
        self.task_options = _of_json("task_options", self.task_options)
        given = [self.rewards] if isinstance(self.rewards, str | Mapping) else self.rewards or []
        self.rewards = [_of_json("rewards", entry) if str(entry).lstrip().startswith("{") else entry for entry in given]


@dataclass
class LaunchArguments:
    """Processes, as in `accelerate launch`. Without any of these the run stays in the process that started it.

    Args:
        num_processes, num_machines, machine_rank, main_process_ip, main_process_port, gpu_ids (*optional*): options of
            `accelerate launch`.
        accelerate_config (`str`, *optional*): a file, or the name of one of ours (`single_gpu`, `two_gpus`,
            `eight_gpus`) or TRL's (`multi_gpu`, `zero2`, ...).
    """

    num_processes: int | None = option(default=None, help="Number of processes.")
    accelerate_config: str | None = option(default=None, help="A file for accelerate, or single_gpu, two_gpus, ...")
    num_machines: int | None = option(default=None, help="Number of machines.")
    machine_rank: int | None = option(default=None, help="Rank of this machine.")
    main_process_ip: str | None = option(default=None, help="Address of the first machine.")
    main_process_port: int | None = option(default=None, help="Port of the first machine.")
    gpu_ids: str | None = option(default=None, help="GPUs of this machine, such as 0,1.")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _of_json(name: str, given: Any) -> Any:
    """A mapping or `None`; on a command line a mapping is written as JSON."""
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ConfigError(f"{name}={given!r} is not JSON ({error})") from error
    if not isinstance(value, Mapping | None):
        raise ConfigError(f"{name}={given!r}: expected names with values")
    return value
