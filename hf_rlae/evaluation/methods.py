"""Methods that an evaluation compares: members alone, ensembles with a policy, baselines, and any callable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig

from hf_rlae.baselines import Baseline, baselines, get_baseline
from hf_rlae.baselines.by_policy import EnsembleBaseline
from hf_rlae.ensemble import EnsembleForCausalLM
from hf_rlae.errors import ConfigError, nearest
from hf_rlae.evaluation.likelihood import completion_logps, encode
from hf_rlae.members.fingerprint import describe_member, describe_model, digest_of
from hf_rlae.policies import Policy, StaticPolicy, policies, resolve_policy
from hf_rlae.reports import completion_mask, short_names
from hf_rlae.vocabulary import token_ids

_OF_PLACES = ("members", "revisions", "base_revisions", "vocabulary_hashes", "policy", "transformers_version")
"""Fields of an ensemble's config that say where its parts are, not what they are."""


@dataclass(frozen=True)
class Completions:
    """What a method wrote for B prompts.

    Attributes:
        texts (`list[str]`): the completions.
        num_tokens (`list[int]`, *optional*): tokens of each completion, with the one that ends it.
        member_tokens (`list[list[int]]`, *optional*): for how many tokens each member ran.
    """

    texts: list[str]
    num_tokens: list[int] | None = None
    member_tokens: list[list[int]] | None = None


class Method(Protocol):
    """What `evaluate` compares.

    Attributes:
        can_score (`bool`): whether it gives probabilities to texts, so that `logps` works.
    """

    can_score: bool

    def complete(self, prompts: Sequence[Any], settings: Mapping[str, Any]) -> Completions:
        """Completions of a batch of prompts; `settings` are arguments of `generate`."""
        ...

    def logps(self, prompts: Sequence[Any], completions: Sequence[str]) -> tuple[list[float], list[int]]:
        """Log-probabilities of given completions, in nats, and their numbers of tokens."""
        ...

    def setup(self) -> Any:
        """All that results depend on, in a form that JSON has; equal for equal methods."""
        ...


class EnsembleMethod:
    """An ensemble with its own policy or another one.

    Args:
        ensemble (`EnsembleForCausalLM`): decodes.
        policy (`Policy`, *optional*): in place of its own.
    """

    can_score = True

    def __init__(self, ensemble: EnsembleForCausalLM, policy: Policy | None = None) -> None:
        if policy is not None:
            ensemble.check_policy(policy)
        self.ensemble = ensemble
        self.policy = policy

    def complete(self, prompts: Sequence[Any], settings: Mapping[str, Any]) -> Completions:
        """See [`Method`]."""
        ensemble = self.ensemble
        inputs: dict[str, Any] = encode(ensemble, prompts)
        columns = inputs["input_ids"].shape[1]
        if self.policy is not None:
            inputs["past_key_values"] = ensemble.new_cache(policy=self.policy)
        if settings.get("stop_strings"):
            inputs["tokenizer"] = ensemble.tokenizer
        ids = ensemble.generate(**inputs, **settings)[:, columns:]
        ends = settings.get("eos_token_id", ensemble.generation_config.eos_token_id)
        lengths = completion_mask(ids, token_ids(ends)).sum(1)
        return Completions(ensemble.tokenizer.batch_decode(ids, skip_special_tokens=True), lengths.tolist())

    def logps(self, prompts: Sequence[Any], completions: Sequence[str]) -> tuple[list[float], list[int]]:
        """See [`Method`]."""
        return completion_logps(self.ensemble, prompts, completions, self.policy)

    def setup(self) -> Any:
        """See [`Method`]."""
        for member in self.ensemble.members:
            member.prepare()
        config = {name: value for name, value in self.ensemble.config.to_dict().items() if name not in _OF_PLACES}
        policy = self.ensemble.policy if self.policy is None else self.policy
        return [
            digest_of([describe_member(member) for member in self.ensemble.members]),
            digest_of(config),
            digest_of(described(policy)),
        ]


class BaselineMethod:
    """A baseline, called with the members of an ensemble.

    Args:
        baseline (`Baseline`): see there; those that decode by a policy can score texts, too.
        ensemble (`EnsembleForCausalLM`): whose members answer.
    """

    def __init__(self, baseline: Baseline, ensemble: EnsembleForCausalLM) -> None:
        self.baseline = baseline
        self.ensemble = ensemble
        self.can_score = isinstance(baseline, EnsembleBaseline)

    def complete(self, prompts: Sequence[Any], settings: Mapping[str, Any]) -> Completions:
        """See [`Method`]."""
        found = self.baseline.generate(self.ensemble, list(prompts), batch_size=len(prompts), **settings)
        return Completions(list(found.texts), found.num_tokens.tolist(), found.member_tokens.tolist())

    def logps(self, prompts: Sequence[Any], completions: Sequence[str]) -> tuple[list[float], list[int]]:
        """See [`Method`]; for baselines that decode by a policy."""
        return completion_logps(self.ensemble, prompts, completions, getattr(self.baseline, "policy", None))

    def setup(self) -> Any:
        """See [`Method`]."""
        return [EnsembleMethod(self.ensemble).setup(), digest_of(described(self.baseline))]


class CallableMethod:
    """Any function from prompts to texts, such as a call of an API.

    Args:
        function (callable): takes a list of prompts (texts, or lists of messages), and returns as many texts.
    """

    can_score = False

    def __init__(self, function: Callable[[list[Any]], Sequence[str]]) -> None:
        self.function = function

    def complete(self, prompts: Sequence[Any], settings: Mapping[str, Any]) -> Completions:
        """See [`Method`]; the function gets no settings."""
        return Completions(list(self.function(list(prompts))))

    def logps(self, prompts: Sequence[Any], completions: Sequence[str]) -> tuple[list[float], list[int]]:
        """Not defined: a function writes texts and gives no probabilities to others."""
        raise ConfigError('a function writes texts and gives no probabilities to others; use scoring="generate"')

    def setup(self) -> Any:
        """See [`Method`]; a function is known by its name."""
        return described(self.function)


def members_alone(ensemble: EnsembleForCausalLM) -> dict[str, Method]:
    """Each member by itself, by its short name.

    A one-member ensemble gives exactly what the member gives. All decode with the settings of the evaluation, not with
    the defaults of the members' own generation configs, so that methods differ in nothing else.
    """
    found: dict[str, Method] = {}
    for name, member in zip(short_names(m.name for m in ensemble.members), ensemble.members, strict=True):
        alone = EnsembleForCausalLM.from_members([member])
        alone.generation_config = GenerationConfig(
            bos_token_id=alone.generation_config.bos_token_id,
            pad_token_id=alone.tokenizer.pad_token_id,
            eos_token_id=list(member.end_ids) or None,
        )
        if ensemble.tokenizer.chat_template != ensemble.tokenizer.first_template:
            alone.tokenizer.chat_template = ensemble.tokenizer.chat_template  # one that was set for all members
        found[name] = EnsembleMethod(alone)
    return found


def named_methods(given: Any, ensemble: EnsembleForCausalLM | None) -> dict[str, Any]:
    """The methods that a user gives, by name; not yet made.

    Raises:
        ConfigError: two methods of one name, or neither a list nor a mapping.
    """
    if given is None:
        return {} if ensemble is None else {"ensemble": ensemble}
    if isinstance(given, Mapping):
        return {str(name): entry for name, entry in given.items()}
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = [given]
    names = [_name_of(entry) for entry in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"methods has two entries with the name {twice!r}; give a dict of names to methods")
    return dict(zip(names, given, strict=True))


def _name_of(given: Any) -> str:
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if _is_weights(given):
        return "weights " + ", ".join(f"{weight:g}" for weight in given)
    name = getattr(given, "name", None) or getattr(given, "__name__", None)
    return (
        name
        if isinstance(name, str)
        else "ensemble"
        if isinstance(given, EnsembleForCausalLM)
        else type(given).__name__
    )


def _is_weights(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(isinstance(entry, int | float) for entry in given)


def make_method(name: str, given: Any, ensemble: EnsembleForCausalLM | None) -> Method:
    """A method from what a user gives.

    Args:
        name (`str`): for messages.
        given: an ensemble; the name of a baseline or a policy, or a policy's folder or Hub id; a baseline; a policy; a
            list with a fixed weight for each member; or a function from prompts to texts.
        ensemble (`EnsembleForCausalLM`, *optional*): whose members methods use.

    Raises:
        ConfigError, PolicyError: none of these, or one that does not fit the members.
    """
    if isinstance(given, EnsembleForCausalLM):
        return EnsembleMethod(given)
    is_policy = isinstance(given, nn.Module) or hasattr(given, "settings")
    if not is_policy and not isinstance(given, str | os.PathLike | Baseline) and callable(given):
        return CallableMethod(given)
    if ensemble is None:
        raise ConfigError(f"the method {name!r} needs members: give an ensemble or a list of members first")
    if isinstance(given, str) and given == "ensemble":
        return EnsembleMethod(ensemble)
    if isinstance(given, str) and given in baselines and given not in policies:
        return BaselineMethod(get_baseline(given), ensemble)
    if isinstance(given, Baseline):
        return BaselineMethod(given, ensemble)
    if _is_weights(given):
        return EnsembleMethod(ensemble, StaticPolicy(list(given)))
    if isinstance(given, str) and "/" not in given and given not in policies and not os.path.exists(given):
        raise ConfigError(f"methods: there is no {given!r}: {nearest(given, {*baselines, *policies, 'ensemble'})}")
    if isinstance(given, str | os.PathLike) or is_policy:
        return EnsembleMethod(ensemble, resolve_policy(given))
    raise ConfigError(
        f"methods: {name!r} is a {type(given).__name__}; give an ensemble, the name of a baseline or a policy, a "
        "baseline, a policy, a list of weights, or a function from prompts to texts"
    )


def described(value: Any, depth: int = 4) -> Any:
    """What an object is, in a form that JSON has: its class and its settings, without addresses of memory."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return [kind, describe_model(getattr(value, "config", GenerationConfig()), value.named_parameters())]
    if isinstance(value, torch.Tensor):
        return [kind, list(value.shape), value.flatten()[:64].tolist()]
    if depth == 0:
        return kind
    if isinstance(value, Mapping):
        return {str(name): described(entry, depth - 1) for name, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        entries = [described(entry, depth - 1) for entry in value]
        return sorted(entries, key=str) if isinstance(value, set | frozenset) else entries
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    settings = value.settings() if hasattr(value, "settings") else getattr(value, "__dict__", {})
    return [kind, {name: described(entry, depth - 1) for name, entry in settings.items()}]
