"""An evaluation for people and programs: a table for the terminal, plots, one HTML page, and JSON.

The page carries its plots inside, so that it can be sent by mail; it needs no network and runs no script.
Species are names of folders, which may hold anything: they are escaped in HTML, never read as formulas in
plots, and what cannot be printed is replaced. Plots are drawn with matplotlib's objects, not with `pyplot`,
so that nothing is global and a driver without a display, or with threads, can draw.
"""

import base64
import csv
import html
import io
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from seedlings_spark import display, files
from seedlings_spark.reports.evaluation import (
    MAX_SHOWN,
    NUM_WORST,
    Evaluation,
    SpeciesScores,
    worst_confusions,
    worst_species,
)
from seedlings_spark.reports.plots import (
    NAME_WIDTH,
    confusion_matrix,
    curves_of,
    headline_of,
    in_digits,
    learning_curves,
    per_species,
    score_cells,
    short_names,
)

FORMAT = 1
METRICS = "metrics.json"
PAGE = "index.html"
CONFUSION_MATRIX = "confusion_matrix.png"
PER_SPECIES = "per_species.png"
LEARNING_CURVES = "learning_curves.png"
ALL_SPECIES = "per_species.csv"
# The terminal's table: no line is longer than this, names are cut to that.
TABLE_WIDTH = display.COLUMNS
_NUM_WORST = 15
_HEADS = ("images", "predicted", "precision", "recall", "F1", "FPR", "FNR")


def table(evaluation: Evaluation) -> str:
    """The numbers as plain text, without a newline at the end.

    First a line for each species (of more than `evaluation.MAX_SHOWN` the worst ones, the lowest F1 first), then
    the averages, then the confusion matrix; where that is wider than `TABLE_WIDTH`, the worst confusions instead.
    Columns of the matrix carry the short names that stand before the species in its rows, or in a list below it.
    "-" is what is undefined.
    """
    images = max(6, len(str(evaluation.num_images)))
    widths = (images, max(9, images), 9, 6, 6, 6, 6)
    room = TABLE_WIDTH - sum(widths) - len(widths)
    listed, left_out = _listed(evaluation)
    names = [display.wrapped(display.shown(each.species), room, in_words=True) for each in listed]
    width = max(map(display.width, ["weighted average", *chain.from_iterable(names)]))

    def line(name: str, *cells: str) -> str:
        aligned = [f" {cell:>{wide}}" for cell, wide in zip(cells, widths, strict=False)]
        return (display.padded(name, width) + "".join(aligned)).rstrip()

    lines = [line("species", *_HEADS)]
    for name, scores in zip(names, listed, strict=True):
        lines += [line(name[0], *score_cells(scores)[1:]), *name[1:]]
    lines += [left_out] if left_out else []
    macro = (evaluation.macro_precision, evaluation.macro_recall, evaluation.macro_f1)
    lines += [
        "",
        line("macro average", "", "", *(in_digits(score) for score in macro)),
        line("weighted average", "", "", "", "", in_digits(evaluation.weighted_f1)),
        "",
        f"accuracy {in_digits(evaluation.accuracy)} on {evaluation.num_images} images (micro F1 is the same)",
        f"95 % interval {_interval(evaluation)}",
        "",
    ]
    matrix = [] if left_out else _text_matrix(evaluation)
    if matrix and max(map(display.width, matrix)) <= TABLE_WIDTH:
        return "\n".join(lines + matrix)
    return "\n".join(lines + _text_confusions(evaluation))


def write(
    directory: str,
    evaluation: Evaluation,
    *,
    history: Mapping[str, Sequence[float]] | None,
    kept_epoch: int | None = None,
    about: Mapping[str, object],
) -> list[str]:
    """Write a report: metrics.json, index.html, the plots, and a table of many species.

    metrics.json comes last, and one that is there already is deleted first: a report that has it is whole.
    Other files of that name are overwritten, and learning curves of an earlier report go.

    Args:
        directory: Where to; made if need be. A path on any file system that `files` knows.
        evaluation: The numbers.
        history: Metric -> a value an epoch, as Keras gives it, or None. Without an epoch there is no
            learning_curves.png.
        kept_epoch: The epoch, from 1, whose weights were kept, or None.
        about: What else is known, such as the model's version, the corpus' fingerprint and the split. What
            JSON cannot hold is written as text; numbers that are not finite as null.

    Returns:
        The names of the files in `directory`, in the order in which they were written.
    """
    about_values = {str(name): _jsonable(value) for name, value in about.items()}
    plots = {CONFUSION_MATRIX: confusion_matrix(evaluation), PER_SPECIES: per_species(evaluation)}
    if history is not None and curves_of(history):
        plots[LEARNING_CURVES] = learning_curves(history, kept_epoch)
    metrics = {"format": FORMAT, "about": about_values, **evaluation.to_dict()}

    files.make_directory(directory)
    for name in (METRICS, LEARNING_CURVES, ALL_SPECIES):
        files.delete(files.join(directory, name))
    with tempfile.TemporaryDirectory(prefix="seedlings-report-") as folder:
        for name, png in plots.items():
            local = Path(folder) / name
            local.write_bytes(png)
            files.put(local, files.join(directory, name))
    tables = [ALL_SPECIES] if _listed(evaluation)[1] else []
    for name in tables:
        files.write_text(files.join(directory, name), _csv(evaluation.per_species))
    files.write_text(files.join(directory, PAGE), _page(evaluation, plots, about_values))
    files.write_text(files.join(directory, METRICS), json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    return [*plots, *tables, PAGE, METRICS]


def _listed(evaluation: Evaluation) -> tuple[Sequence[SpeciesScores], str]:
    """The species that are listed; and if these are not all, a line that says so."""
    if len(evaluation.classes) <= MAX_SHOWN:
        return evaluation.per_species, ""
    worst = worst_species(evaluation, NUM_WORST)
    return worst, f"the {len(worst)} lowest F1 of {len(evaluation.classes):,} species ({ALL_SPECIES} has all)"


def _interval(evaluation: Evaluation) -> str:
    return " to ".join(map(in_digits, evaluation.accuracy_interval))


def _csv(per_species: Sequence[SpeciesScores]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("species", *_HEADS))
    writer.writerows((display.cell(scores.species), *score_cells(scores)[1:]) for scores in per_species)
    return text.getvalue()


def _page(evaluation: Evaluation, plots: Mapping[str, bytes], about: Mapping[str, object]) -> str:
    numbers = [
        ("accuracy", in_digits(evaluation.accuracy)),
        ("its 95 % interval", _interval(evaluation)),
        ("macro F1", in_digits(evaluation.macro_f1)),
        ("weighted F1", in_digits(evaluation.weighted_f1)),
        ("macro precision", in_digits(evaluation.macro_precision)),
        ("macro recall", in_digits(evaluation.macro_recall)),
        ("images", f"{evaluation.num_images:,}"),
        ("species", str(len(evaluation.classes))),
    ]
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_escaped(headline_of(evaluation))}</title>",
        f"<style>{_STYLE}</style></head><body>",
        "<h1>Evaluation</h1>",
        '<dl class="numbers">',
        *(f"<div><dt>{_escaped(name)}</dt><dd>{_escaped(value)}</dd></div>" for name, value in numbers),
        "</dl>",
    ]
    if about:
        parts += [
            "<h2>About</h2>",
            *_html_table(None, [[name, _as_text(value)] for name, value in about.items()], num_names=2),
        ]
    listed, left_out = _listed(evaluation)
    parts += [
        "<h2>Per species</h2>",
        *([f"<p>{_escaped(left_out)}</p>"] if left_out else []),
        *_html_table(["species", *_HEADS], [score_cells(scores) for scores in listed]),
        "<p>FPR: share of the other species' images that were taken for this one. "
        "FNR: share of its own images that were taken for others. -: undefined.</p>",
        _image(PER_SPECIES, plots, "Precision and recall of each species"),
        "<h2>Confusion matrix</h2>",
        _image(CONFUSION_MATRIX, plots, "Rows are true species, columns predicted ones"),
    ]
    if worst := worst_confusions(evaluation, _NUM_WORST):
        rows = [[each.truth, each.predicted, str(each.num_images), f"{each.share:.1%}"] for each in worst]
        table = _html_table(["true species", "taken for", "images", "share"], rows, num_names=2)
        parts += ["<h2>Worst confusions</h2>", *table]
    if LEARNING_CURVES in plots:
        parts += ["<h2>Training</h2>", _image(LEARNING_CURVES, plots, "Metrics by epoch")]
    parts += [f"<p>The same numbers for programs: {METRICS}</p>", "</body></html>"]
    return "\n".join(parts) + "\n"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #333; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { font-weight: 600; color: #777; } td.name, th.name { text-align: left; white-space: pre-wrap; }
td.name { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } p { color: #777; }
dl.numbers { display: flex; flex-wrap: wrap; gap: .8rem; }
dl.numbers div { background: #f4f6f8; border-radius: .5rem; padding: .6rem 1rem; }
dt { color: #777; font-size: .85rem; }
dd { margin: 0; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
"""


def _html_table(heads: Sequence[str] | None, rows: Iterable[Sequence[str]], num_names: int = 1) -> list[str]:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = ([' class="name"'] * num_names + [""] * len(cells))[: len(cells)]
        inner = "".join(
            f"<{tag}{kind}>{_escaped(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{inner}</tr>"

    head = [f"<thead>{line('th', heads)}</thead>"] if heads else []
    return ['<div class="wide"><table>', *head, *(line("td", row) for row in rows), "</table></div>"]


def _image(name: str, plots: Mapping[str, bytes], description: str) -> str:
    data = base64.b64encode(plots[name]).decode("ascii")
    return f'<img alt="{_escaped(description)}" src="data:image/png;base64,{data}">'


def _text_matrix(evaluation: Evaluation) -> list[str]:
    """The confusion matrix as text; lines may be longer than a terminal is wide."""
    short = short_names(evaluation.classes)
    names = [display.shown(species) for species in evaluation.classes]
    first = max(map(display.width, short))
    cell = max(first, *(len(str(count)) for row in evaluation.confusion for count in row))
    beside = first + 1 + max(map(display.width, names))
    is_beside = beside + len(names) * (cell + 1) <= TABLE_WIDTH
    width = beside if is_beside else first
    lines = ["confusion matrix: rows are true, columns predicted species"]
    lines.append(" " * width + "".join(f" {display.padded(name, cell, '>')}" for name in short))
    for name, full, row in zip(short, names, evaluation.confusion, strict=True):
        head = f"{display.padded(name, first)} {full}" if is_beside else name
        # A dot keeps the eye on what is not zero.
        lines.append(display.padded(head, width) + "".join(f" {count or '.':>{cell}}" for count in row))
    if not is_beside:
        listed = ", ".join(f"{name} {full}" for name, full in zip(short, names, strict=True))
        lines += ["", *display.wrapped(listed, TABLE_WIDTH, in_words=True)]
    return lines


def _text_confusions(evaluation: Evaluation) -> list[str]:
    worst = worst_confusions(evaluation, _NUM_WORST)
    if not worst:
        return ["no image was taken for another species"]
    rows = [
        (
            display.abridged(display.shown(each.truth), NAME_WIDTH),
            display.abridged(display.shown(each.predicted), NAME_WIDTH),
            str(each.num_images),
            f"{each.share:.1%}",
        )
        for each in worst
    ]
    table = display.aligned(
        [("true species", "taken for", "images", "share"), *rows], "<<>>", columns=TABLE_WIDTH
    )
    return [f"the {len(rows)} worst confusions (the whole matrix is in the report)", *table.split("\n")]


def _escaped(text: str) -> str:
    return html.escape(display.shown(text), quote=True)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _jsonable(value: object) -> object:
    """What JSON can hold: NumPy's numbers as Python's, what is not finite as null, the rest as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _jsonable(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(each) for each in value]
    return str(value)
