"""Reads the settings of a run: a YAML file and overrides, with TRL's parser."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from hf_rlae.checks import check_choice
from hf_rlae.configs import find_config
from hf_rlae.errors import ConfigError, nearest, shortened
from hf_rlae.trainers.cory.configuration_cory import CoryConfig, CoryRLOOConfig
from hf_rlae.trainers.cory.ppo import CoryPPOConfig
from hf_rlae.trainers.rlae.configuration_rlae import RLAEConfig
from hf_rlae.trainers.runs.arguments import (
    ALGORITHMS,
    CoryRunArguments,
    EnsembleArguments,
    LaunchArguments,
    PolicyArguments,
    TaskArguments,
)

KINDS = ("rlae", "cory")
_CORY_CONFIGS = {"grpo": CoryConfig, "rloo": CoryRLOOConfig, "ppo": CoryPPOConfig}
_ENVIRONMENT = "env"
"""The key of a file whose values become environment variables, as in TRL."""


class SettingsParser(TrlParser):  # type: ignore[misc]
    """TRL's parser; a bad argument raises `ConfigError` instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        raise ConfigError(message)


@dataclass(frozen=True)
class RunSettings:
    """Settings whose names and types are checked, and which are not yet objects.

    Args:
        kind (`str`): `"rlae"` or `"cory"`.
        parser (`SettingsParser`): with the values of the file as defaults.
        overrides (`Sequence[str]`): arguments of the command line.
        launch (`LaunchArguments`): the processes that are asked for.
    """

    kind: str
    parser: SettingsParser
    overrides: Sequence[str]
    launch: LaunchArguments

    @cached_property
    def parts(self) -> tuple[Any, ...]:
        """The objects: for RLAE `EnsembleArguments`, `PolicyArguments`, `TaskArguments` and `RLAEConfig`; for CORY
        `CoryRunArguments`, `TaskArguments` and the algorithm's configuration.

        Raises:
            ConfigError: a value that cannot be used.
        """
        try:
            *parts, _ = self.parser.parse_args_into_dataclasses(list(self.overrides), look_for_args_file=False)
        except (ValueError, TypeError) as error:  # of transformers' and TRL's own arguments
            raise error if isinstance(error, ConfigError) else ConfigError(shortened(str(error))) from error
        return tuple(parts)


def read_settings(kind: str, arguments: Sequence[str] = (), config: Mapping[str, Any] | None = None) -> RunSettings:
    """Reads settings, and checks their names and types; nothing is loaded.

    Args:
        kind (`str`): `"rlae"` or `"cory"`.
        arguments (`Sequence[str]`): as on the command line: `--config FILE` (a YAML file, or the name of a ready one),
            and `--key value` for every setting that differs from it.
        config (`Mapping`, *optional*): the content of a file, instead of `--config`.

    Returns:
        `RunSettings`: the settings.

    Raises:
        ConfigError: a file that is missing or not a YAML mapping, an unknown key (the message names the nearest), or a
            value of the wrong type.

    Example:

    >>> settings = read_settings("rlae", ["--config", "rlae_gsm8k", "--max_steps", "10", "--use_cpu"])
    >>> ensemble, policy, task, args = settings.parts
    >>> task.task, policy.observation, args.span_length, args.max_steps
    ('gsm8k', 'text', 4, 10)
    """
    check_choice("kind", kind, KINDS)
    own = SettingsParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    own.add_argument("--algorithm")
    known, overrides = own.parse_known_args(list(arguments))
    if config is not None and known.config is not None:
        raise ConfigError("config is given twice, as a mapping and as --config; leave one of them out")
    values = dict(read_config_file(find_config(known.config)) if known.config is not None else config or {})
    environment = values.pop(_ENVIRONMENT, None) or {}
    algorithm = known.algorithm or values.get("algorithm", ALGORITHMS[0])
    if kind == "cory":
        check_choice("algorithm", algorithm, ALGORITHMS)
        values["algorithm"] = algorithm
    elif known.algorithm is not None:
        overrides += ["--algorithm", known.algorithm]  # unknown there
    parser = make_parser(kind, algorithm)
    _check_keys(parser, values, kind, known.config or "config")
    parser.set_defaults_with_config(**values)
    namespace, rest = parser.parse_known_args(overrides)
    if rest:
        _refuse(parser, rest)
    _set_environment(environment)
    launch = LaunchArguments(**{name: getattr(namespace, name) for name in LaunchArguments.__dataclass_fields__})
    return RunSettings(kind, parser, overrides, launch)


def make_parser(kind: str, algorithm: str = "grpo") -> SettingsParser:
    """A parser of all settings of a kind of run; its `format_help()` lists them."""
    parts: tuple[Any, ...] = (EnsembleArguments, PolicyArguments, TaskArguments, RLAEConfig)
    if kind == "cory":
        parts = (CoryRunArguments, TaskArguments, _CORY_CONFIGS[algorithm])
    parts += (LaunchArguments,)
    return SettingsParser(parts, prog=f"hf-rlae train {kind}", add_help=False, allow_abbrev=False, usage="%(prog)s")


def read_config_file(path: Path) -> Mapping[str, Any]:
    """The settings of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping of names to values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {shortened(str(error))}") from error
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} is not a mapping of names to values; expected lines such as 'task: gsm8k'")
    return values


def _names(parser: SettingsParser) -> list[str]:
    """The names of all settings."""
    return sorted({action.dest for action in parser._actions if action.option_strings})


def _check_keys(parser: SettingsParser, values: Mapping[str, Any], kind: str, place: str) -> None:
    names = _names(parser)
    other = next(name for name in KINDS if name != kind)
    for key in values:
        if key not in names:
            if set(values) - {"algorithm"} <= set(_names(make_parser(other, values.get("algorithm", ALGORITHMS[0])))):
                raise ConfigError(f"{place} is a file for `hf-rlae train {other}`: {kind} has no setting {key!r}")
            raise ConfigError(f"{place}: there is no setting {key!r}: {_nearest(key, names)}")


def _refuse(parser: SettingsParser, rest: Sequence[str]) -> NoReturn:
    """Raises for arguments that the parser does not know."""
    first = rest[0]
    if not first.startswith("-"):
        raise ConfigError(f"{first!r} belongs to no setting; a setting is given as --key value")
    key = first.lstrip("-").partition("=")[0].replace("-", "_")
    raise ConfigError(f"there is no setting --{key}: {_nearest(key, ['config', *_names(parser)])}")


def _nearest(key: str, names: Sequence[str]) -> str:
    """The nearest name alone: there are hundreds."""
    hint = nearest(key, names)
    near = hint.partition("? ")[0] + "?" if hint.startswith("did you mean") else ""
    return f"{near} `hf-rlae train KIND --settings` lists them all".strip()


def _set_environment(given: Any) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{_ENVIRONMENT}={given!r}: expected names of environment variables with their values")
    os.environ.update({str(name): str(value) for name, value in given.items()})
