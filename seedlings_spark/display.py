"""Names that others chose, as a terminal, a log or a page may show them.

A file, a class or a model can have any name: one with an escape sequence would paint over the terminal, one with a
line break would be two lines of a log, and one that turns the direction of writing would read as another one.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

# They join letters of some scripts, and move nothing.
_HARMLESS = "\u200c\u200d"
_MOVING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# ASCII is what most lines are of: no look at each character's category then.
_PLAIN = re.compile(r"[ -\[\]-~]*")
# A backslash that could be read as the beginning of an escape.
_AMBIGUOUS = re.compile(r"\\+(?=[xuU])")
# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def shown(text: str) -> str:
    r"""A text without anything that moves a terminal's cursor, ends a line or turns the direction of writing.

    Such characters become `\x1b`, `\u202e`, `\U000e0001`. Different texts stay different: a backslash that would
    read as one of these is doubled.
    """
    if _PLAIN.fullmatch(text):
        return text
    parts, start = [], 0
    for place, character in enumerate(text):
        if _moves(character):
            parts += [_doubled(text[start:place], is_last=False), _escaped(character)]
            start = place + 1
    return "".join([*parts, _doubled(text[start:], is_last=True)])


def one_line(error: BaseException) -> str:
    """An exception as one line that can be shown: its class and its message."""
    return shown(" ".join(f"{type(error).__name__}: {error}".splitlines()))


def table(rows: Sequence[tuple[str, object]]) -> str:
    """Two aligned columns for a person to read."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {shown(str(value))}" for name, value in rows)


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that can be shown: what `shown` would escape is escaped as JSON has it, so a reader gets the same texts."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(json.dumps(each)[1:-1] if _moves(each) and each != "\n" else each for each in text)


def cell(text: str) -> str:
    """A text as a field of a CSV file: a quote before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _moves(character: str) -> bool:
    return unicodedata.category(character) in _MOVING and character not in _HARMLESS


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _doubled(text: str, *, is_last: bool) -> str:
    doubled = _AMBIGUOUS.sub(lambda found: found.group() * 2, text)
    if is_last:
        return doubled
    kept = doubled.rstrip("\\")
    return kept + (doubled[len(kept) :] * 2)  # it would stand before an escape
