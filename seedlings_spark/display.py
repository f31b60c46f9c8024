"""Names that others chose, as a terminal, a log or a page may show them; and tables that fit a terminal.

A file, a class or a model can have any name: one with an escape sequence would paint over the terminal, one with a
line break would be two lines of a log, and one that turns the direction of writing would read as another one.
"""

import json
import os
import re
import unicodedata
from collections.abc import Sequence

# How the command that runs jobs was called, for what a person is told to type.
COMMAND = "SEEDLINGS_COMMAND"
# Of a terminal that nobody has made wider.
COLUMNS = 80
_BETWEEN = "  "

# They join letters of some scripts, and move nothing.
_HARMLESS = "\u200c\u200d"
_MOVING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# ASCII is what most lines are of: no look at each character's category then.
_PLAIN = re.compile(r"[ -\[\]-~]*")
# A backslash that could be read as the beginning of an escape.
_AMBIGUOUS = re.compile(r"\\+(?=[xuU])")
# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def command() -> str:
    """The command that runs jobs: the script of the repository, or the one of an installed wheel."""
    return os.environ.get(COMMAND) or "./spark-submit.sh"


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
    """Two aligned columns for a person to read: names, and what they stand for."""
    texts = [(name, shown(str(value)), isinstance(value, Whole)) for name, value in rows]
    return aligned([(name, Whole(text) if is_whole else text) for name, text, is_whole in texts])


def as_json(value: object, *, indent: int | None = None) -> str:
    """JSON that can be shown: what `shown` would escape is escaped as JSON has it, so a reader gets the same texts."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(json.dumps(each)[1:-1] if _moves(each) and each != "\n" else each for each in text)


def cell(text: str) -> str:
    """A text as a field of a CSV file: a quote before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


# What `cell` puts before a text, as a regular expression of Java and of Python.
QUOTED = r"^'(?=[=+\-@\t\r])"


class Whole(str):
    """A text that a person copies, such as a path: it is never wrapped, also where there is a space in it."""

    __slots__ = ()


def width(text: str) -> int:
    """The columns of a terminal that a text takes up: two for each wide character, none for a combining one."""
    return sum(map(_width, text))


def cut(text: str, columns: int) -> str:
    """As much of a text as takes up no more columns of a terminal; without control characters."""
    taken, kept = 0, []
    for character in text:
        if unicodedata.category(character) == "Cc":
            continue
        taken += _width(character)
        if taken > columns:
            break
        kept.append(character)
    return "".join(kept)


def _width(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf") or "\u1160" <= character <= "\u11ff":
        return 0  # the latter are parts of Korean syllables, as macOS writes names
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def abridged(text: str, columns: int, tail: int = 0) -> str:
    """A text of at most so many columns, of which the last ones stay; where something is left out there are dots."""
    if width(text) <= columns:
        return text
    end = cut(text[::-1], tail)[::-1]
    while end and not _width(end[0]):  # an accent whose letter is left out
        end = end[1:]
    return f"{cut(text, columns - 2 - width(end))}..{end}"


def padded(text: str, columns: int, side: str = "<") -> str:
    """A text with spaces behind it (`<`) or before it (`>`), up to so many columns."""
    spaces = " " * (columns - width(text))
    return text + spaces if side == "<" else spaces + text


def wrapped(text: str, columns: int, *, in_words: bool = False) -> list[str]:
    """A text in lines of so many columns, broken at spaces; nothing of it is lost.

    Args:
        text: What `shown` gives. A `Whole` stays one line.
        columns: A longer word has a line of its own, which is then longer.
        in_words: Whether such a word is broken instead.
    """
    if isinstance(text, Whole):
        return [text]
    lines: list[str] = []
    for word in text.split(" "):
        if lines and width(lines[-1]) + 1 + width(word) <= columns:
            lines[-1] += f" {word}"
            continue
        while in_words and width(word) > columns and (start := cut(word, columns)):
            lines.append(start)
            word = word[len(start) :]
        lines.append(word)
    return lines


def aligned(rows: Sequence[Sequence[str]], sides: str = "", *, columns: int = COLUMNS) -> str:
    """Aligned columns for a person to read, which fit a terminal.

    Where they do not, texts are wrapped at spaces, in those columns where that adds the fewest lines. What cannot be
    wrapped (a path) and would leave too little room has a line of its own, whole: only that may be longer than asked.

    Args:
        rows: Texts as `shown` gives them, as many in each.
        sides: `<` or `>` for each column, on which side its texts stand; by default the left one.
        columns: That all may take up.
    """
    widths = _widths(rows, columns - len(_BETWEEN) * (len(rows[0]) - 1)) if rows else []
    sides = sides.ljust(len(widths), "<")
    lines = []
    for row in rows:
        parts = [wrapped(text, wide) for text, wide in zip(row, widths, strict=True)]
        for number in range(max(map(len, parts))):
            filled = ""
            for place, part in enumerate(parts):
                text = part[number] if number < len(part) else ""
                if width(text) > widths[place]:
                    lines += [filled.rstrip(), _BETWEEN + text]
                    filled, text = " " * width(filled), ""
                filled += padded(text, widths[place], sides[place]) + _BETWEEN
            lines.append(filled.rstrip())
    return "\n".join(filter(None, lines))


def _widths(cells: Sequence[Sequence[str]], room: int) -> list[int]:
    """Of each column: as its longest text, or as much less as it can be so that all fit."""
    columns = list(zip(*cells, strict=True))
    least: list[int] = []
    natural: list[int] = []
    for place, column in enumerate(columns):
        # A longer word has a line of its own and does not count.
        limit = room - sum(least) if place == len(columns) - 1 else room // 2
        words = [_words(text) for text in column]
        longest = widest = max((wide for each in words for wide in each if wide <= limit), default=0)
        for text, each in zip(column, words, strict=True):
            if max(each) <= limit:
                longest_line = width(text)
            else:
                longest_line = max(
                    (wide for wide in map(width, wrapped(text, limit)) if wide <= limit), default=0
                )
            widest = max(widest, longest_line)
        natural.append(widest)
        least.append(longest)
    lines = [_num_lines(column, wide) for column, wide in zip(columns, natural, strict=True)]
    while sum(natural) > room:
        best = None
        for place, wide in enumerate(natural):
            if wide > least[place]:
                shrunk = [*lines[:place], _num_lines(columns[place], wide - 1), *lines[place + 1 :]]
                rank = (sum(map(max, zip(*shrunk, strict=True))), -wide)
                best = min(best or (rank, place, shrunk), (rank, place, shrunk), key=lambda one: one[0])
        if best is None:
            break
        _, place, lines = best
        natural[place] -= 1
    return natural


def _num_lines(texts: Sequence[str], columns: int) -> list[int]:
    return [len(wrapped(text, columns)) for text in texts]


def _words(text: str) -> list[int]:
    """The widths of the words of a text, which cannot be wrapped."""
    return [width(text)] if isinstance(text, Whole) else [width(word) for word in text.split(" ")]


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
