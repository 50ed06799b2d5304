"""What a card says, and how it is rendered."""

from __future__ import annotations

import importlib.metadata
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_rlae.cards.evaluations import Evaluation, model_index
from hf_rlae.cards.writing import MARK
from hf_rlae.errors import one_line
from hf_rlae.hub_ids import is_hub_id

TEMPLATE = Path(__file__).with_name("card.md.jinja")
"""The template of all cards."""
PACKAGES = ("hf_rlae", "torch", "transformers", "trl", "peft", "datasets", "tokenizers")
"""Packages whose versions a card lists, if they are installed."""


@dataclass(frozen=True)
class CardMember:
    """A model that another one is made of.

    Args:
        name (`str`): a Hub id, or a name without folders.
        commit (`str`, *optional*): of a model on the Hub.
    """

    name: str
    commit: str | None = None

    @property
    def is_on_hub(self) -> bool:
        """Whether the name is a Hub id with its owner."""
        return "/" in self.name and is_hub_id(self.name)

    @property
    def shown(self) -> str:
        """The name in a table."""
        return f"[{self.name}](https://huggingface.co/{self.name})" if self.is_on_hub else code(self.name)

    @property
    def commit_shown(self) -> str:
        """The commit in a table."""
        return code(self.commit) if self.commit else "not pinned" if self.is_on_hub else "not on the Hub"


def member_of(source: object, commit: str | None = None) -> CardMember:
    """The entry of a model that was loaded from a Hub id or a folder; of a folder only its own name is shown.

    Example:

    >>> member_of("owner/name").name, member_of("/home/me/models/mine").name
    ('owner/name', 'mine')
    """
    name = str(source)
    return CardMember(name, commit) if is_hub_id(name) else CardMember(one_line(PurePath(name).name) or "model")


@dataclass
class Card:
    """A model card.

    Args:
        title (`str`): any string.
        description (`str`): Markdown, one paragraph: what the model is.
        use (`str`): Python code that loads and runs it.
        tags (`Sequence[str]`), library_name (`str`), datasets (`Sequence[str]`), license (`str`): see
            `huggingface_hub.ModelCardData`. Datasets that cannot be on the Hub are left out.
        members (`Sequence[CardMember]`): of an ensemble; those on the Hub are its `base_model`.
        base (`CardMember`, *optional*): the base model of an adapter.
        training (`str`): Markdown, one paragraph: how it was trained.
        training_title (`str`): of the section with `training`.
        settings (`Mapping[str, Any]`): see [`changed_settings`].
        evaluations (`Sequence[Evaluation]`): results.
        picture (`str`, *optional*): the place of a picture in the repository.
        picture_text (`str`): what it shows.
        limits (`Sequence[str]`): what one has to know before using the model.
        citations (`Sequence[str]`): BibTeX entries.
        versions (`Mapping[str, str]`, *optional*): versions of packages; those that are installed if not given.
    """

    title: str
    description: str
    use: str
    tags: Sequence[str]
    library_name: str = "hf_rlae"
    datasets: Sequence[str] = ()
    license: str | None = None
    members: Sequence[CardMember] = ()
    base: CardMember | None = None
    training: str = ""
    training_title: str = "Training"
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    picture: str | None = None
    picture_text: str = "the weights of the members"
    limits: Sequence[str] = ()
    citations: Sequence[str] = ()
    versions: Mapping[str, str] | None = None

    def render(self) -> ModelCard:
        """The card with its head.

        Returns:
            `huggingface_hub.ModelCard`: `str(card)` is Markdown.
        """
        versions = installed_versions() if self.versions is None else self.versions
        return ModelCard.from_template(
            self._head(),
            template_path=str(TEMPLATE),
            mark=MARK,
            title=one_line(self.title),
            description=_filled(self.description),
            library=self.library_name,
            use=self.use.strip(),
            members=self.members,
            training=_filled(self.training),
            training_title=self.training_title,
            settings=[(name, code(value)) for name, value in self.settings.items()],
            results=[_table(entry) for entry in self.evaluations],
            picture=self.picture,
            picture_text=self.picture_text,
            limits=self.limits,
            versions=list(versions.items()),
            citations=self.citations,
        )

    def _head(self) -> ModelCardData:
        bases = [member.name for member in self.members if member.is_on_hub]
        head: dict[str, Any] = {"base_model": bases or None}
        if self.base is not None and self.base.is_on_hub:
            head = {"base_model": self.base.name, "base_model_relation": "adapter"}
        results = model_index(self.evaluations)
        if results:
            head |= {"model_name": one_line(self.title), "eval_results": results}
        return ModelCardData(
            **head,
            license=self.license,
            library_name=self.library_name,
            pipeline_tag="text-generation",
            tags=sorted({one_line(tag) for tag in self.tags}),
            datasets=[name for name in self.datasets if is_hub_id(name)] or None,
        )


def code(value: Any) -> str:
    """A value as code in a cell of a table.

    Example:

    >>> code({"a": "b|c"})
    "`{'a': 'b\\\\|c'}`"
    """
    text = one_line(value if isinstance(value, str) else repr(value)).replace("|", "\\|")
    ticks = "``" if "`" in text else "`"
    return f"{ticks}{text}{ticks}" if ticks == "`" else f"{ticks} {text} {ticks}"


def _table(entry: Evaluation) -> dict[str, Any]:
    value = f"{entry.value:.3f}" + (f" ± {entry.spread:.3f}" if entry.spread is not None else "")
    rows = [("**this model**", f"**{value}**"), *((_cell(name), f"{x:.3f}") for name, x in entry.baselines.items())]
    data = _cell(entry.dataset) + (f", {_cell(entry.split)}" if entry.split else "")
    return {"heading": data, "metric": _cell(entry.metric), "rows": rows, "note": entry.note}


def _filled(text: str) -> str:
    return textwrap.fill(one_line(text), 120, break_long_words=False, break_on_hyphens=False)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def installed_versions() -> dict[str, str]:
    """The versions of [`PACKAGES`] that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
