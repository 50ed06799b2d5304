"""Docstrings in Hugging Face's form for the API pages: types in backticks, entries of several names, examples."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe

_SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:")
_HEAD = r"(\*{0,2}\w+)(?: \(((?:[^()]|\([^()]*\))*)\))?"
"""A name and what stands in brackets behind it."""
_NAME = re.compile(_HEAD)
_ENTRY = re.compile(rf"^(?P<heads>{_HEAD}(?:, {_HEAD})*):(?P<text>\s.*|)$", re.DOTALL)
_RETURNED = re.compile(r"^(`[^`]+`(?: of shape `[^`]+`)?(?: or `[^`]+`)*):(?P<text>\s.*)$", re.DOTALL)
_LINK = re.compile(r"\[`([\w.]+)`\](?![\[(])")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Lists a keyword once that both the docstring and a `TypedDict` of the signature have."""
        if func.docstring is None or not any(parameter.default == "..." for parameter in func.parameters):
            return
        for section in func.docstring.parsed:
            if section.kind is griffe.DocstringSectionKind.parameters:
                rows: dict[str, Any] = {}
                for row in section.value:
                    if row.name in rows:
                        rows[row.name].value = row.value
                    else:
                        rows[row.name] = row
                section.value[:] = rows.values()


def rewritten(text: str) -> str:
    """A docstring in Hugging Face's form, in Google's form with fenced examples.

    Example:

    >>> print(rewritten("Adds.\\n\\nArgs:\\n    a (`int`), b (`int`): numbers.").strip())
    Adds.
    <BLANKLINE>
    Args:
        a (int): numbers.
        b (int): numbers.
    """
    blocks, lines = [], text.split("\n")
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.strip() in _SECTIONS and not line.startswith(" "):
            end = at + 1
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
                end += 1
            blocks += [line, *_entries(lines[at + 1 : end], line.strip())]
            at = end
        elif line.startswith(">>> "):
            end = at
            while end < len(lines) and lines[end].strip():
                end += 1
            blocks += ["```pycon", *lines[at:end], "```"]
            at = end
        else:
            blocks.append(_linked(line) if line.strip() != "Example:" else "**Example**")
            at += 1
    return "\n".join(blocks)


def _entries(lines: list[str], section: str) -> list[str]:
    """The entries of a section, one a name."""
    entries: list[list[str]] = []
    for line in lines:
        if line.startswith("    ") and not line.startswith("     ") and not (section == "Returns:" and entries):
            entries.append([line[4:]])
        elif entries:
            entries[-1].append(line)
    heads = [head for entry in entries for head in _split("\n".join(entry), section)]
    return [*(f"    {head}" for head in heads), ""]


def _split(entry: str, section: str) -> list[str]:
    if section in ("Returns:", "Yields:"):
        match = _RETURNED.match(entry)
        return [_plain(match[1]) + ":" + _linked(match["text"])] if match else [_linked(entry).replace(":", "\\:", 1)]
    match = _ENTRY.match(entry)
    if match is None:
        return [_linked(entry)]
    heads = _NAME.findall(match["heads"])
    text = _linked(match["text"])
    given = [kind for _, kind in heads if kind]
    last = given[-1] if len(given) == 1 and not heads[0][1] else ""  # `a, b (int)`: of both
    return [f"{name}{_typed(kind or last)}:{text}" for name, kind in heads]


def _typed(kind: str) -> str:
    kind = re.sub(r",? ?(?:defaults to .*|\*optional\*)", "", kind).strip()
    return f" ({_plain(kind)})" if kind else ""


def _plain(kind: str) -> str:
    return " ".join(_LINK.sub(r"\1", kind).replace("`", "").split())


def _linked(text: str) -> str:
    """``[`X`]`` becomes a link where the API pages have X, and code elsewhere."""

    def link(match: re.Match[str]) -> str:
        name, *rest = match[1].split(".")
        target = documented().get(name)
        return f"[`{match[1]}`][{'.'.join([target, *rest])}]" if target else f"`{match[1]}`"

    return _LINK.sub(link, text)


@cache
def documented() -> dict[str, str]:
    """The names that the API pages have, with their full paths."""
    pages = Path(__file__).parents[1].glob("api/*.md")
    paths = [
        path for page in pages for path in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return {path.rsplit(".", 1)[-1]: path for path in paths}
