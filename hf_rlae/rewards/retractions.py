r"""What takes an answer back, or sets a second one beside it, outside the field of its marker.

* A *rejection*: "That is wrong", "This isn't right", "I made a mistake" or the like, directly behind the first sentence
  of a field, or behind the first comma in it ("13, that is wrong"). That field and those before it do not count then:
  the rest of the text is read as a text without a marker. If nothing follows, the text has no answer.
* A *second box*: `\boxed{12} or \boxed{13}`, also with "and". The text has no answer.
* A *remark* is none of these: "Actually that took 3 steps" leaves the field before it as it is.
"""

from __future__ import annotations

import re

from hf_rlae.rewards.fields import Field, sentence_end

_BOX_BEFORE = re.compile(
    r"box(?:ed)?[ ]?\{(?:[^{}]|\{[^{}]{0,40}\}){1,80}\}[\s$*.,)\\]{0,6}"
    r"(?:\\text[ ]?\{\s?)?\b(?:or|and)\b[\s}$*(\\]{0,6}(?:boxed|fbox)[ ]?\{\Z",
    re.IGNORECASE,
)
_THAT_IS = r"\b(?:that|this|it)(?:['’]s|\s+(?:is|was|looks|seems)(?:n['’]t)?)\s+"
_WRONG = r"(?:wrong|incorrect|(?:not\s+|(?<=n['’]t\s))(?:quite\s+)?(?:right|correct|true))"
_ENDS = r"(?=[\s*_]{0,3}(?:[.,;:!\n—–-]|\Z))"
_REJECTION = re.compile(
    r"[\s}$*_`\"').!\]…]{0,8}(?:(?:but|oh|hmm+|no|wait|sorry)\b[\s,.!]{1,4}){0,2}"
    rf"(?:{_THAT_IS}(?:actually\s+)?{_WRONG}|(?:that|this|it)\s+can(?:['’]t|not)\s+be\s+(?:right|correct|true)|my\s+mistake|I\s+was\s+wrong|I\s+made\s+an?\s+(?:mistake|error)){_ENDS}",
    re.IGNORECASE,
)
_REJECTION_INSIDE = re.compile(
    rf"(?:[^.,;\n]|[.,](?=\d)){{1,60}},\s+(?:but\s+)?{_THAT_IS}{_WRONG}{_ENDS}", re.IGNORECASE
)
# `fields` takes "Wait, that's" for a correction, so that the field begins with "wrong"
_REJECTION_BEGUN = re.compile(rf"{_THAT_IS}\Z", re.IGNORECASE)
_REJECTION_ENDS = re.compile(_WRONG + _ENDS, re.IGNORECASE)
_REMARK = re.compile(r"(?:that|this)\s+\w+\s+(?:only\s+)?\w+\s+(?:steps?|lines?|tries|attempts?|methods?)\b", re.I)


def is_second_box(text: str, field: Field) -> bool:
    """Whether "or" or "and" joins a box to one before it."""
    start = field.start
    return field.kind == "box" and _BOX_BEFORE.search(text, max(0, start - 160), start) is not None


def rejection_end(text: str, field: Field) -> int | None:
    """Where the rejection of a field ends, if there is one."""
    stop = field.end if field.kind == "box" else sentence_end(text, field.start, field.end)
    rejection = _REJECTION.match(text, stop) or _REJECTION_INSIDE.match(text, field.start)
    if rejection is None and _REJECTION_BEGUN.search(text, max(0, field.start - 16), field.start):
        rejection = _REJECTION_ENDS.match(text, field.start)
    return rejection.end() if rejection else None


def is_remark(text: str, field: Field) -> bool:
    """Whether a field tells how the answer was found ("that took 3 steps"), and is no correction of it."""
    return field.kind == "phrase" and _REMARK.match(text, field.start) is not None
