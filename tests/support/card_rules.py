"""The public rules for the head of a model card, and for files of results: what the Hub says about a card.

Sources: `modelcard.md`, `docs/hub/repositories-licenses.md` and the page "Evaluation Results" of the Hub's
documentation. The local Hub of the tests answers `ModelCard.validate` by them.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "etalab-2.0", "eupl-1.1", "agpl-3.0",
    "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0",
    "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
    "lgpl-lr", "deepfloyd-if-license", "llama2", "gemma", "unknown", "other",
}  # fmt: skip
PIPELINE_TAGS = {
    "text-generation", "text-classification", "token-classification", "question-answering", "summarization",
    "translation", "fill-mask", "feature-extraction", "sentence-similarity", "zero-shot-classification",
    "image-text-to-text", "any-to-any",
}  # fmt: skip
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
_FIELDS = {"dataset", "value", "verifyToken", "date", "source", "notes"}
_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+\Z")


def head_of(card: str) -> Any:
    """The YAML between the first two lines `---`."""
    match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


def faults_of_card(card: str) -> list[str]:
    """What the Hub would refuse in a card."""
    try:
        head = head_of(card)
    except yaml.YAMLError as error:
        return [str(error)]
    if not isinstance(head, dict | None):
        return ["the YAML metadata is not an object"]
    head = head or {}
    texts = ("library_name", "license", "pipeline_tag")
    faults = [f'"{name}" is not a string' for name in texts if not _is_text(head.get(name, "x"))]
    if head.get("license", "mit") not in LICENSES:
        faults.append(f'"license" is {head["license"]!r}, which is no identifier')
    if head.get("license") == "other" and "license_name" not in head:
        faults.append('"license_name" is missing')
    if head.get("pipeline_tag", "text-generation") not in PIPELINE_TAGS:
        faults.append(f'"pipeline_tag" is {head["pipeline_tag"]!r}')
    if head.get("base_model_relation", "adapter") not in RELATIONS:
        faults.append(f'"base_model_relation" is {head["base_model_relation"]!r}')
    tags = head.get("tags", [])
    if not isinstance(tags, list) or not all(map(_is_text, tags)):
        faults.append('"tags" is not a list of strings')
    for name in ("base_model", "datasets"):
        given = head.get(name, [])
        entries = given if isinstance(given, list) else [given]
        faults += [f'"{name}" has {entry!r}' for entry in entries if not _is_id(entry)]
    return faults + _faults_of_index(head.get("model-index", []))


def _faults_of_index(index: Any) -> list[str]:
    faults = []
    for model in index if isinstance(index, list) else [index]:
        if not isinstance(model, dict) or not _is_text(model.get("name")) or not isinstance(model.get("results"), list):
            return ['"model-index" needs a name and results']
        for result in model["results"]:
            if not _TYPE.match(str(result.get("task", {}).get("type", ""))):
                faults.append('"model-index" has a result without task.type')
            data = result.get("dataset", {})
            if not _TYPE.match(str(data.get("type", ""))) or not _is_text(data.get("name")):
                faults.append(f'"model-index" has the dataset {data!r}')
            for metric in result.get("metrics") or [{}]:
                if not _TYPE.match(str(metric.get("type", ""))) or "value" not in metric:
                    faults.append(f'"model-index" has the metric {metric!r}')
    return faults


def faults_of_results(text: str) -> list[str]:
    """What the Hub would refuse in a file of `.eval_results/`."""
    entries = yaml.safe_load(text)
    if not isinstance(entries, list):
        return ["not a list"]
    faults = []
    for entry in entries:
        data, source = entry.get("dataset", {}), entry.get("source")
        if not _is_id(data.get("id")) or "/" not in data["id"] or not _is_text(data.get("task_id")):
            faults.append(f"dataset: {data!r}")
        if isinstance(entry.get("value"), bool) or not isinstance(entry.get("value"), int | float):
            faults.append(f"value: {entry.get('value')!r}")
        if source is not None and not str(source.get("url", "")).startswith("http"):
            faults.append(f"source: {source!r}")
        if "date" in entry:
            datetime.datetime.fromisoformat(str(entry["date"]))
        faults += [f"unknown field {name}" for name in set(entry) - _FIELDS]
    return faults


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_id(value: Any) -> bool:
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True
