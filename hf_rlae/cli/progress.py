"""The progress bar of all commands."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bar(console: Console | None = None, unit: str = "") -> Progress:
    """A progress bar that is shown on terminals only, and that disappears when it is done.

    Args:
        console (`rich.console.Console`, *optional*): stderr if not given.
        unit (`str`, *optional*): of the counted steps.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn(unit)] if unit else []),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
