"""An evaluation for people and programs: a table for the terminal, plots, one HTML page, and JSON.

Species are names of folders, which may hold anything: they are escaped in HTML, never read as formulas in
plots, and what cannot be printed is replaced. Plots are drawn with matplotlib's objects, not with `pyplot`,
so that nothing is global and a driver without a display, or with threads, can draw.
"""

import csv
import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from seedlings_spark import display, files
from seedlings_spark.reports import html, projector
from seedlings_spark.reports.evaluation import (
    MAX_SHOWN,
    NUM_WORST,
    Evaluation,
    SpeciesScores,
    worst,
    worst_confusions,
    worst_species,
)
from seedlings_spark.reports.findings import Findings
from seedlings_spark.reports.gallery import ListPicture, NumberPicture
from seedlings_spark.reports.multilabel import LabelScores, MultiLabelEvaluation
from seedlings_spark.reports.numbers import NumbersEvaluation
from seedlings_spark.reports.plots import (
    NAME_WIDTH,
    confusion_matrix,
    curves_of,
    in_digits,
    learning_curves,
    per_species,
    predicted_against_true,
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
PREDICTIONS = "predictions.parquet"
PREDICTED_AGAINST_TRUE = "predicted_against_true.png"
# The terminal's table: no line is longer than this, names are cut to that.
TABLE_WIDTH = display.COLUMNS
_NUM_WORST = 15
_HEADS = ("images", "predicted", "precision", "recall", "F1", "FPR", "FNR")


def table(evaluation: Evaluation | MultiLabelEvaluation | NumbersEvaluation) -> str:
    """The numbers as plain text, without a newline at the end.

    First a line for each species (of more than `evaluation.MAX_SHOWN` the worst ones, the lowest F1 first), then
    the averages, then the confusion matrix; where that is wider than `TABLE_WIDTH`, the worst confusions instead.
    Columns of the matrix carry the short names that stand before the species in its rows, or in a list below it.
    "-" is what is undefined. Where pictures show any number of species there is neither matrix nor confusion, and where
    they have numbers nothing but how far off the predicted ones are.
    """
    if isinstance(evaluation, NumbersEvaluation):
        return _numbers_table(evaluation)
    if isinstance(evaluation, MultiLabelEvaluation):
        return _multilabel_table(evaluation)
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
    rows_of_quarter: Sequence[Sequence[int]] = (),
    about: Mapping[str, object],
    findings: Findings | None = None,
) -> list[str]:
    """Write a report: metrics.json, index.html, the plots, and a table of many species.

    metrics.json comes last, and one that is there already is deleted first: a report that has it is whole.
    Other files of that name are overwritten, and learning curves of an earlier report go.
    `predictions.parquet` is the caller's, written between `clear` and this. The folder of an earlier report's projector
    goes with `clear`.

    Args:
        directory: Where to; made if need be. A path on any file system that `files` knows.
        evaluation: The numbers.
        history: Metric -> a value an epoch, as Keras gives it, or None. Without an epoch there is no
            learning_curves.png.
        kept_epoch: The epoch, from 1, whose weights were kept, or None.
        rows_of_quarter: As for `plots.learning_curves`.
        about: What else is known, such as the model's version, the corpus' fingerprint and the split. What
            JSON cannot hold is written as text; numbers that are not finite as null.
        findings: What else was found.

    Returns:
        The names of the files in `directory`, in the order in which they were written.
    """
    about_values = {str(name): _jsonable(value) for name, value in about.items()}
    plots = {
        CONFUSION_MATRIX: confusion_matrix(evaluation),
        PER_SPECIES: per_species(evaluation),
        **_curves(history, kept_epoch, rows_of_quarter),
    }
    findings = findings or Findings()
    found = _jsonable(findings.to_dict())
    metrics = {"format": FORMAT, "about": about_values, **evaluation.to_dict(), **found}  # type: ignore[dict-item]

    files.make_directory(directory)
    _delete_earlier(directory)
    with tempfile.TemporaryDirectory(prefix="seedlings-report-") as folder:
        for name, png in plots.items():
            local = Path(folder) / name
            local.write_bytes(png)
            files.put(local, files.join(directory, name))
    tables = [ALL_SPECIES] if _listed(evaluation)[1] else []
    for name in tables:
        files.write_text(files.join(directory, name), _csv(evaluation.per_species))
    beside = [METRICS, *plots, *tables, *([PREDICTIONS] if findings.gallery is not None else [])]
    if findings.projection is not None:
        projector.write(files.join(directory, projector.FOLDER), findings.projection)
        beside.append(projector.FOLDER)
    page = html.page(
        evaluation,
        findings,
        history=history or {},
        kept_epoch=kept_epoch,
        about=about_values,
        left_files=beside,
    )
    files.write_text(files.join(directory, PAGE), page)
    files.write_text(files.join(directory, METRICS), json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    return [*plots, *tables, PAGE, METRICS]


def write_multilabel(
    directory: str,
    evaluation: MultiLabelEvaluation,
    *,
    history: Mapping[str, Sequence[float]] | None,
    kept_epoch: int | None = None,
    about: Mapping[str, object],
    wrong: Sequence[ListPicture] = (),
) -> None:
    """As `write`, where pictures show any number of species: metrics.json, index.html and plots.

    Args:
        directory: As for `write`.
        evaluation: The numbers.
        history: As for `write`.
        kept_epoch: As for `write`.
        about: As for `write`.
        wrong: Pictures to look at.
    """
    plots = {PER_SPECIES: per_species(evaluation), **_curves(history, kept_epoch)}
    tables = {ALL_SPECIES: _multilabel_csv(evaluation)}
    _write_sheet(directory, "multilabel.html", evaluation, plots, tables, about, wrong)


def write_numbers(
    directory: str,
    evaluation: NumbersEvaluation,
    *,
    history: Mapping[str, Sequence[float]] | None,
    kept_epoch: int | None = None,
    about: Mapping[str, object],
    points: Sequence[tuple[float, float]],
    furthest: Sequence[NumberPicture] = (),
) -> None:
    """As `write`, where pictures have a number each: metrics.json, index.html and plots.

    Args:
        directory: As for `write`.
        evaluation: The numbers.
        history: As for `write`.
        kept_epoch: As for `write`.
        about: As for `write`.
        points: As `numbers.points` gives them.
        furthest: Pictures to look at.
    """
    drawn = predicted_against_true(evaluation, points)
    plots = {PREDICTED_AGAINST_TRUE: drawn, **_curves(history, kept_epoch)}
    _write_sheet(directory, "numbers.html", evaluation, plots, {}, about, furthest)


def _curves(
    history: Mapping[str, Sequence[float]] | None,
    kept_epoch: int | None,
    rows_of_quarter: Sequence[Sequence[int]] = (),
) -> dict[str, bytes]:
    """The plot of learning curves by its name, where there are any."""
    if history is None or not curves_of(history):
        return {}
    return {LEARNING_CURVES: learning_curves(history, kept_epoch, rows_of_quarter)}


def _delete_earlier(directory: str) -> None:
    """Delete what an earlier report has left; first `METRICS`, which says that it is whole."""
    plots = (CONFUSION_MATRIX, PER_SPECIES, PREDICTED_AGAINST_TRUE, LEARNING_CURVES)
    for name in (METRICS, *plots, ALL_SPECIES):
        files.delete(files.join(directory, name))


def _write_sheet(
    directory: str,
    template: str,
    evaluation: MultiLabelEvaluation | NumbersEvaluation,
    plots: Mapping[str, bytes],
    tables: Mapping[str, str],
    about: Mapping[str, object],
    pictures: Sequence[ListPicture | NumberPicture],
) -> None:
    """Write a report from a template of its own, of which metrics.json comes last."""
    about_values = {str(name): _jsonable(value) for name, value in about.items()}
    _delete_earlier(directory)
    for name, png in plots.items():
        files.write_bytes(files.join(directory, name), png)
    for name, text in tables.items():
        files.write_text(files.join(directory, name), text)
    page = html.sheet(
        template,
        evaluation=evaluation,
        about={
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in about_values.items()
        },
        plots=list(plots.items()),
        left_files=[METRICS, *plots, *tables, PREDICTIONS],
        pictures=pictures,
    )
    files.write_text(files.join(directory, PAGE), page)
    metrics = {"format": FORMAT, "about": about_values, **evaluation.to_dict()}
    files.write_text(files.join(directory, METRICS), json.dumps(metrics, indent=2, allow_nan=False) + "\n")


def clear(directory: str) -> None:
    """Make the folder of a report, and delete what an earlier one says is whole."""
    files.make_directory(directory)
    for name in (METRICS, PREDICTIONS, projector.FOLDER):
        files.delete(files.join(directory, name))


_MULTILABEL_HEADS = ("images", "named", "threshold", "precision", "recall", "F1", "AP")


def _multilabel_cells(scores: LabelScores) -> tuple[str, ...]:
    numbers = (scores.precision, scores.recall, scores.f1, scores.average_precision)
    return (str(scores.support), str(scores.predicted), f"{scores.threshold:.3f}", *map(in_digits, numbers))


def _multilabel_table(evaluation: MultiLabelEvaluation) -> str:
    listed: Sequence[LabelScores] = evaluation.per_species
    if len(listed) > MAX_SHOWN:
        listed = worst(listed, NUM_WORST)
    rows = [
        (display.abridged(display.shown(each.species), NAME_WIDTH), *_multilabel_cells(each))
        for each in listed
    ]
    lines = [display.aligned([("species", *_MULTILABEL_HEADS), *rows], "<>>>>>>>", columns=TABLE_WIDTH)]
    if len(listed) < len(evaluation.per_species):
        lines.append(
            f"the {len(listed)} lowest F1 of {len(evaluation.classes):,} species ({ALL_SPECIES} has all)"
        )
    lines += ["", *(f"{name} {in_digits(value)}" for name, value in evaluation.in_words.items())]
    interval = " to ".join(map(in_digits, evaluation.exact_match_interval))
    lines.append(
        f"exact match {in_digits(evaluation.exact_match)} on {evaluation.num_images} images: all of their species"
        f" named, and no others; 95 % interval {interval}"
    )
    return "\n".join(lines)


def _numbers_table(evaluation: NumbersEvaluation) -> str:
    rows = [
        (name, html.of_size(value), " to ".join(map(html.of_size, interval)))
        for name, (value, interval) in evaluation.in_words.items()
    ]
    told = (
        f"on {evaluation.num_images} images, whose numbers are {html.of_size(evaluation.mean)} on average, with a"
        f" standard deviation of {html.of_size(evaluation.deviation)}"
    )
    heads = ("", "value", "95 % interval")
    return "\n".join([display.aligned([heads, *rows], "<><", columns=TABLE_WIDTH), "", told])


def _multilabel_csv(evaluation: MultiLabelEvaluation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("species", *_MULTILABEL_HEADS))
    writer.writerows(
        (display.cell(each.species), *_multilabel_cells(each)) for each in evaluation.per_species
    )
    return text.getvalue()


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
