"""The parts that all model cards of this package share."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from hf_rlae.hub_ids import is_repo_id

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")
"""Packages whose versions a card lists."""


def is_hub_id(name: Any) -> bool:
    """Whether a model's name can be a Hub id: it has the form of one, and is not a path on this machine.

    Example:

    >>> is_hub_id("owner/name"), is_hub_id("/tmp")
    (True, False)
    """
    return is_repo_id(str(name)) and not os.path.exists(str(name))


def model_card(
    data: Mapping[str, Any],
    name: str,
    body: str,
    paper: Mapping[str, str],
    dataset_name: str | None = None,
) -> str:
    """A model card: the YAML head, the body, the versions of packages, and the paper.

    Args:
        data (`Mapping`): fields of `huggingface_hub.ModelCardData`; `None` leaves a field out.
        name (`str`): the title.
        body (`str`): Markdown between the title and the versions.
        paper (`Mapping`): its `title` and its arXiv `id`.
        dataset_name (`str`, *optional*): the Hub id of the dataset; a path on this machine is left out.

    Returns:
        `str`: Markdown with a YAML head.
    """
    datasets = [dataset_name] if dataset_name and not os.path.exists(dataset_name) else None
    head = ModelCardData(**data, datasets=datasets).to_yaml()
    versions = "\n".join(f"- {package}: {importlib.metadata.version(package)}" for package in PACKAGES)
    return f"""---
{head}
---
# {name}

{body.strip()}

## Versions

{versions}

## Paper

{paper["title"]}, arXiv {paper["id"]}.
"""


def all_tags(own: Iterable[str], added: str | Iterable[str] | None) -> list[str]:
    """The sorted tags of a card: the trainer's own, and those of a call of `create_model_card`."""
    return sorted({*own, *([added] if isinstance(added, str) else added or ())})
