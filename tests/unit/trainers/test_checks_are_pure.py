"""Functions named `check_*` change nothing: their arguments are compared in depth before and after every call."""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib
import inspect
import pkgutil
import types
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from datasets import Dataset

import hf_rlae.trainers
from hf_rlae.errors import HfRlaeError
from hf_rlae.trainers import CoryPPOTrainer, CoryRLOOTrainer, CoryTrainer
from hf_rlae.trainers.token_ppo.configuration_token_ppo import TokenPPOConfig
from hf_rlae.trainers.token_ppo.trainer import TokenPPOTrainer
from tests.support import cory, rlae
from tests.support.rlae import data, vowels

_ATOMS = (str, bytes, int, float, complex, bool, type(None), enum.Enum, torch.dtype, torch.device)
_OPAQUE = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, functools.partial)


def described(value: Any, seen: dict[int, int]) -> Any:
    """All values that can be reached from one, without the objects themselves."""
    if isinstance(value, _ATOMS):
        return repr(value)
    if isinstance(value, _OPAQUE):
        return id(value)
    if id(value) in seen:
        return ("seen", seen[id(value)])
    seen[id(value)] = len(seen)
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return (value.dtype, tuple(value.shape), value.requires_grad, hashlib.sha256(data).hexdigest())
    if isinstance(value, Dataset):
        return (value.column_names, value._fingerprint)
    if isinstance(value, Mapping):
        return {str(key): described(entry, seen) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [described(entry, seen) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    names = getattr(value, "__dict__", None)
    return id(value) if names is None else {name: described(entry, seen) for name, entry in names.items()}


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for name in one for text in differences(one[name], other[name], f"{place}.{name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [t for i, (a, b) in enumerate(zip(one, other, strict=True)) for t in differences(a, b, f"{place}[{i}]")]
    return [] if one == other else [place]


def modules() -> list[types.ModuleType]:
    found = pkgutil.walk_packages(hf_rlae.trainers.__path__, "hf_rlae.trainers.")
    return [importlib.import_module(entry.name) for entry in found]


def checks() -> dict[str, Any]:
    """Every function of the trainers whose name begins with `check_` or `_check_`, by its full name."""
    found = {}
    for module in modules():
        for name, function in vars(module).items():
            is_own = inspect.isfunction(function) and function.__module__ == module.__name__
            if is_own and name.lstrip("_").startswith("check_"):
                found[f"{module.__name__}.{name}"] = function
    return found


@pytest.fixture
def watched(monkeypatch):
    """Wraps all checks wherever they are imported; returns the names of those that were called."""
    called: dict[str, int] = {}
    wrapped = {}
    for name, function in checks().items():

        def call(*args: Any, name: str = name, function: Any = function, **kwargs: Any) -> Any:
            given = (list(args), kwargs)
            before = described(given, {})
            try:
                return function(*args, **kwargs)
            finally:
                called[name] = called.get(name, 0) + 1
                changed = differences(before, described(given, {}))
                assert not changed, f"{name} changed {changed[:5]}"

        wrapped[function] = functools.wraps(function)(call)
    for module in modules():
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value in wrapped:
                monkeypatch.setattr(module, name, wrapped[value])
    return called


def test_rlae(watched, tmp_path):
    options = {"generation_kwargs": {"stop_strings": ["e"], "min_new_tokens": 2}, "span_length": 3, "max_steps": 1}
    ensemble = rlae.ensemble_of("mixture", "different", "text")
    ensemble.tokenizer(["a"])  # it keeps what it finds out about its template
    trainer = rlae.trainer_of(tmp_path, "mixture", vowels, ensemble, eval_dataset={"a": data(2)}, **options)
    assert ensemble.config.span_length == 3
    trainer.evaluate(data(2))
    wanted = (
        "policy",
        "arguments",
        "policy_adapter",
        "rlae_datasets",
        "eval_dataset",
        "reward_columns",
        "prompt_lengths",
    )
    assert {f"hf_rlae.trainers.rlae.checks.check_{name}" for name in wanted} <= watched.keys()


REFUSED_LATE = {
    "reward": {"reward": "no_such_reward"},
    "half precision": {"half": True},
    "adapter without an encoder": {"peft_config": cory.lora()},
    "prompts that are too long": {"train": data(6).map(lambda row: {"prompt": row["prompt"] * 200})},
}


@pytest.mark.parametrize("given", REFUSED_LATE.values(), ids=REFUSED_LATE)
def test_what_a_refused_trainer_leaves(given, watched, tmp_path):
    """The span length of the configuration is written after the last check."""
    given = dict(given)
    is_halved = given.pop("half", False)
    ensemble = rlae.ensemble_of("mixture", observation="text" if is_halved else "members")
    if is_halved:
        ensemble.policy.to(torch.bfloat16)
    before = (ensemble.config.to_dict(), ensemble.policy.config.to_dict(), ensemble.policy)
    with pytest.raises(HfRlaeError):
        rlae.trainer_of(tmp_path, "mixture", ensemble=ensemble, span_length=5, **given)
    assert (ensemble.config.to_dict(), ensemble.policy.config.to_dict(), ensemble.policy) == before


def token_ppo(folder):
    model, tokenizer = cory.base()
    kept = {name: value for name, value in cory.OPTIONS.items() if name != "beta"}
    args = TokenPPOConfig(str(folder), **{**kept, "kl_horizon": 100})
    return TokenPPOTrainer(model, vowels, args, data(), processing_class=tokenizer, peft_config=cory.lora())


OTHERS = {
    "cory": lambda folder: cory.trainer_of(folder, CoryTrainer, eval_dataset={"a": data(2)}),
    "rloo": lambda folder: cory.trainer_of(folder, CoryRLOOTrainer, generation_kwargs={"stop_strings": "e"}),
    "cory-ppo": lambda folder: cory.trainer_of(folder, CoryPPOTrainer, beta=0.0, kl_horizon=100),
    "chats": lambda folder: cory.trainer_of(folder, train=cory.chats(), given=cory.base(chat=True)),
    "token-ppo": token_ppo,
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_others(make, watched, tmp_path):
    make(tmp_path)
    assert "hf_rlae.trainers.adapter_checks.check_adapter" in watched
    assert "hf_rlae.trainers.context_check.check_longest" in watched


def test_the_watch_sees_what_is_written():
    """The comparison notices a written field, a changed tensor, and a changed list deep inside."""
    ensemble = rlae.ensemble_of("mixture")
    before = described([ensemble], {})
    assert not differences(before, described([ensemble], {}))
    ensemble.config.span_length += 1
    assert differences(before, described([ensemble], {}))
    ensemble.config.span_length -= 1
    with torch.no_grad():
        next(ensemble.policy.parameters()).flatten()[0] += 1
    assert differences(before, described([ensemble], {}))
    assert len(checks()) > 20
