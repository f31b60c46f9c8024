"""What of a name reaches a terminal, a log, a page or a spreadsheet."""

import io
import itertools
import json
import logging
import unicodedata

import pytest

from seedlings_spark import cli, display, errors
from seedlings_spark.cluster import doctor
from seedlings_spark.reports import drift
from seedlings_spark.reports import page as report
from seedlings_spark.reports.evaluation import evaluate

# Colour and title of a terminal, a line of one's own, C1's CSI, directions of writing, breaks, what cannot be seen.
EVIL = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "a\r\nb",
    "\x9b31m",
    "abc\u202egnp.exe",
    "\u2066x\u2069",
    "a\u2028b",
    "\ufeffa",
]
EVIL += ["\udcff.png", "a\x08\x08b", "\u061ca", "a\u200bb", "\x85", "\U000e0041", "tab\there"]


def _is_harmless(text: str) -> bool:
    return all(unicodedata.category(each) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for each in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text: 100 %", "plain text: 100 %"),
        ("Ährenmaïs 漢字 \N{SEEDLING}", "Ährenmaïs 漢字 \N{SEEDLING}"),
        ("\N{WOMAN}\u200d\N{EAR OF MAIZE}", "\N{WOMAN}\u200d\N{EAR OF MAIZE}"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202e", r"\u202e"),
        ("\U000e0001", r"\U000e0001"),
        (r"C:\new\table", r"C:\new\table"),
        (r"\x1b[31m", r"\\x1b[31m"),
        ("\\\x1b", r"\\\x1b"),
        (r"\\x1b", r"\\\\x1b"),
    ],
)
def test_what_would_move_the_cursor_is_escaped_and_the_rest_stays(text: str, expected: str) -> None:
    assert display.shown(text) == expected


def test_different_names_are_shown_differently() -> None:
    alphabet = ["\x1b", "\\", "x", "1b", "\u202e", "u202e", "a"]
    texts = {"".join(parts) for length in range(5) for parts in itertools.product(alphabet, repeat=length)}
    shown = {display.shown(text) for text in texts}
    assert len(shown) == len(texts) > 2000
    assert all(map(_is_harmless, shown))


@pytest.mark.parametrize("text", EVIL)
def test_json_is_harmless_and_says_the_same(text: str) -> None:
    written = display.as_json({"name": text, "of": [text]})
    assert _is_harmless(written)
    assert json.loads(written) == {"name": text, "of": [text]}


@pytest.mark.parametrize("text", EVIL)
def test_no_printer_lets_it_through(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    stream, logger = io.StringIO(), logging.getLogger("seedlings_spark")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        for style in (cli.PLAIN, cli.JSON_LINES):
            cli.configure_logging(debug=True, style=style)
            handler = logger.handlers[0]
            assert isinstance(handler, logging.StreamHandler)
            handler.setStream(stream)
            logger.info("listed %s", text)
            try:
                raise errors.InputError(text, text, text)
            except errors.InputError as error:
                logger.exception("failed with %s", text)
                cli.fail(error)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    pages = [
        stream.getvalue(),
        capsys.readouterr().err,
        cli.table([("name", text)]),
        report.table(evaluate([[1, 0], [0, 1]], [text, "b"])),
        report._escaped(text),
        drift.table([drift.Drift("species", 0.1, 0.0, "stable", text)]),
        doctor.table([doctor.Check("x", text, doctor.BAD, text)]),
    ]
    for page in pages:
        assert all(_is_harmless(line) for line in page.split("\n")), page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("Maize", "Maize"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_spreadsheet_finds_no_formula(text: str, expected: str) -> None:
    assert display.cell(text) == expected
