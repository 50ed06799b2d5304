"""Writing cards, without replacing those that a user wrote."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError

from hf_rlae.files import write_whole

NAME = "README.md"
MARK = (
    "<!-- This card was written by hf_rlae, which writes it again when the model is saved. Remove this comment when "
    "you edit the card: a card without it is never replaced. -->"
)
_OF_TRANSFORMERS = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
"""A sentence of the card that transformers writes where there is none."""


def is_replaceable(text: str) -> bool:
    """Whether a card is ours or transformers' draft, and no card of a user."""
    return MARK in text or _OF_TRANSFORMERS in text or not text.strip()


def write_card(folder: str | os.PathLike[str], card: ModelCard) -> bool:
    """Writes `README.md`, unless the folder has a card of a user.

    Args:
        folder (`str` or `PathLike`): of the model.
        card (`ModelCard`): the card.

    Returns:
        `bool`: whether it was written.
    """
    path = Path(folder, NAME)
    if path.exists() and not is_replaceable(path.read_text(encoding="utf-8", errors="replace")):
        return False
    write_whole(path, str(card))
    return True


def keep_published_card(
    folder: str | os.PathLike[str], repo_id: str, token: str | bool | None = None, tags: list[str] | None = None
) -> None:
    """Before a folder is uploaded: puts a card that a user wrote in the repository in the place of ours.

    Args:
        folder (`str` or `PathLike`): what is uploaded.
        repo_id (`str`): where to.
        token (`str` or `bool`, *optional*): of the Hub.
        tags (`list[str]`, *optional*): are added to the card, as in transformers.
    """
    path = Path(folder, NAME)
    try:
        published: Any = ModelCard.load(repo_id, token=token, ignore_metadata_errors=True)  # type: ignore[arg-type]
        if not is_replaceable(str(published)):
            write_whole(path, str(published))
    except (EntryNotFoundError, RepositoryNotFoundError):
        pass
    if tags and path.exists():
        card: Any = ModelCard.load(path, ignore_metadata_errors=True)
        card.data.tags = _united(card, tags)
        write_whole(path, str(card))


class CardedPush(ABC):
    """A mixin for models of transformers: `push_to_hub` publishes `model_card()` instead of transformers' draft.

    A card that a user wrote, in the repository, is kept.
    """

    @abstractmethod
    def model_card(self, name: str | None = None) -> ModelCard:
        """The model card.

        Args:
            name (`str`, *optional*): the repository or folder that the card's code loads.
        """

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """All pushes of transformers end here, with the repository's card or a draft in `working_dir`."""
        path = Path(working_dir, NAME)
        before: Any = ModelCard.load(path, ignore_metadata_errors=True) if path.exists() else None
        card: Any = self.model_card(repo_id)
        if before is not None:
            card.data.tags = _united(card, before.data.tags or [])
        write_card(working_dir, card)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]


def _united(card: Any, tags: list[str]) -> list[str]:
    """The tags of a card, and others."""
    return list(dict.fromkeys([*(card.data.tags or []), *tags]))
