"""Loads models and tokenizers from folders or the Hub, and refuses files that are not whole."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import cached_file, find_adapter_config_file

from hf_rlae.errors import ConfigError, HfRlaeError, MemberError, TokenizerError, first_sentence
from hf_rlae.extras import missing_packages
from hf_rlae.hub_ids import is_repo_id
from hf_rlae.hub_revisions import resolved
from hf_rlae.members.file_budget import (
    Fail,
    check_counts,
    check_download,
    check_shard_names,
    parameter_budget,
    weight_bytes,
)
from hf_rlae.members.hub_weights import bytes_on_hub, check_shards_on_hub
from hf_rlae.vocabulary import ByteVocabulary, vocabulary_hash

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "proxies")
_RUNS = "ax0 \n.é"
_REMEDY = "Load the model again from its source, or save it again"


def always_sees(model_type: str | None) -> bool:
    """Whether models of this type read images and text, and are no `AutoModelForCausalLM`."""
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and (
        model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )


def load_model(
    source: str,
    *,
    adapter_name: str | None = None,
    base_revision: str | None = None,
    check_files: bool = True,
    sees: bool | None = None,
    **options: Any,
) -> tuple[Any, str | None]:
    """Loads a causal language model, or an adapter with its base model, as a member.

    Args:
        source (`str`): a folder or Hub id, of a model or of adapters (`adapter_config.json` at the root, further
            adapters in folders of their names).
        adapter_name (`str`, *optional*): the adapter to load; `None` or `"default"` = the one at the root.
        base_revision (`str`, *optional*): of the adapter's base model; defaults to that of `adapter_config.json`.
        check_files (`bool`, defaults to `True`): whether to compare the config with the files and the free memory.
        sees (`bool`, *optional*): whether it is an `AutoModelForImageTextToText`; `None` for those that are no
            `AutoModelForCausalLM`.
        options: for `from_pretrained`.

    Returns:
        The model, and of an adapter the revision of its base model (see `hub_revisions.resolved`).

    Raises:
        MemberError: the files are missing, damaged, or do not hold what their config declares.
        ConfigError: there is no such adapter.
    """
    owner = f"member {source}"
    own = dict(options)
    with readable(source, owner):
        adapter = _find_adapter(source, adapter_name, options)
        _check_packages(owner, adapter is not None, options.get("device_map"))
        base, base_revision = _base_of(adapter, source, base_revision, options)
        if adapter is not None and base == source:  # transformers would add the adapter at the root by itself
            own["adapter_kwargs"] = {"subfolder": ".none"}
        elif adapter is not None:
            own.update(revision=base_revision, subfolder="")
        auto_class = _auto_class(base, own, owner, sees)
    if check_files and bytes_on_hub(base, own):  # before they are downloaded
        load_skeleton(base, as_loaded=True, sees=sees, **own)
    with readable(source, owner):
        load = auto_class.from_pretrained
        model, _ = load_whole(load, base, owner, MemberError, check_files=check_files, **own)
        if adapter is not None:
            _load_adapter(model, source, adapter_name, options, owner)
    return model, base_revision


def load_skeleton(
    source: str,
    *,
    base_revision: str | None = None,
    check_files: bool = True,
    as_loaded: bool = False,
    sees: bool | None = None,
    **options: Any,
) -> tuple[Any, str | None]:
    """The modules of a causal language model without its weights, on the meta device; no weight file is read.

    Args:
        source (`str`), base_revision (`str`, *optional*), check_files (`bool`, defaults to `True`), sees (`bool`,
            *optional*): see `load_model`. Of adapters, it is their base model.
        as_loaded (`bool`, defaults to `False`): whether the memory must hold the weights, because they come next.
        options: as for `AutoModelForCausalLM.from_pretrained`; those of the weights are ignored.

    Returns:
        As `load_model`.

    Raises:
        MemberError: `config.json` is missing, damaged, or declares more than its files hold.
    """
    owner = f"member {source}"
    with readable(source, owner):
        adapter = _find_adapter(source, None, options)
        base, base_revision = _base_of(adapter, source, base_revision, options)
        own = options if base == source else {**options, "revision": base_revision, "subfolder": ""}
        auto_class = _auto_class(base, own, owner, sees)
    hub = {name: own[name] for name in (*_HUB_OPTIONS, "revision", "subfolder") if own.get(name) is not None}
    trust = bool(own.get("trust_remote_code"))
    dtype = own.get("dtype")
    later = own if as_loaded else {**own, "device_map": "meta"}  # the memory counts when the weights are loaded
    with readable(source, owner), _budget(base, later, _fail(owner, MemberError)) if check_files else nullcontext():
        config = own.get("config") or AutoConfig.from_pretrained(base, trust_remote_code=trust, **hub)
        with torch.device("meta"):
            model = auto_class.from_config(
                config, trust_remote_code=trust, **({} if dtype in (None, "auto") else {"dtype": dtype})
            )
        with suppress(OSError):  # many models have no generation config
            model.generation_config = GenerationConfig.from_pretrained(base, **hub)
    return model, base_revision


def load_tokenizer(
    source: str,
    *,
    base_revision: str | None = None,
    expected_hash: str | None = None,
    sees: bool | None = None,
    **options: Any,
) -> Any:
    """Loads the tokenizer of a member; one with adapters may have it in the folder of its base model.

    Args:
        source (`str`), base_revision (`str`, *optional*): see `load_model`.
        expected_hash (`str`, *optional*): the `vocabulary_hash` that the tokenizer must have.
        sees (`bool`, *optional*): whether to load its processor, which has the tokenizer; see `load_model`.
        options: for `from_pretrained`.

    Raises:
        TokenizerError: the tokenizer fails on a plain text, or is not the expected one.
        MemberError: the files are missing or damaged.
    """
    options = {"trust_remote_code": False, **options}
    with readable(source, f"member {source}"), tokenizer_failures(f"member {source}"):
        kind = None
        if os.path.isdir(source) or is_repo_id(source):
            kind = _model_type(source, options, f"member {source}")
        base, adapter = source, _find_adapter(source, None, options)
        if adapter is not None:
            base, base_revision = _base_of(adapter, source, base_revision, options)
        if base != source and sees is None:
            kind = _model_type(base, {**options, "revision": base_revision}, f"member {source}")
        sees = always_sees(kind) if sees is None else sees
        load: Any = (AutoProcessor if sees else AutoTokenizer).from_pretrained
        try:
            loaded = load(source, **options)
        except (OSError, ValueError):
            if adapter is None:
                raise
            loaded = load(base, **{**options, "revision": base_revision})
        tokenizer: Any = getattr(loaded, "tokenizer", None) if isinstance(loaded, ProcessorMixin) else loaded
        try_tokenizer(tokenizer)
        if expected_hash is not None and vocabulary_hash(ByteVocabulary(tokenizer).pieces) != expected_hash:
            raise TokenizerError(
                f"the ids of member {source} stand for other text than when the ensemble was saved: its tokenizer has "
                "changed, so what the policy and the settings were made for no longer holds. Load the former commit or "
                "folder of that member, or pass `members=[...]` to use the new one anyway"
            )
    return loaded


def try_tokenizer(tokenizer: Any) -> None:
    """Encodes short texts with which a tokenizer fails whose regular expression backtracks without an end."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for character in _RUNS:
        (tokenizer.tokenize if backend is None else backend.encode)(64 * character + "!")


def load_whole(
    load: Callable[..., Any],
    source: Any,
    owner: str,
    error: type[HfRlaeError],
    *,
    check_files: bool = True,
    may_miss: tuple[str, ...] = (),
    replaced: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Calls a `from_pretrained`, and raises if the files do not hold every tensor of the model.

    transformers fills missing tensors with random numbers and logs a warning.

    Args:
        load (`Callable`): the `from_pretrained` of a model or an Auto class.
        source: a folder or Hub id.
        owner (`str`): the start of messages, such as `"member NAME"`.
        error (`type`): the class of errors.
        check_files (`bool`, defaults to `True`): whether to compare the config with the files and the free memory
            before anything is allocated.
        may_miss (`tuple[str, ...]`): the beginnings of names of tensors that are not used.
        replaced (`dict[str, str]`, *optional*): beginnings of names, new and old. Files that hold a tensor with the old
            one, written by an older version, may miss those with the new one, which are initialised.
        options: for `load`. `trust_remote_code` is `False` unless it is given, because transformers asks on standard
            input where it is not given.

    Returns:
        The model, and the loading info of transformers.
    """
    folder = Path(source, options.get("subfolder") or "")
    if folder.is_dir() and not (folder / "config.json").is_file() and not {"config", "gguf_file"} & set(options):
        inside = sorted(str(path.parent) for path in folder.glob("*/adapter_config.json"))
        hint = f"; adapters are in {inside}: give one of these folders." if inside else ""
        raise FileNotFoundError(f"there is no config.json in {folder}{hint}")  # else it would be made of defaults
    options = {"trust_remote_code": False, **options}
    is_forgiving = bool(options.setdefault("ignore_mismatched_sizes", False))
    with _budget(source, options, _fail(owner, error)) if check_files else nullcontext():
        model, info = load(source, output_loading_info=True, **{**options, "ignore_mismatched_sizes": True})
    held = info["unexpected_keys"]
    may_miss += tuple(new for new, old in (replaced or {}).items() if any(name.startswith(old) for name in held))
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(may_miss))
    if missing:
        raise error(
            f"{owner} is not whole: its files have no {missing[0]}"
            + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else "")
            + f" of {type(model).__name__}, which transformers fills with random numbers. {_REMEDY}; a model of "
            "another kind (an encoder, a model without its head) cannot be used"
        )
    if info["mismatched_keys"] and not is_forgiving:
        name, held, wanted = sorted(info["mismatched_keys"], key=str)[0]
        raise error(
            f"{owner} is not whole: {name} has the shape {tuple(held)} in its files and {tuple(wanted)} by its config. "
            f"{_REMEDY}"
        )
    return model, info


def _fail(owner: str, error: type[HfRlaeError]) -> Fail:
    return lambda reason: error(f"{owner} cannot be loaded: {reason} (`check_files=False` skips this check)")


@contextmanager
def _budget(source: Any, options: dict[str, Any], fail: Fail) -> Iterator[None]:
    """Checks the files of a folder before, and the parameters that the model declares while it is built."""
    hub = {name: options[name] for name in (*_HUB_OPTIONS, "revision", "subfolder") if options.get(name) is not None}
    folder = Path(source, options.get("subfolder") or "")
    config = _read_config(source, folder, hub, fail)
    on_hub = 0 if folder.is_dir() else bytes_on_hub(source, options)
    if folder.is_dir():
        check_shard_names(folder, fail)
    elif on_hub:
        check_shards_on_hub(source, hub, fail)
    check_counts(config, weight_bytes(folder) if folder.is_dir() else on_hub, fail)

    def held() -> int:  # the files of a Hub id have been downloaded when the first parameter is made
        if folder.is_dir():
            return weight_bytes(folder)
        path = cached_file(str(source), "config.json", **{**hub, "local_files_only": True, "force_download": False})
        return (0 if path is None else weight_bytes(Path(path).parent)) or on_hub

    is_packed = bool(options.get("gguf_file")) or "quantization_config" in config
    is_packed = is_packed or getattr(options.get("config"), "quantization_config", None) is not None
    checks_memory = options.get("device_map") in (None, "cpu") and torch.get_default_device().type == "cpu"
    # of weights that are not there yet, the dtype may be unknown, and quantised ones take less
    checks_memory = checks_memory and not (on_hub and (is_packed or not _tells_dtype(config, options)))
    if checks_memory:
        check_download(on_hub, fail)
    with parameter_budget(held, fail, is_packed=is_packed, checks_memory=checks_memory):
        yield


def _auto_class(source: str, options: dict[str, Any], owner: str, sees: bool | None) -> Any:
    """The Auto class of a member."""
    kind = _model_type(source, options, owner)
    return AutoModelForImageTextToText if sees or always_sees(kind) else AutoModelForCausalLM


def _model_type(source: str, options: dict[str, Any], owner: str) -> str | None:
    """The type in `config.json`; raises `MemberError` for a saved ensemble or policy, which Auto classes load too."""
    hub = {name: options[name] for name in (*_HUB_OPTIONS, "revision", "subfolder") if options.get(name) is not None}
    folder = Path(source, options.get("subfolder") or "")
    fail = _fail(owner, MemberError)
    config = _read_config(source, folder, hub, fail)
    try:
        check_counts(config, 0, fail)  # tokenizers are loaded with a config, too
    except MemberError:
        check_counts(config, weight_bytes(folder) if folder.is_dir() else 0, fail)
        raise
    kind = config.get("model_type")
    if str(kind).startswith("hf_rlae"):
        raise MemberError(
            f"{owner} has model_type={kind!r}, and a member is one language model; give the members of that ensemble, "
            "one by one"
        )
    return getattr(options.get("config"), "model_type", kind)


def _tells_dtype(config: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    return options.get("dtype") not in (None, "auto") or bool(config.get("dtype") or config.get("torch_dtype"))


def _read_config(source: Any, folder: Path, hub: dict[str, Any], fail: Fail) -> dict[str, Any]:
    """The content of `config.json`; empty if there is none."""
    path: str | Path | None = folder / "config.json"
    if not folder.is_dir():
        path = cached_file(str(source), "config.json", _raise_exceptions_for_missing_entries=False, **hub)
    if path is None or not os.path.isfile(path):
        return {}
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise fail(f"config.json is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise fail(f"config.json is a {type(config).__name__}, not an object with fields")
    return config


def _find_adapter(source: str, name: str | None, options: dict[str, Any]) -> str | None:
    """The path of the `adapter_config.json` of a named adapter; `None` if `source` holds no adapters."""
    hub = {key: options[key] for key in (*_HUB_OPTIONS, "revision") if options.get(key) is not None}
    subfolder = options.get("subfolder") or ""
    if not os.path.isdir(source) and not is_repo_id(source):
        return None
    root = find_adapter_config_file(source, subfolder=subfolder, **hub)
    if root is None or name in (None, "default"):
        return root
    inside = None
    if name is not None and is_repo_id(name) and "/" not in name:
        inside = find_adapter_config_file(source, subfolder=os.path.join(subfolder, name), **hub)
    if inside is None:
        known = ["default", *sorted(path.parent.name for path in Path(root).parent.glob("*/adapter_config.json"))]
        raise ConfigError(f"adapter_name={name!r}: member {source} has the adapters {known}; give one of them")
    return inside


def _base_of(
    adapter: str | None, source: str, revision: str | None, options: Mapping[str, Any]
) -> tuple[str, str | None]:
    """The base model of an adapter, a folder relative to the adapter's if there is one, and its revision on the Hub."""
    if adapter is None or Path(source, "config.json").is_file():
        return source, None
    try:
        config = json.loads(Path(adapter).read_text(encoding="utf-8"))
        base, own_revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError, RecursionError) as error:
        raise MemberError(f"member {source} cannot be loaded: adapter_config.json is not a JSON object") from error
    if not isinstance(base, str) or not base:
        raise MemberError(
            f"member {source} is an adapter without a base model: set base_model_name_or_path in its "
            "adapter_config.json, or load both and pass the pair (PeftModel, tokenizer)"
        )
    beside = Path(adapter).parent / base
    if beside.is_dir():
        return os.path.normpath(beside), None
    if not is_repo_id(base) and not os.path.isabs(base):
        raise MemberError(
            f"member {source} is an adapter whose base model {base!r} is not at that place beside it; move it there, "
            "or load both and pass the pair (PeftModel, tokenizer)"
        )
    own_revision = own_revision if isinstance(own_revision, str) else None
    return base, resolved(base, revision or own_revision, options)


def _load_adapter(model: Any, source: str, name: str | None, options: dict[str, Any], owner: str) -> None:
    hub = {key: options[key] for key in (*_HUB_OPTIONS, "revision") if options.get(key) is not None}
    folders = [options.get("subfolder") or "", "" if name in (None, "default") else str(name)]
    info = model.load_adapter(
        source, adapter_name=name or "default", adapter_kwargs={**hub, "subfolder": os.path.join(*folders).strip("/")}
    )
    wrong = sorted(info.missing_keys) + sorted(key for key, *_ in info.mismatched_keys)
    if wrong:
        raise MemberError(f"{owner} is not whole: the files of its adapter have no (whole) {wrong[0]}. {_REMEDY}")
    model.eval()


@contextmanager
def readable(source: str, owner: str, failure: type[HfRlaeError] = MemberError) -> Iterator[None]:
    """Turns errors of reading files into one of ours that names the member or policy."""
    try:
        yield
    except (HfRlaeError, MemoryError):
        raise
    except ImportError as error:
        raise failure(f"{owner} needs a missing package: {first_sentence(error)}") from error
    except Exception as error:  # files of others can make any library raise anything
        reason, hints = first_sentence(error), "check the spelling, the revision and the access to the Hub"
        if "trust_remote_code" in str(error):
            hints = "pass trust_remote_code=True to run its own code, if you trust it"
        elif not os.path.isdir(source):
            folder = f"there is no such folder{_near_folder(source)}"
            reason = f"{folder}, and as a Hub id: {reason}" if is_repo_id(source) else f"{folder}."
        raise failure(
            f"{owner} cannot be loaded: {reason} Give a folder with a model's config.json, weights and tokenizer, or "
            f"the id of such a model on the Hub; {hints}"
        ) from error


def _check_packages(owner: str, is_adapter: bool, device_map: Any) -> None:
    """Raises `MemberError` for packages that transformers would miss after it has loaded the base model."""
    wanted = (("the adapter of ", is_adapter, "peft"), ("the device_map of ", device_map is not None, "accelerate"))
    for what, is_needed, package in wanted:
        if is_needed and (message := missing_packages(f"{what}{owner}", [package], "peft")) is not None:
            raise MemberError(message)


def _near_folder(source: str) -> str:
    """A suggestion, if a folder beside a missing one has nearly its name."""
    place, name = os.path.split(os.path.normpath(source))
    try:
        beside = [entry.name for entry in os.scandir(place or ".") if entry.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(name, beside, n=1)
    return f" (did you mean {os.path.join(place, near[0])}?)" if near else ""


@contextmanager
def tokenizer_failures(owner: str) -> Iterator[None]:
    """Turns errors of the tokenizers library into a `TokenizerError`: panics, which are no `Exception`, and others."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException" and type(error) is not Exception:
            raise
        raise TokenizerError(
            f"the tokenizer of {owner} fails: {first_sentence(error)} Its tokenizer.json (often a regular "
            "expression in it) cannot be used"
        ) from error
