"""What a search for options has found: a table for the terminal, one HTML page, and JSON.

The page carries its plot inside and needs no network. It says in words what the numbers show: which options mattered,
whether the best network overfits or underfits, and the command that trains it.
"""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from seedlings_spark import display, files
from seedlings_spark.reports import fitting, plots
from seedlings_spark.reports.evaluation import wilson

PAGE, NUMBERS = "index.html", "search.json"
# Trials that the terminal shows.
_SHOWN = 10
# A gain of accuracy that is not worth as many pictures again as there are.
_LITTLE = 0.01


@dataclass(frozen=True)
class TrialNumbers:
    """One trial, as a report shows it.

    Args:
        number: From 0.
        state: "done", "pruned" or "failed".
        values: Option -> its value, of those that were searched.
        accuracy: On the validation images; None of one that failed.
        epoch: Its epoch, from 1.
        share: Of the training images that it has learned from.
        seconds: That it took.
        error: Why it failed.
        is_finalist: Whether it is the training on all images of one that did well on a sample.
    """

    number: int
    state: str
    values: Mapping[str, object]
    accuracy: float | None
    epoch: int
    share: float
    seconds: float
    error: str = ""
    is_finalist: bool = False


@dataclass(frozen=True)
class CurvePoint:
    """A training on a part of the training images, with the options of the best trial.

    Args:
        share: Of the training images.
        images: How many these are.
        accuracy: On the validation images.
        validation_images: How many these are.
    """

    share: float
    images: int
    accuracy: float
    validation_images: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy, by the number of validation images."""
        return wilson(round(self.accuracy * self.validation_images), self.validation_images)


@dataclass(frozen=True)
class SearchNumbers:
    """What a search has found, as a report shows it.

    Args:
        trials: In the order of their numbers.
        best: Number of the best one.
        history: Loss and accuracy of each epoch of the best one.
        importance: Option -> its share of what made the difference.
        command: That trains the best one.
        about: Further rows of the head: corpus, folder and the like.
        curve: How accuracy grows with the training images, the fewest first; empty if it was not asked for.
    """

    trials: Sequence[TrialNumbers]
    best: int
    history: Mapping[str, Sequence[float]]
    importance: Mapping[str, float]
    command: str
    about: Mapping[str, object] = field(default_factory=dict)
    curve: Sequence[CurvePoint] = ()

    @property
    def ranked(self) -> list[TrialNumbers]:
        """The best trials first, those on all images before those on a sample; failed ones last."""
        order = {"done": 0, "pruned": 1}
        return sorted(
            self.trials,
            key=lambda each: (
                order.get(each.state, 2),
                not each.is_finalist,
                -(each.accuracy or 0),
                each.number,
            ),
        )

    def pairs(self, name: str) -> list[tuple[object, float]]:
        """Of the trials of the search that ended: an option's value, and the accuracy."""
        ended = (each for each in self.trials if each.state == "done" and not each.is_finalist)
        return [(each.values[name], each.accuracy) for each in ended if each.accuracy is not None]


def in_words(numbers: SearchNumbers) -> list[str]:
    """What the numbers show, a sentence or two each."""
    best = next(each for each in numbers.trials if each.number == numbers.best)
    learned = fitting.words(numbers.history, best.epoch)
    said = [f"The best one, trial {best.number}: {learned}"] if learned else []
    if numbers.importance:
        first = sorted(numbers.importance.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {share:.0%}" for name, share in first)
        said.append(f"What made the difference, by PED-ANOVA over the trials that ended: {shares}.")
    if "batch_size" in {name for each in numbers.trials for name in each.values}:
        said += _of_batch_sizes(numbers.pairs("batch_size"))
    if numbers.curve:
        said += _of_curve(numbers.curve)
    failed = [each for each in numbers.trials if each.state == "failed"]
    if failed:
        said.append(
            f"{len(failed)} of {len(numbers.trials)} trials failed, the last with: {failed[-1].error}"
        )
    return said


def _of_batch_sizes(pairs: Sequence[tuple[object, float]]) -> list[str]:
    by_size: dict[object, list[float]] = {}
    for size, accuracy in pairs:
        by_size.setdefault(size, []).append(accuracy)
    if len(by_size) < 2:
        return []
    of_each = ", ".join(
        f"{size}: {median(found):.4f} ({len(found)})"
        for size, found in sorted(by_size.items(), key=lambda item: str(item[0]).rjust(9))
    )
    return [f"Median accuracy by batch size (trials): {of_each}."]


def _of_curve(points: Sequence[CurvePoint]) -> list[str]:
    """Whether more pictures would help: what the last doubling has brought, beside what chance brings."""
    of_each = ", ".join(
        f"{each.images:,} {each.accuracy:.4f} ({each.interval[0]:.4f} to {each.interval[1]:.4f})"
        for each in points
    )
    said = [f"Accuracy by the number of training images, with its 95 % interval: {of_each}."]
    *_, before, last = points
    doublings = math.log2(last.images / before.images)
    gain = (last.accuracy - before.accuracy) / doublings
    # Of two accuracies that chance moves by themselves; on the same pictures it moves their difference less.
    chance = sum((each.interval[1] - each.interval[0]) ** 2 for each in (before, last)) ** 0.5 / 2 / doublings
    found = f"The last doubling of the training images has changed accuracy by {100 * gain:+.1f} points"
    if gain > chance:
        more = f"{found}, more than the {100 * chance:.1f} that chance explains. More pictures would help"
    elif gain + chance < _LITTLE:
        more = f"{found}, {100 * (gain + chance):.1f} at most. As many pictures again would hardly help"
    else:
        more = (
            f"{found}, and chance alone, with {last.validation_images:,} validation images, explains"
            f" {100 * chance:.1f}. Whether more pictures would help cannot be told from them"
        )
    return [*said, f"{more}; over the whole curve a doubling brings {100 * _slope(points):+.1f} points."]


def _slope(points: Sequence[CurvePoint]) -> float:
    """Accuracy that a doubling of the images brings: the line of least squares over the logarithm."""
    places = [math.log2(each.images) for each in points]
    middle = sum(places) / len(places)
    away = [place - middle for place in places]
    return sum(x * each.accuracy for x, each in zip(away, points, strict=True)) / sum(x * x for x in away)


def table(numbers: SearchNumbers) -> str:
    """The best trials as plain text, with what they show and the command that trains the best one."""
    names = list(dict.fromkeys(name for each in numbers.trials for name in each.values))
    rows = [["trial", "accuracy", "epoch", *names]]
    rows += [_cells(each, names) for each in numbers.ranked[:_SHOWN]]
    more = len(numbers.trials) - _SHOWN
    parts = [display.aligned(rows, "<>>" + "<" * len(names))]
    if more > 0:
        parts.append(f"and {more} more, in the report")
    parts += [
        "",
        *("\n".join(display.wrapped(text, display.COLUMNS, in_words=True)) for text in in_words(numbers)),
    ]
    return "\n".join([*parts, "", "Train it with:", numbers.command])


def _cells(trial: TrialNumbers, names: Sequence[str]) -> list[str]:
    accuracy = "-" if trial.accuracy is None else f"{trial.accuracy:.4f}"
    which = f"{trial.number} {trial.state}" + " (all images)" * trial.is_finalist
    return [which, accuracy, str(trial.epoch or "-"), *(_shown(trial.values.get(name, "")) for name in names)]


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return display.shown(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def write(folder: str, numbers: SearchNumbers) -> None:
    """Write `PAGE` and `NUMBERS`.

    Args:
        folder: On any file system; made if it is missing.
        numbers: What was found.
    """
    names = list(dict.fromkeys(name for each in numbers.trials for name in each.values))
    effects = {name: numbers.pairs(name) for name in names}
    picture = plots.effects(effects) if any(effects.values()) else b""
    pictures = {"Accuracy of each trial against each option that was searched": picture}
    if numbers.curve:
        pictures["Accuracy against the number of training images"] = plots.data_curve(
            [(each.images, each.accuracy, *each.interval) for each in numbers.curve]
        )
    files.write_text(files.join(folder, PAGE), _page(numbers, names, pictures))
    content = {**asdict(numbers), "in_words": in_words(numbers)}
    for each, point in zip(content["curve"], numbers.curve, strict=True):
        each["interval"] = point.interval
    files.write_text(files.join(folder, NUMBERS), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _page(numbers: SearchNumbers, names: Sequence[str], pictures: Mapping[str, bytes]) -> str:
    def row(cells: Sequence[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    best = next(each for each in numbers.trials if each.number == numbers.best)
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Search: accuracy {best.accuracy or 0:.4f}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Search: validation accuracy {best.accuracy or 0:.4f}</h1>",
        "<table>",
        *(row([name, _shown(value)]) for name, value in numbers.about.items()),
        "</table>",
        *(f"<p>{_escaped(text)}</p>" for text in in_words(numbers)),
        f"<h2>Train the best one</h2><pre>{_escaped(numbers.command)}</pre>",
    ]
    for title, picture in pictures.items():
        if picture:
            data = base64.b64encode(picture).decode("ascii")
            parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    heads = ["trial", "accuracy", "epoch", *names, "images", "seconds", "reason"]
    parts += ['<h2>Trials</h2><div class="wide"><table>', row(heads, "th")]
    for each in numbers.ranked:
        parts.append(row([*_cells(each, names), f"{each.share:.0%}", f"{each.seconds:.0f}", each.error]))
    return "\n".join([*parts, "</table></div></body></html>"]) + "\n"


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem; border-bottom: 1px solid #8884; white-space: nowrap; }
.wide { overflow-x: auto; } pre { white-space: pre-wrap; padding: .6rem 1rem; background: #8882; }
"""


def _escaped(text: str) -> str:
    return html.escape(display.shown(text))
