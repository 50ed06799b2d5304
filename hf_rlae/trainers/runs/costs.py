"""What a training of a policy needs, by plain arithmetic from configs: memory, and numbers of forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_rlae.checks import OPTIONAL_COUNT, check_number
from hf_rlae.embedded import embedded_folder
from hf_rlae.errors import ConfigError, first_sentence
from hf_rlae.policies import PolicyConfig, PolicyModel
from hf_rlae.trainers.runs.arguments import PolicyArguments
from hf_rlae.trainers.runs.settings import RunSettings

_GIGABYTE = 1e9
_BYTES_PER_TRAINED = 16
"""Of a trained parameter in float32: itself, its gradient, and the two moments of Adam."""


@dataclass(frozen=True)
class MemberCost:
    """One member.

    Args:
        name (`str`): its folder or Hub id.
        parameters (`int`): their number.
        weight_bytes (`int`): parameters times bytes per parameter.
        cache_bytes_per_token (`int`, *optional*): keys and values of one token of one completion,
            `2 * layers * key-value heads * head size * bytes`; `None` for recurrent models, which have none.
    """

    name: str
    parameters: int
    weight_bytes: int
    cache_bytes_per_token: int | None


@dataclass(frozen=True)
class RunCost:
    """The prediction for one process of a training; see `predict_cost`.

    Args:
        members (`tuple` of `MemberCost`): in their order.
        policy_parameters (`int`): of the policy, its encoder among them.
        policy_bytes (`int`): of a policy that is trained in float32: parameters, gradients and Adam's two moments.
        rows (`int`): completions that are generated at a time.
        completions (`int`): of one rollout.
        max_tokens (`int`): of a completion.
        generation_passes (`int`): forward passes of every member in one rollout, at most: one per token of the longest
            completion of each batch.
        texts (`int`): texts that the policy reads in one rollout and its updates, at most: one per span and completion,
            once to generate and once per pass over the rollout.
        flops (`int`): floating-point operations of the members in one rollout, at most: 2 per parameter and token of a
            completion; prompts come on top.
        rollouts (`int`, *optional*): of the training; `None` if the number of questions is not known.
    """

    members: tuple[MemberCost, ...]
    policy_parameters: int
    policy_bytes: int
    rows: int
    completions: int
    max_tokens: int
    generation_passes: int
    texts: int
    flops: int
    rollouts: int | None

    @property
    def weight_bytes(self) -> int:
        """Of all members."""
        return sum(member.weight_bytes for member in self.members)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all members that have them, for full completions, without prompts."""
        per_token = sum(member.cache_bytes_per_token or 0 for member in self.members)
        return per_token * self.rows * self.max_tokens

    def to_text(self) -> str:
        """A few lines to print before a training."""
        lines = [
            f"  {member.name}: {member.parameters / _GIGABYTE:.2f} billion parameters, "
            f"{member.weight_bytes / _GIGABYTE:.1f} GB, {_per_token(member)}"
            for member in self.members
        ]
        held, cached, policy = (
            f"{value / _GIGABYTE:.1f} GB" for value in (self.weight_bytes, self.cache_bytes, self.policy_bytes)
        )
        number = "" if self.rollouts is None else f", {self.rollouts} rollouts in all"
        return "\n".join(
            [
                *lines,
                f"  memory of a process: members {held}, keys and values of {self.rows} completions of "
                f"{self.max_tokens} tokens {cached} (prompts come on top), policy, gradients and optimizer {policy} "
                "(activations come on top)",
                f"  time of a rollout of {self.completions} completions{number}: at most {self.generation_passes} "
                f"forward passes per member, {self.flops:.1e} operations, and {self.texts} texts for the policy",
            ]
        )


def predict_cost(settings: RunSettings, num_processes: int = 1, num_questions: int | None = None) -> RunCost:
    """Predicts memory and passes of a training of a policy from configs alone; no weights are loaded.

    Memory is parameters times bytes, plus the cache's bytes per token. How long a forward pass takes depends on the
    hardware, so time is given as numbers of passes: measure one, and multiply.

    Args:
        settings (`RunSettings`): of kind `"rlae"`, from `read_settings`.
        num_processes (`int`, defaults to 1): that share a rollout, each with all members.
        num_questions (`int`, *optional*): rows to train on; by default the setting `train_size`.

    Returns:
        `RunCost`: the prediction for one process.

    Raises:
        ConfigError: settings of another kind, or a member whose config cannot be read.

    Example:

    >>> from hf_rlae.trainers.runs import predict_cost, read_settings
    >>> config = {"members": ["demo:addition-bytes", "demo:subtraction-bytes"], "task": "gsm8k", "use_cpu": True}
    >>> cost = predict_cost(read_settings("rlae", config=config))
    >>> cost.weight_bytes == sum(4 * member.parameters for member in cost.members)
    True
    """
    if settings.kind != "rlae":
        raise ConfigError(f"kind={settings.kind!r}: costs are predicted for trainings of policies; give kind 'rlae'")
    check_number("num_questions", num_questions, OPTIONAL_COUNT)
    ensemble, policy, task, args = settings.parts
    revisions = ensemble.given_revisions or [None] * len(ensemble.members)
    configs = [_config(name, revision) for name, revision in zip(ensemble.members, revisions, strict=True)]
    members = tuple(
        _member_cost(name, config, ensemble.dtype) for name, config in zip(ensemble.members, configs, strict=True)
    )
    parameters = _policy_parameters(policy, configs, args.span_length)
    own = -(-args.generation_batch_size // num_processes)
    rows = min(own, args.rollout_batch_size or own)
    spans = -(-args.max_completion_length // (args.span_length or 8))
    questions = task.train_size if num_questions is None else num_questions
    tokens = own * args.max_completion_length
    return RunCost(
        members=members,
        policy_parameters=parameters,
        policy_bytes=parameters * _BYTES_PER_TRAINED,
        rows=rows,
        completions=args.generation_batch_size,
        max_tokens=args.max_completion_length,
        generation_passes=-(-own // rows) * args.max_completion_length,
        texts=own * spans * (1 + args.num_iterations),
        flops=2 * sum(member.parameters for member in members) * tokens,
        rollouts=_rollouts(args, num_processes, questions),
    )


def _config(name: str, revision: str | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(
            embedded_folder(name, "members"), revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"members: the config of {name!r} cannot be read: {first_sentence(error)}") from error
    return config.get_text_config()


def _member_cost(name: str, config: Any, dtype: str) -> MemberCost:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    loaded = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    cache = None if getattr(model, "_is_stateful", False) else _cache_bytes(config, loaded.itemsize)
    return MemberCost(name, parameters, parameters * loaded.itemsize, cache)


def _cache_bytes(config: Any, itemsize: int) -> int | None:
    """Of one token; a sliding window is not counted."""
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    if not layers or not heads:
        return None
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * layers * (getattr(config, "num_key_value_heads", None) or heads) * head_size * itemsize


def _policy_parameters(given: PolicyArguments, configs: list[Any], span_length: int | None) -> int:
    fields = dict(given.config_fields)
    if given.encoder is not None:
        fields["encoder_config"] = _config(given.encoder, given.encoder_revision)
    sizes = [config.hidden_size for config in configs]
    config = PolicyConfig(num_members=len(sizes), member_hidden_sizes=sizes, span_length=span_length, **fields)
    with torch.device("meta"):
        policy = PolicyModel(config)
    return int(policy.num_parameters())


def _rollouts(args: Any, num_processes: int, questions: int | None) -> int | None:
    update = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    updates = max(1, args.num_iterations * args.generation_batch_size // update)
    if args.max_steps > 0:
        return int(-(-args.max_steps // updates))
    if questions is None:
        return None
    return int(args.num_train_epochs * (questions * args.num_generations // args.generation_batch_size))


def _per_token(member: MemberCost) -> str:
    if member.cache_bytes_per_token is None:
        return "no keys and values"
    return f"{member.cache_bytes_per_token / 1e3:.0f} kB of keys and values per token"
