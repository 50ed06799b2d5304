"""Small ensembles, data and runs for tests of `RLAETrainer`."""

from __future__ import annotations

import gc
from typing import Any

import torch
from datasets import Dataset

from hf_rlae import EnsembleForCausalLM, PolicyConfig, PolicyModel
from hf_rlae.trainers import RLAEConfig, RLAETrainer
from tests.support.models import constant, pair, pairs
from tests.support.policies import encoder
from tests.support.tokenizers import byte_level_bpe, sentencepiece_bpe

# `Trainer.train` collects garbage first; in processes that tests start, it need not look at imported modules
gc.freeze()

PROMPTS = ["Once upon a", "The 3 big dogs", "def f(x):", "She said", "and they", "Lily who"]
CHAT_TEMPLATES = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}>{% endif %}",
    "{% for m in messages %}[{{ m['content'] }}]\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
)


def members(kind: str = "shared", **overrides: Any) -> list[Any]:
    """Two random members, with one tokenizer (`shared`) or two (`different`)."""
    if kind == "shared":
        return pairs(["llama", "gpt2"], **overrides)
    return [
        pair("llama", 0, byte_level_bpe(), **overrides),
        pair("llama", 1, sentencepiece_bpe(), **overrides),
    ]


def policy_for(ensemble_members: Any, objective: str = "ppo", observation: str = "members", **settings: Any) -> Any:
    """A small random policy, the same for equal arguments."""
    settings = {"actor": "per_member" if objective == "mappo" else "joint", "hidden_size": 16, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if observation == "members":
            return PolicyModel(PolicyConfig.for_members(ensemble_members, **settings))
        return PolicyModel.from_encoder(encoder(), ensemble_members, observation=observation, **settings)


def ensemble_of(
    objective: str = "ppo",
    kind: str = "shared",
    observation: str = "members",
    span_length: int = 2,
    policy: dict[str, Any] | None = None,
    given: list[Any] | None = None,
    **settings: Any,
) -> EnsembleForCausalLM:
    """Two members and a policy whose weights are far from equal and depend on the text."""
    built = members(kind) if given is None else given
    made = policy_for(built, objective, observation, span_length=span_length, **(policy or {}))
    unsettle(made)
    return EnsembleForCausalLM.from_members(built, made, span_length=span_length, **settings)


def unsettle(policy: PolicyModel, scale: float = 1.0) -> None:
    """Fills the last layers of the actor with random numbers: at initialisation they give equal weights."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for score in policy.heads.scores:
            score.weight.copy_(scale * torch.randn(score.weight.shape, generator=generator))


def data(count: int = len(PROMPTS), **columns: Any) -> Dataset:
    """Prompts, with any other columns."""
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(count)]
    return Dataset.from_dict({"prompt": prompts, "number": list(range(count)), **columns})


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """A reward that depends on the completion: its share of vowels."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(char in "aeiou" for char in text) / max(len(text), 1) for text in texts]


def config(folder: Any, **options: Any) -> RLAEConfig:
    """Rollouts of 8 completions of 5 tokens, G = 4, with two updates in each of two passes; silent and on the CPU."""
    defaults: dict[str, Any] = {
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "max_completion_length": 5,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    return RLAEConfig(str(folder), **{**defaults, **options})


def trainer_of(
    folder: Any,
    objective: str = "ppo",
    reward: Any = vowels,
    ensemble: EnsembleForCausalLM | None = None,
    train: Dataset | None = None,
    trainer_class: type[RLAETrainer] = RLAETrainer,
    eval_dataset: Any = None,
    callbacks: list[Any] | None = None,
    peft_config: Any = None,
    **options: Any,
) -> RLAETrainer:
    """A trainer that is ready to train."""
    return trainer_class(
        ensemble_of(objective) if ensemble is None else ensemble,
        reward,
        config(folder, objective=objective, **options),
        data() if train is None else train,
        eval_dataset,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def parameters_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    """Bit-exactly equal, unless a tolerance is given."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if atol:
            torch.testing.assert_close(value, other[name], atol=atol, rtol=0.0, msg=lambda text, n=name: f"{n}: {text}")
        else:
            assert torch.equal(value, other[name]), name


def favouring(piece: str, strength: float = 4.0) -> Any:
    """A member that prefers one token after every text."""
    tokenizer = byte_level_bpe()
    logits = torch.zeros(len(tokenizer))
    logits[tokenizer.encode(piece)[0]] = strength + 5.0
    logits[tokenizer.eos_token_id] = -torch.inf
    return constant(logits, tokenizer)
