"""One split of a data set on the Hub, or an error in seconds that says what to do."""

from __future__ import annotations

from typing import Any

from hf_rlae.errors import TaskError

_PATIENCE_SECONDS = 5.0


def read_hub(hub_id: str, config: str | None, split: str, revision: str | None, is_gated: bool, is_guess: bool) -> Any:
    """The split as a `datasets.Dataset`, from the Hub or from the cache of `datasets`.

    Args:
        hub_id (`str`), config (`str`, *optional*), split (`str`), revision (`str`, *optional*): what to load.
        is_gated (`bool`): whether the Hub asks for consent; nothing of the original error is then shown.
        is_guess (`bool`): whether the id could have been meant for a file or folder, which then is not there.

    Raises:
        TaskError: the Hub cannot be reached, access is denied, or it has no such data set, config or split.
    """
    import datasets

    what = f"{hub_id} ({config})" if config else hub_id
    if is_guess:
        what += " (no file or folder here, so taken for a Hub id)"
    check_reachable(what)
    try:
        return datasets.load_dataset(hub_id, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error)
        if is_gated or "gated" in reason:
            raise TaskError(
                f"{what}: access to this gated data set failed ({type(error).__name__}). Accept its terms on its page "
                "on the Hub, log in with `hf auth login`, and load it again; or pass source= with your own copy"
            ) from None
        raise TaskError(
            f"{what}, split {split!r} cannot be loaded from the Hub: {reason}. To load a file or a folder, pass source="
        ) from error


def check_reachable(what: str) -> None:
    """Asks the Hub for a sign of life, as `datasets` by itself tries for half a minute.

    With `HF_HUB_OFFLINE=1` nothing is asked: `datasets` then reads its cache, or fails at once.

    Raises:
        TaskError: no answer.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception as error:  # the HTTP library, and with it the type, depends on the version of huggingface_hub
        raise TaskError(
            f"{what}: the Hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__}). Pass source= with a "
            "file or a folder; or set HF_HUB_OFFLINE=1 to use what was downloaded before"
        ) from error
