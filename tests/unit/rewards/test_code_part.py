"""Where the program of a completion is."""

from __future__ import annotations

import time

import pytest

from hf_rlae.rewards.code_part import find_programs

FENCED = {
    "one fence": ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
    "the last of several": ("```\na = 1\n```\nBetter:\n```py\nb = 2\n```", "b = 2\n"),
    "the last complete one": ("```\na = 1\n```\nAnd:\n```python\nb = 2", "a = 1\n"),
    "one that is opened again": ("```python\na = 1\n```python\nb = 2\n```", "b = 2\n"),
    "tildes": ("~~~python\nx = '''\n```\n'''\n~~~", "x = '''\n```\n'''\n"),
    "longer fences": ("````\n```python\nx\n```\n````", "```python\nx\n```\n"),
    "an indented fence": ("1. So:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y\n"),
    "a body": ("```\n    return 1\n```", "return 1\n"),
    "line ends of Windows": ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
    "before an invented task": ("```\nx = 1\n```\n\nTask: another\nPython: ```\ny = 2\n```", "x = 1\n"),
    "tasks in comments are no tasks": (
        "```python\n# Question 2:\nx = 1\n# Task:\n```",
        "# Question 2:\nx = 1\n# Task:\n",
    ),
    "an answer tag": ("```\nx = 1\n```\n<answer>\n```\ny = 2\n```\n</answer>\n```\nz\n```", "y = 2\n"),
    "a tag in a text": ("```\nx = '<answer>3</answer>'\n```", "x = '<answer>3</answer>'\n"),
    "the sign that is used inside": ("\ue0005\ue001\n```\nx\n```\n\ue0009\ue001", "x\n"),
    "nothing": ("```\n```", ""),
}


@pytest.mark.parametrize("case", FENCED.values(), ids=FENCED)
def test_fences(case):
    text, expected = case
    assert find_programs(text) == [expected]


BARE = {
    "all of it": ("def f():\n    return 1\n", ["def f():\n    return 1\n"]),
    "a fence that the prompt opened": ("x = 1\n```\nThat is it.", ["x = 1\n```\nThat is it.", "x = 1\n"]),
    "an invented task": ("x = 1\n\nTask: two\nPython: y", ["x = 1\n\nTask: two\nPython: y", "x = 1\n"]),
    "an answer tag": ("<answer>x = 1</answer>", ["<answer>x = 1</answer>", "x = 1"]),
    "only an opened fence": ("```python\nx = 1", ["```python\nx = 1", ""]),
    "nothing": ("", [""]),
}


@pytest.mark.parametrize("case", BARE.values(), ids=BARE)
def test_bare_texts(case):
    text, expected = case
    assert find_programs(text) == expected


@pytest.mark.parametrize(
    "piece", ["```\n", "``` ", "~~~", " " * 50, "\n", "```a\n", "Task:\n", "<answer>", "\ue000", "`"]
)
def test_long_texts_are_read_at_once(piece):
    start = time.perf_counter()
    find_programs(piece * (200_000 // len(piece)))
    assert time.perf_counter() - start < 2.0
