"""HTML pages, of which an evaluation's is the largest, from the templates of this folder: Jinja's only door.

The page carries its pictures, style and script inside: it needs no network, and its security policy allows none.
Species and paths may hold anything. Jinja escapes all of them, `display.shown` what moves text, and the script puts
names into the page as text only. What it adds is sorting, filtering and curves; without it all tables can be read.
"""

import base64
import datetime
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from seedlings_spark import display
from seedlings_spark.reports import fitting
from seedlings_spark.reports.certainty import BINS
from seedlings_spark.reports.evaluation import NUM_WORST, Evaluation, wilson, worst_classes, worst_species
from seedlings_spark.reports.findings import Findings
from seedlings_spark.reports.plots import curves_of, in_digits

# A matrix of more species is shown in part at first, and of more than the second number in part only.
_MATRIX, _WHOLE_MATRIX = 40, 300
# Of more species only the worst have curves.
_CURVES = 200


def page(
    evaluation: Evaluation,
    findings: Findings,
    *,
    history: Mapping[str, Sequence[float]],
    kept_epoch: int | None,
    about: Mapping[str, object],
    left_files: Sequence[str],
) -> str:
    """The page.

    Args:
        evaluation: The numbers.
        findings: What else was found.
        history: Metric -> a value an epoch; empty without one.
        kept_epoch: The epoch, from 1, whose weights were published.
        about: What else is known, by name, as JSON can hold it.
        left_files: Names of the files beside it.
    """
    script = _file("page.js")
    text: str = (
        _environment()
        .get_template("page.html")
        .render(
            about={name: _as_text(value) for name, value in about.items()},
            areas=[] if findings.certainty is None else findings.certainty.areas(),
            comparison=findings.comparison,
            curves=curves_of(history),
            data=_json(_data(evaluation, findings, history, kept_epoch)),
            evaluation=evaluation,
            findings=findings,
            fitting=fitting.words(history, kept_epoch),
            kept_epoch=kept_epoch,
            left_files=left_files,
            matrix=_matrix(evaluation),
            made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            num_classes=len(evaluation.classes),
            num_wrong=evaluation.num_images - sum(each.true_positives for each in evaluation.per_species),
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {_policy(script)}",
            script=Markup(script),  # noqa: S704 - a file of ours
            style=Markup(_file("page.css")),  # noqa: S704 - likewise
            tops=[k for k in (3, 5) if k < len(evaluation.classes)],
            whole_matrix=_MATRIX < len(evaluation.classes) <= _WHOLE_MATRIX,
        )
    )
    return text


def sheet(template: str, *, script: str = "", data: object = None, **values: object) -> str:
    """A page from a template of its own.

    Args:
        template: Name of a file that extends `base.html`.
        script: Name of its script, if it has one.
        data: What the script is given, as JSON can hold it.
        values: What the page shows.
    """
    text: str = (
        _environment()
        .get_template(template)
        .render(
            made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup(_file("page.css")),  # noqa: S704 - a file of ours
            script=Markup(_file(script)) if script else "",  # noqa: S704 - likewise
            policy=Markup(f"; {_policy(_file(script))}") if script else "",  # noqa: S704 - likewise
            data=_json(data),
            **values,
        )
    )
    return text


def _policy(script: str) -> str:
    """The part of a security policy that lets this script run, and no other."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"script-src 'sha256-{digest}'"


@functools.cache
def _environment() -> jinja2.Environment:
    def final(value: object) -> object:
        return value if isinstance(value, Markup) or not isinstance(value, str) else display.shown(value)

    made = jinja2.Environment(
        autoescape=True,
        finalize=final,
        loader=jinja2.FunctionLoader(_file),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters["digits"] = in_digits
    made.filters["interval"] = lambda counts: " to ".join(map(in_digits, wilson(*counts)))
    made.filters["of_size"] = of_size
    made.filters["sum_of"] = lambda counts: sum(counts.values())
    made.filters["png"] = lambda content: "data:image/png;base64," + base64.b64encode(content).decode()
    made.filters["jpeg"] = lambda content: "data:image/jpeg;base64," + base64.b64encode(content).decode()
    return made


def of_size(value: float) -> str:
    """A number of any unit; a dash where there is none."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _file(name: str) -> str:
    return (resources.files("seedlings_spark.reports") / "templates" / name).read_text(encoding="utf-8")


def _json(value: object) -> Markup:
    """JSON inside of a script element, which nothing in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped above


def _data(
    evaluation: Evaluation,
    findings: Findings,
    history: Mapping[str, Sequence[float]],
    kept_epoch: int | None,
) -> dict[str, object]:
    """What the script draws."""
    certainty = findings.certainty
    curves = {
        name: [None if math.isnan(value) else value for value in values.tolist()]
        for name, values in curves_of(history).items()
    }
    found: dict[str, object] = {
        "species": [display.shown(each) for each in evaluation.classes],
        "history": curves,
        "kept": kept_epoch,
    }
    if _MATRIX < len(evaluation.classes) <= _WHOLE_MATRIX:
        found["confusion"] = [
            [row, column, count]
            for row, counts in enumerate(evaluation.confusion)
            for column, count in enumerate(counts)
            if count
        ]
    disturbed = {"robustness": findings.robustness, "adversarial": findings.adversarial}
    found |= {name: each.to_page() for name, each in disturbed.items() if each is not None}
    if findings.projection is not None:
        found["map"] = findings.projection.to_page(evaluation.classes)
    if certainty is not None:
        places = list(range(len(evaluation.classes)))
        if len(places) > _CURVES:
            worst = worst_species(evaluation, _CURVES)
            places = sorted(evaluation.classes.index(each.species) for each in worst)
        found |= {
            "bins": BINS,
            "chosen": certainty.of_chosen.T.tolist(),
            "counts": {place: certainty.of_species[place].T.tolist() for place in places},
            "reliability": [
                [each.lower, each.upper, each.num_images, each.confidence, each.accuracy]
                for each in certainty.reliability
                if each.num_images
            ],
        }
    return found


def _matrix(evaluation: Evaluation) -> dict[str, Any]:
    """The confusion matrix as it stands in the page: all species, or the worst ones, with the sums of both sides."""
    num_classes = len(evaluation.classes)
    shown = list(range(num_classes)) if num_classes <= _MATRIX else worst_classes(evaluation, NUM_WORST)
    rows = []
    for place in shown:
        counts, scores = evaluation.confusion[place], evaluation.per_species[place]
        cells = [(column, counts[column]) for column in shown]
        others = scores.support - sum(count for _, count in cells)
        rows.append({"place": place, "cells": cells, "others": others, "support": scores.support})
    return {"places": shown, "rows": rows, "is_whole": len(shown) == num_classes}


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
