"""Numbers -> plots, as PNG files: matplotlib's only door."""

import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from seedlings_spark import display
from seedlings_spark.reports.evaluation import (
    MAX_SHOWN,
    NUM_WORST,
    Evaluation,
    SpeciesScores,
    worst,
    worst_classes,
)
from seedlings_spark.reports.multilabel import LabelScores, MultiLabelEvaluation
from seedlings_spark.reports.numbers import NumbersEvaluation

NAME_WIDTH = 28
_DPI = 150
_INK = "#333333"
_FAINT = "#8a8a8a"
# A blue and an orange that the colour-blind can tell apart (Okabe and Ito 2008).
_BLUE = "#0072b2"
_ORANGE = "#e69f00"
_WRONG = "#b0401e"
# Characters of a value below a panel, and of all its values beside each other.
_VALUE_WIDTH, _VALUES_WIDTH = 24, 40
_LOSS = "loss"
_LEARNING_RATE = ("learning_rate", "lr")
# Parts of the names of metrics of which more is better. Of others but a loss, no value is called the best.
_MORE_IS_BETTER = ("acc", "auc", "f1", "f_beta", "precision", "recall", "iou", "top_k")


def confusion_matrix(evaluation: Evaluation) -> bytes:
    """A PNG of the confusion matrix: counts in the cells, coloured by the share of the species' images.

    A species without images has a grey row. Of more than `evaluation.MAX_SHOWN` classes it shows the
    `evaluation.NUM_WORST` that are in the worst confusions, and what they were taken for: each other, or others.
    """
    true, predicted, counts = _shown_matrix(evaluation)
    supports = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, supports, out=np.full_like(counts, np.nan), where=supports > 0)
    num_classes = len(predicted)
    cell, font = _size_of_cells(num_classes, len(str(int(counts.max()))))
    side = cell * num_classes

    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    figure.set_size_inches(side, cell * len(true))
    # The square root lets a confusion of a few per cent be seen beside a diagonal of nearly all.
    mesh = axes.pcolormesh(
        shares,
        cmap=matplotlib.colormaps["Blues"].with_extremes(bad="#ececec"),
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        edgecolors="white",
        linewidth=0.8,
    )
    _write_counts(axes, counts, shares, font)
    supported = [f"{name} ({int(support)})" for name, support in zip(true, supports[:, 0], strict=True)]
    _label_matrix(axes, predicted, supported, min(font, 11))
    left_out = (
        f"\n{len(true)} species of the worst confusions, of {len(evaluation.classes):,} species"
        if len(true) < num_classes
        else ""
    )
    axes.set_title(headline_of(evaluation) + left_out, loc="left", fontsize=12, color=_INK, pad=12)
    # The bar beside the matrix, in inches.
    bar = figure.add_axes((1 + 0.2 / side, max(0.0, 1 - 3.0 / side), 0.16 / side, min(1.0, 3.0 / side)))
    figure.colorbar(
        mesh, cax=bar, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1.0], format=lambda share, _: f"{share:.0%}"
    )
    bar.tick_params(length=0, labelsize=8, labelcolor=_INK)
    bar.set_ylabel("share of the row", fontsize=8, color=_FAINT)
    bar.spines[:].set_visible(False)
    return _png(figure)


def _shown_matrix(evaluation: Evaluation) -> tuple[list[str], list[str], npt.NDArray[np.float64]]:
    """Names of the rows and of the columns of the matrix that is drawn, and its counts."""
    counts = np.array(evaluation.confusion, dtype=np.float64)
    names = [display.abridged(display.shown(species), NAME_WIDTH) for species in evaluation.classes]
    if len(names) <= MAX_SHOWN:
        return names, names, counts
    chosen = worst_classes(evaluation, NUM_WORST)
    rows = counts[chosen]
    others = rows.sum(axis=1) - rows[:, chosen].sum(axis=1)
    shown = [names[each] for each in chosen]
    return shown, [*shown, f"{len(names) - len(chosen):,} others"], np.column_stack([rows[:, chosen], others])


def per_species(evaluation: Evaluation | MultiLabelEvaluation) -> bytes:
    """A PNG with a bar for precision and one for recall of each species, the lowest F1 on top.

    Of more than `evaluation.MAX_SHOWN` species it shows the `evaluation.NUM_WORST` with the lowest F1.
    """
    scored: Sequence[SpeciesScores | LabelScores] = evaluation.per_species
    ordered = sorted(scored, key=lambda scores: scores.f1)
    if len(ordered) > MAX_SHOWN:
        ordered = worst(ordered, NUM_WORST)
    places = np.arange(len(ordered))
    inches = 0.4 if len(ordered) <= 20 else 0.3
    height, font = max(1.2, inches * len(ordered)), 9 if len(ordered) <= 20 else 8
    figure = Figure()
    figure.set_size_inches(7, height)
    axes = figure.add_axes((0, 0, 1, 1))
    for offset, colour, label, values in (
        (-0.2, _BLUE, "precision", [scores.precision for scores in ordered]),
        (0.2, _ORANGE, "recall", [scores.recall for scores in ordered]),
    ):
        axes.barh(places + offset, values, height=0.36, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(
                value + 0.008, place + offset, f"{value:.2f}", va="center", fontsize=font - 2, color=_INK
            )
    axes.set_yticks(places)
    axes.set_yticklabels([_supported(scores) for scores in ordered], fontsize=font, parse_math=False)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlim(0, 1.06)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.spines[:].set_visible(False)
    shown = "lowest F1 on top"
    if len(ordered) < len(evaluation.per_species):
        shown = f"the {len(ordered)} lowest F1 of {len(evaluation.classes):,} species"
    title = f"Macro F1 {in_digits(evaluation.macro_f1)} over {evaluation.num_images:,} images, {shown}"
    axes.set_title(title, loc="left", fontsize=12, color=_INK, pad=28)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        bbox_transform=axes.transAxes,
        ncols=2,
        frameon=False,
        fontsize=9,
        borderaxespad=0.3,
        borderpad=0,
    )
    return _png(figure)


def predicted_against_true(evaluation: NumbersEvaluation, points: Sequence[tuple[float, float]]) -> bytes:
    """A PNG with a dot for each picture: the number that it has, and the one that is predicted.

    Args:
        evaluation: The numbers.
        points: (true, predicted).
    """
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    true, predicted = zip(*points, strict=True) if points else ((), ())
    axes.plot(true, predicted, "o", color=_BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
    if points:
        axes.axline((true[0], true[0]), slope=1, color=_FAINT, linewidth=1, linestyle=":", zorder=0)
    axes.set(xlabel="true", ylabel="predicted")
    shown = "" if len(points) == evaluation.num_images else f", {len(points):,} of which are drawn"
    axes.set_title(
        f"R2 {in_digits(evaluation.r2)} on {evaluation.num_images:,} images{shown}",
        loc="left",
        fontsize=10,
        color=_INK,
    )
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, labelcolor=_INK, color="#b0b0b0")
    return _png(figure)


def learning_curves(
    history: Mapping[str, Sequence[float]],
    kept_epoch: int | None = None,
    rows_of_quarter: Sequence[Sequence[int]] = (),
) -> bytes:
    """A PNG of how training went: loss, every other metric, and the learning rate if it is known.

    A metric and its `val_` twin share a panel, whose title names the best value of the validation: the lowest
    loss, the highest accuracy and the like. Values that are not finite leave a gap; metrics that are not one
    number an epoch are left out.

    Args:
        history: Metric -> a value an epoch, as Keras gives it. With no epochs the picture says so.
        kept_epoch: The epoch, from 1, whose weights were kept; it is marked.
        rows_of_quarter: With a curriculum, of each epoch how many images of each quarter of difficulty it went through,
            the easiest first; they have a panel of their own.
    """
    curves = curves_of(history)
    panels = list(dict.fromkeys(name.removeprefix("val_") for name in curves))
    # Loss first, learning rate last, the others in the order of the history.
    panels.sort(key=lambda name: (name in _LEARNING_RATE) - (name == _LOSS))
    num_panels = len(panels) + bool(rows_of_quarter)
    num_columns = min(3, max(1, num_panels))
    num_rows = max(1, math.ceil(num_panels / num_columns))
    figure = Figure(figsize=(4.4 * num_columns, 3.2 * num_rows), layout="constrained")
    if not panels:
        axes = figure.subplots()
        axes.text(0.5, 0.5, "no epochs yet", ha="center", va="center", color=_FAINT, fontsize=12)
        axes.set_axis_off()
        return _png(figure)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    num_epochs = max(len(values) for values in curves.values())
    for axes, name in zip(grid, panels, strict=False):
        _curve_panel(axes, name, curves.get(name), curves.get(f"val_{name}"), num_epochs)
        if kept_epoch:
            axes.axvline(kept_epoch, color=_FAINT, linewidth=1, linestyle=":", zorder=0)
            place = axes.get_xaxis_transform()
            side = "right" if kept_epoch > num_epochs / 2 else "left"
            axes.text(
                kept_epoch, 0.98, " kept ", ha=side, va="top", color=_FAINT, fontsize=8, transform=place
            )
    if rows_of_quarter:
        _quarters_panel(grid[len(panels)], np.array(rows_of_quarter).T)
    for axes in grid[num_panels:]:
        axes.set_axis_off()
    return _png(figure)


def effects(pairs: Mapping[str, Sequence[tuple[object, float]]]) -> bytes:
    """A PNG of how accuracy goes with each option of a search: a panel an option, a dot a trial.

    Args:
        pairs: Option -> value and accuracy of each trial. Numbers that span a factor of ten stand on a logarithmic
            axis, and what is no number stands side by side.
    """
    num_columns = min(3, len(pairs))
    num_rows = math.ceil(len(pairs) / num_columns)
    figure = Figure(figsize=(4.4 * num_columns, 3.2 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (name, found) in zip(grid, pairs.items(), strict=False):
        values = [value for value, _ in found]
        places: Sequence[float] = [
            float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if len(places) < len(values):
            texts = [" ".join(value) if isinstance(value, list | tuple) else str(value) for value in values]
            labels = sorted(set(texts))
            places = [labels.index(text) for text in texts]
            written = [
                display.abridged(display.shown(label), _VALUE_WIDTH, _VALUE_WIDTH // 2) for label in labels
            ]
            is_level = sum(map(len, written)) <= _VALUES_WIDTH
            turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
            axes.set_xticks(range(len(labels)), written, parse_math=False, **({} if is_level else turned))
            axes.set_xlim(-0.5, len(labels) - 0.5)
        elif 0 < 10 * min(places, default=0) <= max(places, default=0):
            axes.set_xscale("log")
        axes.plot(places, [accuracy for _, accuracy in found], "o", color=_BLUE, markersize=5, alpha=0.7)
        axes.set_title(display.shown(name), loc="left", fontsize=10, color=_INK, parse_math=False)
        axes.grid(True, color="#e4e4e4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, labelcolor=_INK, color="#b0b0b0")
    for axes in grid[len(pairs) :]:
        axes.set_axis_off()
    return _png(figure)


def answers(
    pixels: npt.NDArray[np.uint8], true: Sequence[str], predicted: Sequence[str], shares: Sequence[float]
) -> bytes:
    """A PNG of pictures, each with what it is and, where that is something else, what it was taken for.

    Args:
        pixels: Shape (images, height, width, 3), 0 to 255.
        true: The species of each.
        predicted: What each was taken for.
        shares: The probability of that, from 0 to 1.
    """
    columns = min(4, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.2 * rows), layout="constrained")
    for place, image in enumerate(pixels):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        is_right = true[place] == predicted[place]
        told = [true[place], f"{shares[place]:.0%} {'right' if is_right else predicted[place]}"]
        axes.set_title(
            "\n".join(display.abridged(display.shown(line), NAME_WIDTH) for line in told),
            fontsize=8,
            color=_INK if is_right else _WRONG,
            parse_math=False,
        )
    return _png(figure)


def changes(pixels: npt.NDArray[np.uint8], changed: npt.NDArray[np.uint8]) -> bytes:
    """A PNG with a row for each image: itself, and what training may make of it.

    Args:
        pixels: Shape (images, height, width, 3), 0 to 255.
        changed: Shape (images, count, height, width, 3).
    """
    sheet = np.concatenate([pixels[:, None], changed], axis=1)
    rows, columns = sheet.shape[:2]
    figure = Figure(figsize=(1.3 * columns, 1.3 * rows + 0.3), layout="constrained")
    for place, image in enumerate(sheet.reshape(-1, *sheet.shape[2:])):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        if place < 2:
            axes.set_title(("the image", "as trained on")[place], loc="left", fontsize=8, color=_INK)
    return _png(figure)


def data_curve(points: Sequence[tuple[int, float, float, float]]) -> bytes:
    """A PNG of accuracy by the number of training images.

    Args:
        points: (images, accuracy, lower and upper end of its interval).
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    images, accuracies, lows, highs = zip(*points, strict=True)
    axes.plot(images, accuracies, "o-", color=_BLUE, markersize=5, linewidth=1.2)
    axes.vlines(images, lows, highs, color=_BLUE, linewidth=1, alpha=0.6)
    axes.set(xscale="log", xlabel="training images", ylabel="validation accuracy, with its 95 % interval")
    axes.set_xticks(images, [f"{number:,}" for number in images])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, labelcolor=_INK, color="#b0b0b0")
    return _png(figure)


def _curve_panel(
    axes: Axes,
    name: str,
    training: npt.NDArray[np.float64] | None,
    validation: npt.NDArray[np.float64] | None,
    num_epochs: int,
) -> None:
    title = display.shown(name).replace("_", " ")
    # With few epochs, or gaps around one, a line alone would show nothing.
    marker = "o" if num_epochs <= 40 else ""
    drawn = False
    for values, colour, label in ((training, _BLUE, "training"), (validation, _ORANGE, "validation")):
        if values is None:
            continue
        # Validation every k-th epoch has fewer values: Keras' `validation_freq`.
        epochs = np.arange(1, len(values) + 1) * max(1, num_epochs // len(values))
        finite = np.isfinite(values)
        lonely = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
        axes.plot(epochs, values, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=label)
        axes.plot(epochs[lonely], values[lonely], color=colour, marker="o", markersize=3.5, linestyle="")
        drawn = drawn or bool(finite.any())
        is_loss = _LOSS in name
        if (
            label == "validation"
            and finite.any()
            and (is_loss or any(part in name for part in _MORE_IS_BETTER))
        ):
            best = int(np.nanargmin(values) if is_loss else np.nanargmax(values))
            title += f": best {values[best]:.4g} in epoch {epochs[best]}"
            axes.axvline(float(epochs[best]), color=_ORANGE, linewidth=1, linestyle=":", zorder=0)
    if not drawn:
        axes.text(
            0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center", color=_FAINT
        )
    elif (
        name in _LEARNING_RATE
        and training is not None
        and 0 < 10 * np.nanmin(training) <= np.nanmax(training)
    ):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    _frame_of_epochs(axes, title, num_epochs)
    if validation is not None and training is not None:
        axes.legend(frameon=False, fontsize=8)


def _quarters_panel(axes: Axes, counts: npt.NDArray[np.int64]) -> None:
    """Bars of what each epoch went through; counts of shape (quarters, epochs)."""
    num_quarters, num_epochs = counts.shape
    bottoms = np.cumsum(counts, axis=0) - counts
    shades = matplotlib.colormaps["Blues"](np.linspace(0.25, 0.9, num_quarters))
    labels = ["easiest quarter", *[""] * (num_quarters - 2), "hardest quarter"]
    for values, bottom, shade, label in zip(counts, bottoms, shades, labels, strict=True):
        axes.bar(
            np.arange(1, num_epochs + 1), values, width=1, bottom=bottom, color=shade, label=label or None
        )
    _frame_of_epochs(axes, "images by difficulty", num_epochs)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right", reverse=True)


def _frame_of_epochs(axes: Axes, title: str, num_epochs: int) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=_INK, parse_math=False)
    axes.set_xlabel("epoch", color=_FAINT, fontsize=9)
    axes.set_xlim(0.5, num_epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, labelcolor=_INK, color="#b0b0b0")


def curves_of(history: Mapping[str, Sequence[float]]) -> dict[str, npt.NDArray[np.float64]]:
    """Those metrics of a history that are one number an epoch, NaN where it is none or not finite."""
    curves = {}
    for name, values in history.items():
        try:
            numbers = np.array([math.nan if value is None else float(value) for value in values])
        except (TypeError, ValueError, OverflowError):
            continue
        if len(numbers):
            curves[str(name)] = np.where(np.isfinite(numbers), numbers, np.nan)
    return curves


def _size_of_cells(num_classes: int, num_digits: int) -> tuple[float, float]:
    """The side of a matrix' cells in inches and the font in points: the largest count fits."""
    font = float(np.interp(num_classes, [2, 12, 25, 40], [13, 10, 8, 7]))
    cell = float(np.interp(num_classes, [1, 2, 4, 12, 25, 40], [1.8, 1.2, 0.95, 0.58, 0.42, 0.34]))
    # A digit is 0.65 of its height wide.
    return max(cell, (0.65 * num_digits + 0.6) * font / 72), font


def _write_counts(
    axes: Axes, counts: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], font: float
) -> None:
    for row, column in np.argwhere(counts >= 0):
        colour = "white" if shares[row, column] > 0.35 else _INK
        axes.text(
            column + 0.5,
            row + 0.5,
            str(int(counts[row, column])),
            ha="center",
            va="center",
            fontsize=font,
            color=colour if counts[row, column] else "#c4c4c4",
        )


def _label_matrix(axes: Axes, predicted: Sequence[str], true: Sequence[str], font: float) -> None:
    places = np.arange(len(predicted)) + 0.5
    slanted = len(predicted) <= 20
    axes.set_xticks(places)
    axes.set_xticklabels(
        predicted,
        fontsize=font,
        parse_math=False,
        rotation=45 if slanted else 90,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
    axes.set_yticks(np.arange(len(true)) + 0.5)
    axes.set_yticklabels(true, fontsize=font, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("predicted species", color=_FAINT, labelpad=8)
    axes.set_ylabel("true species (images)", color=_FAINT, labelpad=8)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.set_frame_on(False)


def inference(curves: Mapping[str, Sequence[tuple[int, float, float, float]]]) -> bytes:
    """A PNG of images a second and of the time of a call by the number of images in it.

    Args:
        curves: Of each engine, by what it is called: (images of a call, images/s, median and 99 % of a call in ms).
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for place, (name, points) in enumerate(curves.items()):
        batches, speeds, medians, tails = zip(*points, strict=True)
        style = {"marker": "o", "markersize": 4, "linewidth": 1.2, "linestyle": ("-", "--")[place % 2]}
        (line,) = axes[0].plot(batches, speeds, label=name, color=f"C{place // 2}", **style)
        axes[1].plot(batches, medians, color=line.get_color(), **style)
        axes[1].vlines(batches, medians, tails, color=line.get_color(), linewidth=0.8, alpha=0.6)
    shown = sorted({point[0] for points in curves.values() for point in points})
    for each, label in zip(axes, ("images/s", "ms a call: median, and up to 99 % of the calls"), strict=True):
        each.set(xscale="log", yscale="log", xlabel="images in a call", ylabel=label)
        each.set_xticks(shown, [str(number) for number in shown])
        each.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    # Without the software's name, the same numbers give the same bytes wherever they are drawn the same.
    figure.savefig(
        content,
        format="png",
        dpi=_DPI,
        bbox_inches="tight",
        pad_inches=0.2,
        facecolor="white",
        metadata={"Software": None},
    )
    return content.getvalue()


def score_cells(scores: SpeciesScores) -> list[str]:
    """A species' row of a table."""
    return [
        scores.species,
        str(scores.support),
        str(scores.predicted),
        in_digits(scores.precision),
        in_digits(scores.recall),
        in_digits(scores.f1),
        in_digits(scores.false_positive_rate),
        in_digits(scores.false_negative_rate),
    ]


def short_names(species: Sequence[str]) -> list[str]:
    """A name of up to four characters for each species, all different: "Common wheat" is "CoWh".

    Those that would be the same, or empty, are named by their place instead: "#3".
    """
    short = []
    for name in species:
        words = [word for word in re.split(r"[\W_]+", name) if word]
        if len(words) > 1:
            short.append(words[0][:2].capitalize() + words[-1][:2].capitalize())
        else:
            short.append("".join(words)[:4])
    times = Counter(short)
    return [name if name and times[name] == 1 else f"#{place}" for place, name in enumerate(short, start=1)]


def headline_of(evaluation: Evaluation) -> str:
    """The two numbers that are looked at first, in words."""
    return (
        f"Accuracy {in_digits(evaluation.accuracy)} on {evaluation.num_images:,} images, "
        f"macro F1 {in_digits(evaluation.macro_f1)}"
    )


def _supported(scores: SpeciesScores | LabelScores) -> str:
    return f"{display.abridged(display.shown(scores.species), NAME_WIDTH)} ({scores.support})"


def in_digits(value: float) -> str:
    """A share with four digits; a dash where there is none."""
    return f"{value:.4f}" if math.isfinite(value) else "-"
