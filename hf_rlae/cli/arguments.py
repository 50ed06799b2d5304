"""Arguments that several commands share, and their checks. Nothing here is slow to import."""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from hf_rlae.checks import COUNT, NOT_NEGATIVE, POSITIVE, Bounds
from hf_rlae.embedded import embedded_folder, is_embedded
from hf_rlae.errors import ConfigError, MemberError
from hf_rlae.extras import missing_packages

HUB = "https://huggingface.co"
ENSEMBLE = "hf_rlae_ensemble"
KINDS = {ENSEMBLE: "ensemble", "hf_rlae_policy": "policy"}
"""What is saved in a folder, by the `model_type` of `EnsembleConfig` and `PolicyConfig`, whose imports are slow."""


def add_members(parser: argparse.ArgumentParser) -> None:
    """Adds what decodes: members, or one saved ensemble."""
    parser.add_argument(
        "members",
        nargs="+",
        metavar="MEMBER",
        help="a folder with a model and its tokenizer, a Hub id, or demo:NAME (`hf-rlae policies` lists the names); or "
        "a single saved ensemble, folder or Hub id",
    )


def add_ensemble(parser: argparse.ArgumentParser) -> None:
    """Adds how members are weighed and mixed."""
    ensemble = parser.add_argument_group("ensemble", "By default those of a saved ensemble, if one is given.")
    weights = "one number per member, such as 0.7,0.3 (default: equal)"
    ensemble.add_argument("--weights", type=_weights, metavar="W,W", help=weights)
    policy = (
        "gives the weights: uniform, entropy, perplexity, or a learned policy: its folder, Hub id, demo:different or "
        "demo:shared"
    )
    ensemble.add_argument("--policy", metavar="NAME", help=policy)
    length = "tokens that share one weight vector (default: 8, or the learned policy's own)"
    ensemble.add_argument("--span-length", type=positive_int, metavar="N", help=length)
    mixing = (
        "linear (mixture of probabilities), log (product of experts), power (between them), contrast (the first member "
        "minus the others) or guidance (one model, given twice, with and without its prompt) (default: linear)"
    )
    ensemble.add_argument("--mixing", metavar="NAME", help=mixing)
    kwargs = "settings of --mixing in JSON, such as '{\"alpha\": 0.1}'"
    ensemble.add_argument("--mixing-kwargs", type=_settings, metavar="JSON", help=kwargs)
    grain = "what is written if tokenizers differ: token, character, byte, common or auto (default: token)"
    ensemble.add_argument("--grain", metavar="NAME", help=grain)
    warp = "where temperature and top-p act: on the mixture, or on each of the members (default: mixture)"
    ensemble.add_argument("--warp", metavar="NAME", help=warp)
    unit = "what weights are a share of if tokenizers differ: token or byte (default: token)"
    ensemble.add_argument("--weight-unit", metavar="NAME", help=unit)


def add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int = 128) -> Any:
    """Adds how tokens are chosen, and returns their group.

    Args:
        parser (`argparse.ArgumentParser`): of the command.
        max_new_tokens (`int`, defaults to 128): the default of that option.
    """
    decoding = parser.add_argument_group("decoding")
    tokens = f"maximum number of new tokens (default: {max_new_tokens})"
    decoding.add_argument("--max-new-tokens", type=positive_int, default=max_new_tokens, metavar="N", help=tokens)
    sample = "sample every token from the mixture (default: greedy decoding)"
    decoding.add_argument("--sample", "--do-sample", action="store_true", help=sample)
    decoding.add_argument(
        "--temperature", type=number(float, POSITIVE), metavar="T", help="with --sample (default: 1.0)"
    )
    decoding.add_argument(
        "--top-p", type=number(float, Bounds(above=0, most=1)), metavar="P", help="with --sample (default: 1.0)"
    )
    top_k = "with --sample, the number of most likely tokens that are kept (default: all)"
    decoding.add_argument("--top-k", type=positive_int, metavar="K", help=top_k)
    decoding.add_argument("--seed", type=seed, metavar="N", help="makes samples repeatable")
    return decoding


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds how members are loaded."""
    loading = parser.add_argument_group("loading")
    loading.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the members (default: auto, as they were saved)",
    )
    loading.add_argument(
        "--device",
        metavar="DEVICE",
        help="such as cpu, cuda or cuda:1; auto lets accelerate place the members (default: an accelerator if there is "
        "one, else cpu)",
    )
    revisions = "one branch, tag or commit per member (or that of the saved ensemble); leave an entry empty for the "
    loading.add_argument("--revisions", type=_revisions, metavar="R,R", help=f"{revisions}default")
    template = "a Jinja chat template for all members, instead of each member's own"
    loading.add_argument("--chat-template", metavar="FILE", help=template)
    outside = "load members in folders outside of the saved ensemble's own, whose config names them"
    loading.add_argument("--allow-outside", action="store_true", help=outside)


def check_shared(args: argparse.Namespace) -> None:
    """Raises for arguments of this module that do not fit together, and for missing folders.

    Raises:
        ConfigError: lists that do not have one entry per member, weights and a policy, sampling options without
            `--sample`, a revision of a folder, a saved ensemble among members, a chat template that cannot be read.
        MemberError: a path that is not a folder.
    """
    saved = [saved_ensemble(source) for source in args.members]
    if any(saved) and len(saved) > 1:
        name = next(source for source, config in zip(args.members, saved, strict=True) if config)
        raise ConfigError(f"{name} is a saved ensemble, not a member; give it alone, or give its members")
    known = (saved[0] or {}).get("members") or args.members
    for option, values, names in (("--weights", args.weights, known), ("--revisions", args.revisions, args.members)):
        # one Hub id may name an ensemble of any number of members
        if values is not None and len(values) != len(names) and not (option == "--weights" and _may_be_saved(args)):
            given = f"{len(values)} given for {len(names)} member{'s' * (len(names) != 1)}"
            raise ConfigError(f"{option}: {given}; give one per member, separated by commas")
    if args.weights is not None and args.policy is not None:
        raise ConfigError("--weights and --policy both say who gives the weights; leave one of them out")
    if args.mixing_kwargs is not None and args.mixing is None:
        raise ConfigError("--mixing-kwargs are settings of a mixing; add --mixing, or leave them out")
    for option, value in (("--temperature", args.temperature), ("--top-p", args.top_p), ("--top-k", args.top_k)):
        if value is not None and not args.sample:
            raise ConfigError(f"{option} has no effect on greedy decoding; add --sample, or leave it out")
    if args.chat_template is not None:
        args.chat_template = _read_template(args.chat_template)
    for member, revision in zip(args.members, args.revisions or [None] * len(args.members), strict=True):
        _check_member(member, revision)
    if args.policy is None or os.path.isdir(embedded_folder(args.policy, "policies")):
        return
    if _looks_like_path(args.policy):
        raise ConfigError(
            f"--policy: {args.policy or repr(args.policy)} is not a folder; give the name of a policy, or the folder "
            "or Hub id of a learned one"
        )


def _may_be_saved(args: argparse.Namespace) -> bool:
    return len(args.members) == 1 and not os.path.isdir(embedded_folder(args.members[0], "members"))


def saved_ensemble(source: str) -> dict[str, Any] | None:
    """The config of an ensemble that was saved in a folder, or `None` if this is no such folder."""
    config = _saved_config(source)
    return config if config.get("model_type") == ENSEMBLE else None


def saved_kind(folder: str) -> str:
    """`"ensemble"` or `"policy"`, by what was saved in a folder.

    Raises:
        ConfigError: it holds neither.
    """
    kind = _saved_config(folder).get("model_type")
    if kind not in KINDS:
        raise ConfigError(
            f"{folder} holds neither a saved ensemble nor a policy; give a folder that `save_pretrained` of one wrote"
        )
    return KINDS[kind]


def _saved_config(folder: str) -> dict[str, Any]:
    try:
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and isinstance(config.get("model_type"), str) else {}


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--chat-template: {path} cannot be read: {error}; give a Jinja file in UTF-8") from error


def _check_member(member: str, revision: str | None) -> None:
    if os.path.isdir(embedded_folder(member, "members")):
        if revision:
            raise ConfigError(
                f"--revisions: {member} is a folder, which has no revisions; leave its entry empty, or give a Hub id"
            )
    elif _looks_like_path(member):
        raise MemberError(
            f"{member or repr(member)} is not a folder; give the folder with the model's config.json, weights and "
            "tokenizer, or a Hub id"
        )


def check_text(text: str, option: str) -> None:
    """Raises `ConfigError` for an argument whose bytes are not UTF-8; Python keeps them as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{option}: {text[error.start]!a} at character {error.start} is not part of any text; give the option "
            "in UTF-8, for example through `iconv -f LATIN1 -t UTF-8`"
        ) from error


def check_output(path: str, option: str) -> None:
    """Raises `ConfigError` for a file that cannot be written."""
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not path:
        raise ConfigError(f"{option}: {path or repr(path)} is not a file name; give one")
    if not os.path.isdir(folder):
        raise ConfigError(f"{option}: there is no folder {folder} for {path}; create it first")
    is_device = os.path.exists(path) and not os.path.isfile(path)
    if not os.access(path if is_device else folder, os.W_OK):
        raise ConfigError(f"{option}: the folder {folder} is not writable; give a file in another one")


def check_packages(what: str, packages: Sequence[str], extra: str) -> None:
    """Raises `ConfigError` if optional packages are not installed.

    Args:
        what (`str`): the command or option that needs them.
        packages (`Sequence[str]`): by the names under which they are imported.
        extra (`str`): of `hf_rlae`, which installs them.
    """
    if (message := missing_packages(what, packages, extra)) is not None:
        raise ConfigError(message)


def _looks_like_path(name: str) -> bool:
    """Whether a name cannot be a Hub id."""
    is_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1
    return is_path or not name or os.path.exists(name)


def hub_sources(args: argparse.Namespace) -> list[str]:
    """What the arguments of a command load from folders or the Hub: members, and a learned policy."""
    sources = [*args.members, *([args.policy] if "/" in (args.policy or "") else [])]
    return [source for source in sources if not is_embedded(source)]


def stay_offline_without_network(sources: Sequence[str]) -> None:
    """Switches the Hub client to offline mode before its import; otherwise it retries to connect for a minute."""
    if not all(map(os.path.isdir, sources)) and _has_no_network():
        os.environ["HF_HUB_OFFLINE"] = "1"


def check_hub(what: str) -> None:
    """Raises `ConfigError` if a command that needs the Hub cannot reach it."""
    if _has_no_network():
        raise ConfigError(
            f"{what}: the Hub ({os.environ.get('HF_ENDPOINT') or HUB}) cannot be reached, because its name has no "
            "address here; check the network, and HF_ENDPOINT if you have set it"
        )


def _has_no_network() -> bool:
    """Whether the Hub's name has no address. Not asked if the user is offline on purpose, or behind a proxy."""
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT") or HUB).hostname, None)
    except OSError:
        return True
    return False


def _weights(text: str) -> list[float]:
    """One weight per member, separated by commas."""
    weight = number(float, NOT_NEGATIVE)
    values = [weight(part) for part in text.split(",")]
    if not any(values):
        raise argparse.ArgumentTypeError(f"{text!r}: at least one weight must be above 0")
    return values


def _settings(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object, such as {{"alpha": 0.1}}')
    return found


def _revisions(text: str) -> list[str | None]:
    return [part.strip() or None for part in text.split(",")]


def number(kind: type, allowed: Bounds) -> Callable[[str], Any]:
    """A type of an argument: a number within bounds.

    Args:
        kind (`type`): `int` or `float`.
        allowed (`Bounds`): what is accepted.
    """

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # never within bounds
        if not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return parse


positive_int = number(int, COUNT)
seed = number(int, Bounds(0, 2**32 - 1, is_whole=True))
