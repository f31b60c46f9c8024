"""What of a name reaches a terminal, a log, a page or a spreadsheet."""

import io
import itertools
import json
import logging
import unicodedata

import numpy as np
import pytest

from seedlings_spark import cli, display, errors
from seedlings_spark.cluster import doctor
from seedlings_spark.reports import drift, html
from seedlings_spark.reports import page as report
from seedlings_spark.reports.evaluation import evaluate
from seedlings_spark.reports.findings import Findings

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
        html.page(
            evaluate([[1, 0], [0, 1]], [text, "b"]),
            Findings(not_compared=text),
            history={text: [1.0]},
            kept_epoch=1,
            about={text: text, "model": text, "model_version": text},
            left_files=[text],
        ),
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


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("Maize", 5),
        ("\u9ea6", 2),
        ("e\u0301", 1),
        ("\N{SEEDLING}", 2),
        ("\uff21", 2),
        ("\ud55c", 2),
        ("\u1112\u1161\u11ab", 2),
    ],
)
def test_characters_take_the_columns_that_a_terminal_gives_them(text: str, columns: int) -> None:
    assert display.width(text) == columns
    assert display.padded(text, 8) == text + " " * (8 - columns)
    assert display.padded(text, 8, ">") == " " * (8 - columns) + text


@pytest.mark.parametrize(
    ("text", "columns", "tail", "expected"),
    [
        ("Maize", 5, 0, "Maize"),
        ("Sugar beet", 8, 0, "Sugar .."),
        ("Sugar beet", 8, 4, "Su..beet"),
        ("\u9ea6\u9ea6\u9ea6\u9ea6", 7, 2, "\u9ea6..\u9ea6"),
        ("abcdefe\u0301", 6, 1, "abc..e\u0301"),
    ],
)
def test_what_is_abridged_keeps_its_beginning_and_its_end(
    text: str, columns: int, tail: int, expected: str
) -> None:
    assert display.abridged(text, columns, tail) == expected


def test_a_table_wraps_words_and_leaves_paths_whole() -> None:
    path = "file:///data/" + "a folder/" * 8 + "0001.png"
    rows = [
        ("accepted", "1,000 of 3 species: 700 of them to train on, 150 to validate with, 150 to test"),
        ("\u9ea6", "wide"),
        ("corpus", display.Whole(path)),
        ("run", "x" * 90 + " and more"),
    ]
    assert cli.table(rows).split("\n") == [
        "accepted  1,000 of 3 species: 700 of them to train on, 150 to validate with, 150",
        "          to test",
        "\u9ea6        wide",
        "corpus",
        f"  {path}",
        "run",
        "  " + "x" * 90,
        "          and more",
    ]


def test_a_table_of_many_columns_wraps_the_widest_first() -> None:
    rows = [("what is measured", "in images", "number"), ("a", "b", "1,000")]
    assert display.aligned(rows, "<>>", columns=24).split("\n") == [
        "what is       in  number",
        "measured  images",
        "a              b   1,000",
    ]
    assert display.aligned([], "<") == ""
    path = "/a/long/path/" + "x" * 80
    doubtful = doctor.table(
        [doctor.Check("Spark", "4.0.0 on local[2], mode client"), doctor.Check(f"writing to {path}", "done")]
    )
    assert doubtful.split("\n") == [
        "ok  Spark       4.0.0 on local[2], mode client",
        "ok  writing to  done",
        f"  {path}",
    ]


def test_the_tables_of_the_jobs_fit_a_terminal() -> None:
    species = [
        "Small-flowered Cranesbill",
        "\u9ea6" * 30,
        "Mai\u0308s",
        *(f"a species {number}" for number in range(9)),
    ]
    counts = np.arange(144).reshape(12, 12)
    told = "3.0 MB/s between the driver and its executors, at least 10 of them where a network has 4 M parameters"
    for text in (
        report.table(evaluate(counts, species)),
        report.table(
            evaluate(
                np.tile(np.arange(40), (40, 1)),
                [f"a long name of the species {number}" for number in range(40)],
            )
        ),
        doctor.table([doctor.Check("an exchange with the executors", told, doctor.BAD, told)]),
        drift.table([drift.Drift("species", 0.1, 0.0, "stable", "\u9ea6" * 40 + " 10.0% -> 20.0%")]),
    ):
        assert max(map(display.width, text.split("\n"))) <= 80, text
        assert len(text.split("\n")) > 1
    matrix = report.table(evaluate(counts, species))
    assert matrix.count("\u9ea6") >= 30  # in two lines
