"""Loads one split of a dataset from the Hub, with errors that say what to do."""

from __future__ import annotations

from typing import Any

from hf_rlae.errors import TaskError

_PATIENCE_SECONDS = 5.0


def read_hub(hub_id: str, config: str | None, split: str, revision: str | None, is_gated: bool, is_guess: bool) -> Any:
    """The split as a `datasets.Dataset`, from the Hub or from the cache of `datasets`.

    Args:
        hub_id (`str`), config (`str`, *optional*), split (`str`), revision (`str`, *optional*): what to load.
        is_gated (`bool`): whether access to the dataset must be granted; the original error is then not quoted.
        is_guess (`bool`): whether the id might be meant as the path of a file or folder that does not exist.

    Raises:
        TaskError: the Hub cannot be reached, access is denied, or there is no such dataset, config or split.
    """
    import datasets

    what = f"{hub_id} ({config})" if config else hub_id
    if is_guess:
        what += " (no file or folder here, so taken for a Hub id)"
    _check_reachable(what)
    try:
        return datasets.load_dataset(hub_id, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if is_gated or "gated" in str(error):
            raise TaskError(
                f"{what}: access to this gated dataset failed ({type(error).__name__}). Accept its terms on its page "
                "on the Hub, log in with `hf auth login`, and load it again; or pass source= with your own copy"
            ) from None
        raise TaskError(
            f"{what}, split {split!r} cannot be loaded from the Hub: {error}. To load a file or a folder, pass source="
        ) from error


def _check_reachable(what: str) -> None:
    """Fails within seconds if the Hub does not answer; `datasets` would try for half a minute.

    With `HF_HUB_OFFLINE=1` the Hub is not asked: `datasets` then reads its cache or fails at once.

    Raises:
        TaskError: no answer.
    """
    from huggingface_hub import constants, get_session

    try:
        if not constants.HF_HUB_OFFLINE:
            get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception as error:  # the type depends on the HTTP library of the installed huggingface_hub
        raise TaskError(
            f"{what}: the Hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__}). Pass source= with a "
            "file or a folder, or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        ) from error
