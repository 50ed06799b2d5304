"""The files of an ensemble's tokenizer: what it is made of, and where the members' tokenizers are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from hf_rlae.ensemble.member_places import find_members, is_folder
from hf_rlae.ensemble.saved_config import load_config
from hf_rlae.errors import ConfigError, TokenizerError
from hf_rlae.files import write_whole
from hf_rlae.members.model_files import load_tokenizer, readable
from hf_rlae.remote_code import MODULE, write_code
from hf_rlae.vocabulary.grain import GRAINS
from hf_rlae.vocabulary.round_trip import FORMS

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZERS_FOLDER = "tokenizers"
"""The folder of the members' tokenizers, if they are saved with the ensemble's."""
SETTINGS: dict[str, type] = {
    "padding_side": str,
    "truncation_side": str,
    "model_max_length": int,
    "split_special_tokens": bool,
    "clean_up_tokenization_spaces": bool,
    "pad_token": str,
    "chat_template": str,
}
"""What a user may have set in an ensemble's tokenizer, and the types of the values."""

_HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
_MOST_PADDING = 2**20
"""Ids of a member beyond those of its tokenizer, above which its files are refused."""


@dataclass
class TokenizerParts:
    """What the tokenizer of an ensemble is made of.

    Attributes:
        tokenizers (`list[PreTrainedTokenizerBase]`): the members'.
        names (`list[str]`): the members' names.
        sizes (`list[int]`): the number of ids of each member's model.
        grain (`str` or `None`): of the union vocabulary; `None` if the members share one tokenizer.
        form (`str` or `None`): the Unicode form of texts.
        settings (`dict`): attributes of the tokenizer, see `SETTINGS`.
        vocabulary_hash (`str` or `None`): see `hf_rlae.vocabulary.vocabulary_hash`; `None` if no bytes are known.
    """

    tokenizers: list[Any]
    names: list[str]
    sizes: list[int]
    grain: str | None = None
    form: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    vocabulary_hash: str | None = None


def own_settings(tokenizer: Any) -> dict[str, Any]:
    """The attributes of an ensemble's tokenizer that are saved."""
    settings = {name: getattr(tokenizer, name) for name in SETTINGS}
    if settings["chat_template"] == tokenizer.first_template:  # else a template for all members
        del settings["chat_template"]
    return settings


def write_tokenizer(parts: TokenizerParts, folder: Any, *, with_members: bool) -> list[str]:
    """Saves the tokenizer of an ensemble.

    Args:
        parts (`TokenizerParts`): what it is made of.
        folder (`str` or `os.PathLike`): created if it does not exist.
        with_members (`bool`): whether to save the members' tokenizers. Without them it is loaded from the places of the
            members, which the ensemble's `config.json` beside it names.

    Returns:
        `list[str]`: the paths of the files.
    """
    target = Path(folder)
    write_code(target)
    saved: list[str] = []
    if with_members:
        for index, tokenizer in enumerate(parts.tokenizers):
            saved += tokenizer.save_pretrained(target / TOKENIZERS_FOLDER / str(index))
    names = [Path(name).name if is_folder(name) else name for name in parts.names]  # paths may be private
    content = {
        "tokenizer_class": "EnsembleTokenizer",
        "auto_map": {"AutoTokenizer": [None, f"{MODULE}.EnsembleTokenizer"]},
        "members": [{"name": name, "vocab_size": size} for name, size in zip(names, parts.sizes, strict=True)],
        "has_member_files": with_members,
        "grain": parts.grain,
        "form": parts.form,
        "vocabulary_hash": parts.vocabulary_hash,
        **parts.settings,
    }
    path = target / TOKENIZER_CONFIG
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return [*saved, str(path)]


def read_tokenizer(
    source: str, options: Mapping[str, Any], members: Sequence[Any] | None = None, allow_outside: bool = False
) -> TokenizerParts:
    """Reads what `write_tokenizer` or an ensemble has saved.

    Args:
        source (`str`): a folder or Hub id.
        options: of the Hub, `subfolder` and `trust_remote_code`.
        members (`Sequence[str]`, *optional*): folders or Hub ids in place of the saved ones.
        allow_outside (`bool`, defaults to `False`): whether members may be folders outside of the ensemble's own.

    Raises:
        TokenizerError: no saved tokenizer of an ensemble, or one that cannot be read.
        ConfigError, MemberError: a member's tokenizer that is not there or cannot be loaded.
    """
    hub = {name: options[name] for name in _HUB_OPTIONS if options.get(name) is not None}
    saved = _checked(source, _read_json(source, hub))
    shared = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    shared["trust_remote_code"] = bool(options.get("trust_remote_code"))
    entries = saved["members"]
    if members is not None:
        if len(members) != len(entries):
            raise ConfigError(f"members has {len(members)} entries for {len(entries)} members; give one for each")
        tokenizers = [load_tokenizer(os.fspath(place), **shared) for place in members]
    elif saved["has_member_files"]:
        inside = "/".join(filter(None, [hub.get("subfolder"), TOKENIZERS_FOLDER]))
        own = {**shared, **({"revision": hub["revision"]} if "revision" in hub else {})}
        tokenizers = [load_tokenizer(source, subfolder=f"{inside}/{index}", **own) for index in range(len(entries))]
    else:
        config = load_config(source, dict(hub))
        if len(config.members or []) != len(entries):
            raise _damaged(source, f"it has {len(entries)} members, and config.json {len(config.members or [])}")
        named = dict(enumerate(config.members or []))
        places = find_members(named, source, hub.get("subfolder") or "", allow_outside, hub).values()
        revisions = config.revisions or [None] * len(places)
        tokenizers = [
            load_tokenizer(place, revision=revision, **shared)
            for place, revision in zip(places, revisions, strict=True)
        ]
    for entry, tokenizer in zip(entries, tokenizers, strict=True):
        if entry["vocab_size"] > len(tokenizer) + _MOST_PADDING:
            raise _damaged(source, f"member {entry['name']} has vocab_size={entry['vocab_size']}")
    return TokenizerParts(
        tokenizers,
        [entry["name"] for entry in entries],
        [entry["vocab_size"] for entry in entries],
        saved["grain"],
        saved["form"],
        {name: saved[name] for name in SETTINGS if saved.get(name) is not None},
        saved["vocabulary_hash"],
    )


def _read_json(source: str, hub: Mapping[str, Any]) -> Any:
    with readable(source, f"the tokenizer of {source}", TokenizerError):
        path = cached_file(source, TOKENIZER_CONFIG, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            raise TokenizerError(
                f"{source} has no {TOKENIZER_CONFIG}, so it holds no tokenizer of an ensemble; load the ensemble with "
                "`EnsembleForCausalLM.from_pretrained`, whose `tokenizer` it is, and save it again"
            )
        return json.loads(Path(path).read_text(encoding="utf-8"))


def _checked(source: str, saved: Any) -> dict[str, Any]:
    """The content of the file; `TokenizerError` for anything that `write_tokenizer` does not write."""
    if not isinstance(saved, dict) or saved.get("tokenizer_class") != "EnsembleTokenizer":
        kind = saved.get("tokenizer_class") if isinstance(saved, dict) else type(saved).__name__
        raise _damaged(source, f"it has tokenizer_class={kind!r:.80}, which is no tokenizer of an ensemble")
    entries = saved.get("members")
    is_fine = isinstance(entries, list) and bool(entries)
    for entry in entries if isinstance(entries, list) else ():
        size = entry.get("vocab_size") if isinstance(entry, dict) else None
        is_fine &= isinstance(size, int) and size > 0 and isinstance(entry.get("name"), str)
    if not is_fine:
        raise _damaged(source, "its members must be a list of objects with name and vocab_size")
    for name, known in (("grain", GRAINS), ("form", FORMS)):
        if saved.setdefault(name, None) not in (None, *known):
            raise _damaged(source, f"it has {name}={saved[name]!r:.80}")
    for name, kind in {**SETTINGS, "vocabulary_hash": str, "has_member_files": bool}.items():
        if not isinstance(saved.setdefault(name, None), kind | None):
            raise _damaged(source, f"it has {name}={saved[name]!r:.80}")
    return saved


def _damaged(source: str, reason: str) -> TokenizerError:
    return TokenizerError(
        f"the tokenizer of {source} cannot be loaded: {TOKENIZER_CONFIG} cannot be used: {reason}; save the ensemble "
        "again"
    )
