r"""What stands around a number and changes what it means: operators, functions, comparisons, a second number.

`hf_rlae.rewards.number_rule` states the rules.
"""

from __future__ import annotations

import re

from hf_rlae.rewards.number_syntax import NUMBER, Found

_MARKS = " \t\n*_`\"'$("
_MOST_NUMBERS = 8
_REACH = 200

# commands that say how something looks, not what it is
_PLAIN_COMMANDS = (
    r"text|textrm|textbf|textit|texttt|mathrm|mathbf|mathit|mathsf|rm|bf|it|left|right|big|Big|bigl|bigr|Bigl|Bigr|"
    r"quad|qquad|displaystyle|textstyle|boxed|fbox|framebox|mbox|underline|color|textcolor|colorbox|num|"
    r"approx|simeq|equiv|therefore|implies|Rightarrow|rightarrow|to|circ|degree|hspace|euro|pounds|item|"
    r"[dt]?frac(?=[ ]?\{\\(?:text|mathrm)\{[^{}\d]{1,40}\}\}[ ]?\{\\(?:text|mathrm)\{)"  # of units: km over h
)
_COMMAND = rf"\\(?!(?:{_PLAIN_COMMANDS})(?![A-Za-z]))[A-Za-z]+"
_OPERAND = rf"(?:{_COMMAND}|\d|\(|√|π|[A-Za-z](?![A-Za-z]))"

_NEGATION = re.compile(
    r"(?:\b(?:can)?not|n['’]t|\bnever|\bnor|≠|!=|\\neq?|\b(?:wrong|incorrect|false)\s(?:answer|number|result|value)\s(?:is|was))\s{0,2}(?:be\s|equal\s(?:to\s)?)?[\s*_`\"'$(\\]{0,4}\Z",
    re.IGNORECASE,
)
# how what patterns look for can end, without the marks behind it: a quick look, because most text ends otherwise
_NEGATION_ENDS = ("not", "n't", "n’t", "never", "nor", "≠", "!=", "\\ne", "\\neq", "be", "equal", "to")
_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
_NEGATION_MARKS = f"{_SPACES}*_`\"'$(\\"
_COMPARED_MARKS = f"{_SPACES}*_`$({{\\€£¥₹₩"
_COMPARISON_ENDS = ("<", "≤", "≥", ">", "<=", "≤=", "≥=", ">=", "than", "to", "ge", "gt", "le", "lt", "eq", "slant")
_FUNCTION_SIGN = re.compile(r"[\\√∛±∓∑∏∫}]")
_FUNCTION_ENDS = ("rt", "log", "ln", "sin", "cos", "tan", "nh", "sh", "cot", "sec", "csc", "exp", "oor", "ceil", "abs")
_FUNCTION_BEFORE = re.compile(
    rf"""
    (?: {_COMMAND} (?:[ ]?[_^](?:\{{[^{{}}]{{0,12}}\}}|\w)){{0,2}} (?:\\left)? [\s{{(\[|]{{0,3}}
      | [√∛±∓∑∏∫][\s${{(]{{0,3}}
      | (?<![A-Za-z\\])(?:sqrt|log|ln|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|exp)(?:_?\d{{1,2}}|_\w)?[ ]?[({{ ][({{]?
      | (?<![A-Za-z\\])(?:floor|ceil|abs)[ ]?[({{]+
      | \}}[ ]?\{{[ ]?
    ) \Z
    """,
    re.VERBOSE,
)
_WRAPPER = re.compile(
    r"\\(?:color[ ]?\{\w{1,20}\}\{?"
    r"|(?:textcolor[ ]?\{\w{1,20}\}|colorbox[ ]?\{\w{1,20}\}|num|text(?:rm|bf|it|tt)?|math(?:rm|bf|it|sf))[ ]?\{)[ ]?\Z"
)
_COMPARED = re.compile(
    r"""
    (?: [<≤≥] (?:=|\s)? \s?
      | (?: \S[ ]+ | (?<=[$({]) ) >=? \s?
      | \\(?:[gl](?:eq?(?:slant)?|t)) [ ]? \{?
      | \b(?: (?:more|less|fewer|greater|larger|smaller|higher|lower|bigger) \s+ than (?:\s+or\s+equal\s+to)? ) \s+
    ) [\s*_`$(]{0,3} (?:\\?[$€£¥₹₩])? \Z
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BOUND = re.compile(
    r"\b(?:at\s+(?:least|most)|(?:over|under|above|below|beyond|between|exceeds?|exceeding|plus\s+or\s+minus"
    r"|twice|doubled?|tripled?)|up\s+to|(?:half|third|quarter|root)\s+of)\s+"
    r"[\s*_`$(]{0,3}(?:\\?[$€£¥₹₩])?\Z",
    re.IGNORECASE,
)
_OPERATOR_BEFORE = re.compile(
    r"(?:[\w)}\]][ ]?[*·×÷^+−–/-][ ]?|(?<![A-Za-z])[A-Za-z]\(|\||\b(?:plus|minus|times)\s)[({$ ]{0,3}\Z", re.IGNORECASE
)
_MATH_AFTER = re.compile(
    rf"""
    (?: [ ]? (?:[√π∛] | pi\b)
      | (?:[ ]|\.)? {_COMMAND}
      | !(?=\s*[\d$)}}\]*/+.,-])
      | [ ]? (?:\^|\*\*(?=[\w(]))(?!\{{?[ ]?(?:\\circ|°))
      | (?![mgshlLtpWVAJNKCF])[A-Za-zα-ω](?![^\W\d_'’])
      | [ ]?(?:[万萬亿億만억]|[CPR][ ]?\d)
      | [ -](?:(?:(?:hundred|thousand|million|billion)th|lakh|crore)s?|squared|cubed|factorial)\b
      | [ ]and[ ](?:an?|one|two|three)[ -](?:hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|eighths?|tenths?)\b
      | [xyzXYZ]{{2,3}}(?![^\W\d_])
      | [ ](?:[xyznijkqruvwXYZ])(?![\w'’])
      | \((?=[\w\\+-]) | h(?=\d)
      | _\{{?\w
      | [a-zA-Z]?[ ]?[*·×÷/^+−][ ]?\{{?{_OPERAND}
      | [a-zA-Z]?(?:[ ]?-|[ ][–-])[ ]?\{{?{_OPERAND}
      | [ ]?[<>≤≥][ ]?=?[ ]?\w
      | [ ]?\+(?![\w])
    )
    """,
    re.VERBOSE,
)
_BOUND_AFTER = re.compile(
    r"[^.;,()\d]{0,24}?\b(?:(?:or|and)\s+(?:more|less|fewer|above|below|up|over|under|higher|lower|greater|so)"
    r"|at\s+(?:least|most)|more\s+than|less\s+than|fewer\s+than|(?:divided|multiplied)\s+by|to\s+the\s+power"
    r"|times(?=[\s*_`$(]{1,4}\\?[\d(]))\b",
    re.IGNORECASE,
)
_AMOUNT = re.compile(
    r"[\s*_`$]{0,3}(?:\\text\{\s?)?(?P<unit>hours?|hrs?|h|minutes?|mins?|m|days?|weeks?|months?|years?|feet|foot|ft|yards?|"
    r"pounds?|lbs?|dollars?|euros?|km|kg|quarts?|gallons?|tens|hundreds)(?:\sold)?[\s}*_`$]{0,3},?\s?(?:and\s)?[\s*_`$]{0,3}",
    re.IGNORECASE,
)
_OR = re.compile(
    r"[^\w]{0,8}\b(?:or|maybe|perhaps)\b[^\w]{0,8}(?:not\W{1,4}|maybe\W{1,3}|perhaps\W{1,3})?", re.IGNORECASE
)
_EXPLAINS = re.compile(
    r"(?P<doubt>\b(?:or|maybe|perhaps|possibly|but|if|unless|else|otherwise|alternatively)\b)"
    r"|[.;!?(\[≈]|\s[—–-]\s|\b(?:so|as|which|where|that|who|whose|given|leaving|meaning|rounded|i\.e)\b|\\approx",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    r"\s*(?:±|(?:or|and|but|maybe|perhaps|possibly|alternatively)\b"
    r"|to\b(?!\s+(?:the\s+nearest|\d+\s+(?:d\.?\s?p|s\.?\s?f|decimal|significant|places))))",
    re.IGNORECASE,
)
_COMPLEMENT = re.compile(
    r"(?:\\[hv]space\*?\{-?|\b(?:for|in|of|from|at|on|by|after|within|during|per|every|about|with|across|among"
    r"|(?<=[a-z]\s)over|out\s+of)\s+"
    r"(?:(?:the|all|each|every|about|these|those|his|her|their|its)\s+)?[\s*_`$(]{0,3})\Z",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"[\s*_`$]{1,4}over\s+\d{1,4}\s+(?:minute|hour|day|week|month|year)s?\b"
    r"|[^\d,.;()]{0,24},\s*\d{1,6}\s+(?:\w{1,20}\s+){0,2}(?:more|less|fewer|(?!other|rather)\w{2,12}er)\s+than\b",
    re.IGNORECASE,
)


def is_negated(text: str, start: int) -> bool:
    """Whether "not" or the like stands directly before a number."""
    before = text[max(0, start - 40) : start]
    bare = before.rstrip(_NEGATION_MARKS).lower()
    may_be = bare.endswith(_NEGATION_ENDS) or "wrong" in bare or "incorrect" in bare or "false" in bare
    return may_be and _NEGATION.search(before) is not None


def is_compared(text: str, start: int) -> bool:
    """Whether a number is only compared with: "more than 12", `> 12`."""
    ends = text[max(0, start - 40) : start].rstrip(_COMPARED_MARKS).lower().endswith(_COMPARISON_ENDS)
    return ends and _COMPARED.search(text, max(0, start - 40), start) is not None


def is_touched(text: str, found: Found, start: int, end: int, kind: str = "") -> bool:
    """Whether something that touches a number in `text[start:end]` changes its value.

    In a field, of which `kind` is the marker, operators and bounds count as well.
    """
    near = max(start, found.start - 40)
    wrapper = _WRAPPER.search(text, near, found.start)
    first = wrapper.start() if wrapper else found.start
    last = found.end + 1 if wrapper and text.startswith("}", found.end) else found.end
    if wrapper and text[max(start, first - 1) : first] in ("-", "−"):
        return True  # a sign that is no part of the number
    if last < end:
        behind = (_MATH_AFTER, _BOUND_AFTER) if kind else (_MATH_AFTER,)
        if any(each.match(text, last, end) for each in behind):
            return True
        if kind not in ("", "phrase") and text[last] == "!":
            return True
    if not text[near:first].strip(_MARKS):
        return False
    if _may_be_function(text, near, first) and _FUNCTION_BEFORE.search(text, near, first):
        return True
    return bool(kind) and any(each.search(text, near, first) for each in (_COMPARED, _BOUND, _OPERATOR_BEFORE))


def _may_be_function(text: str, start: int, end: int) -> bool:
    bare = text[start:end].rstrip(" ({")
    has_end = bare.endswith(_FUNCTION_ENDS) or bare[-1:].isdigit() or bare[-2:-1] == "_"
    return has_end or _FUNCTION_SIGN.search(text, start, end) is not None


def is_joined(text: str, before: int, start: int) -> bool:
    """Whether "or", or a unit as in "3 hours and 20 minutes", joins two numbers with this between them."""
    return _OR.fullmatch(text, before, start) is not None or _AMOUNT.fullmatch(text, before, start) is not None


def has_one_number(text: str, start: int, end: int) -> bool:
    """Whether what follows a number in a field holds no second one, except in an explanation."""
    end = min(end, start + _REACH)
    for seen, match in enumerate(NUMBER.finditer(text, start, end)):
        if seen == _MOST_NUMBERS:
            return False
        if not is_negated(text, match.start()):
            explains = _EXPLAINS.search(text, start, match.start())
            if explains and not explains["doubt"]:
                return not (explains[0] in "([;" and _ALTERNATIVE.match(text, explains.end()))
            if explains or not (_COMPLEMENT.search(text, start, match.start()) or _ASIDE.match(text, start, end)):
                return False
        start = match.end()
    return True
