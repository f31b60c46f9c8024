"""How well predicted species agree with the true ones: a confusion matrix and what follows from it.

Spark counts, once; every number is then a pure function of the counts, which are kept beside the numbers.
What is 0/0 has one rule each. Precision, recall and F1 are 0, as scikit-learn's `zero_division=0`. The
error rates, and every average over nothing, are not a number, which `to_dict` writes as null: an error
rate of 0 would be praise that nobody has earned. Macro averages are over the species that occur, as a
true or as a predicted one, which is what scikit-learn does when it is not given `labels`: a species of
which the split has no image costs nothing until an image is mistaken for it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pyspark.sql import Column, DataFrame, functions
from pyspark.sql.types import ArrayType

from seedlings_spark import schema
from seedlings_spark.errors import CorpusError, SeedlingsError

# Beyond so many species a report shows the worst ones: a page with all of them is of use to nobody.
MAX_SHOWN, NUM_WORST = 60, 20
# Of a normal distribution 95 % lie within so many standard deviations.
_Z_95 = 1.959963984540054
# How many species an error message lists before it stops.
_MAX_LISTED = 12


@dataclass(frozen=True)
class SpeciesScores:
    """One species against all others. Rates and scores lie between 0 and 1.

    Attributes:
        species: Its name.
        support: How many images truly show it.
        predicted: How many images were said to show it.
        true_positives: How many of those do.
        precision: true_positives / predicted; 0 if it was never predicted.
        recall: true_positives / support; 0 if there is no image of it.
        f1: 2 * true_positives / (support + predicted); 0 if both are.
        false_positive_rate: The share of the other species' images that were mistaken for this one; not a
            number if there are no others.
        false_negative_rate: The share of its own images that were mistaken for others, 1 - recall; not a
            number if there is no image of it.
    """

    species: str
    support: int
    predicted: int
    true_positives: int
    precision: float
    recall: float
    f1: float
    false_positive_rate: float
    false_negative_rate: float


@dataclass(frozen=True)
class Confusion:
    """Images of one species that were taken for another.

    Attributes:
        truth: What they show.
        predicted: What they were taken for.
        num_images: How many they are.
        share: Which share of the images of `truth` they are, above 0 and up to 1.
    """

    truth: str
    predicted: str
    num_images: int
    share: float


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one model on one set of images. `evaluate` makes it.

    Attributes:
        classes: The species, in the order of the matrix.
        confusion: Counts, [true species][predicted species].
        num_images: Their sum.
        accuracy: The share of images on the diagonal.
        macro_f1: Mean over the species that occur, each counting the same.
        micro_f1: From the pooled counts; where each image has one species and one prediction, as here, it is
            the accuracy. It is given because reports elsewhere name it.
        macro_precision: As `macro_f1`.
        macro_recall: As `macro_f1`.
        weighted_f1: Mean of F1, each species counting as many times as it has images.
        per_species: One for each class, in the same order.
    """

    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    num_images: int
    accuracy: float
    macro_f1: float
    micro_f1: float
    macro_precision: float
    macro_recall: float
    weighted_f1: float
    per_species: tuple[SpeciesScores, ...]

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy (Wilson 1927); not numbers without images."""
        return wilson(sum(scores.true_positives for scores in self.per_species), self.num_images)

    def to_dict(self) -> dict[str, object]:
        """The same as lists, dicts, strings and finite numbers, which JSON can hold; null where undefined."""
        return {
            "num_images": self.num_images,
            "accuracy": _finite(self.accuracy),
            "accuracy_interval": [_finite(each) for each in self.accuracy_interval],
            "macro_f1": _finite(self.macro_f1),
            "micro_f1": _finite(self.micro_f1),
            "macro_precision": _finite(self.macro_precision),
            "macro_recall": _finite(self.macro_recall),
            "weighted_f1": _finite(self.weighted_f1),
            "classes": list(self.classes),
            "per_species": [
                {name: _finite(value) for name, value in asdict(scores).items()}
                for scores in self.per_species
            ],
            "confusion_matrix": [list(row) for row in self.confusion],
        }


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927); not numbers where there is nothing to have a share of."""
    if not total:
        return math.nan, math.nan
    found, share = count / total, _Z_95 * _Z_95 / total
    middle = (found + share / 2) / (1 + share)
    spread = math.sqrt(found * (1 - found) * share + share * share / 4) / (1 + share)
    return max(0.0, middle - spread), min(1.0, middle + spread)


_OTHER_CORPUS = (
    "Evaluate on a corpus of the species that the model was trained on, or train a model on this one"
)
_OTHER_MODEL = "Give the species of the model that made these predictions"


def _as_array(rows: DataFrame, name: str) -> Column:
    """A column of vectors or arrays, as arrays."""
    values = schema.column(name)
    if isinstance(rows.schema[name].dataType, ArrayType):
        return values
    from pyspark.ml.functions import vector_to_array  # Spark ML takes its time to import

    return vector_to_array(values)


def confusion_matrix(
    predictions: DataFrame,
    classes: Sequence[str],
    *,
    truth: str = schema.SPECIES,
    predicted: str = schema.PREDICTED_SPECIES,
    probability: str = "",
) -> npt.NDArray[np.int64]:
    """Count how often each species was taken for which.

    One Spark job, so a model's predictions are computed once. At most (classes + 1) ** 2 rows reach the
    driver, however many images and however many unknown names there are.

    Args:
        predictions: One row an image.
        classes: The species, in the order wanted; no duplicates.
        truth: The column of the true species.
        predicted: The column of the predicted species.
        probability: The column of the vectors that the predicted species were chosen by, if these are to be looked at.

    Returns:
        int64 array of shape (classes, classes): rows are true, columns predicted species. All 0 if the table
        is empty.

    Raises:
        CorpusError: There is no column `truth`, or it has a null or a species outside of `classes`.
        SeedlingsError: The same of `predicted`; or a probability is not a number, of which any species could be chosen.
    """
    _check_classes(classes)
    _check_columns(predictions, truth, predicted)
    # Names become places before anything is grouped: 1 to len(classes), and 0 for whatever is none of them.
    # A column that holds no text is compared as it prints.
    names = functions.array(*[functions.lit(name) for name in classes])
    is_no_number = functions.lit(False)
    if probability:
        values = _as_array(predictions, probability)
        is_no_number = functions.exists(values, lambda value: functions.isnan(value) | value.isNull())
    rows = predictions.select(
        schema.column(truth).cast("string").alias("truth"),
        schema.column(predicted).cast("string").alias("predicted"),
        is_no_number.cast("int").alias("no_number"),
    )

    def place(column: str) -> Column:
        return functions.coalesce(functions.array_position(names, functions.col(column)), functions.lit(0))

    counted = (
        rows.groupBy(place("truth").alias("row"), place("predicted").alias("column"))
        .agg(
            functions.count(functions.lit(1)).alias("num_images"),
            functions.sum("no_number").alias("num_no_numbers"),
        )
        .collect()
    )
    counts = np.zeros((len(classes) + 1, len(classes) + 1), dtype=np.int64)
    for group in counted:
        counts[group["row"], group["column"]] = group["num_images"]
    for column, name, strangers, error, cure in (
        (truth, "truth", counts[0].sum(), CorpusError, _OTHER_CORPUS),
        (predicted, "predicted", counts[:, 0].sum(), SeedlingsError, _OTHER_MODEL),
    ):
        if strangers:
            found = _found(column, strangers, counts.sum(), _most_frequent(rows, name, place))
            raise error(found, f"one of {_listed(classes)}", cure)
    if num_no_numbers := sum(int(group["num_no_numbers"] or 0) for group in counted):
        raise SeedlingsError(
            f"probabilities that are not numbers in column {probability!r} of {num_no_numbers} of {counts.sum()} rows",
            "numbers from 0 to 1",
            "The network is damaged or badly trained, or its input has values that are not numbers: choose another"
            " --model-version",
        )
    return counts[1:, 1:].copy()


def evaluate(confusion: npt.NDArray[np.integer[Any]], classes: Sequence[str]) -> Evaluation:
    """The numbers that follow from a confusion matrix.

    Args:
        confusion: Integers of shape (classes, classes), 0 or more: rows are true, columns predicted species.
        classes: At least one species; no duplicates.

    Returns:
        The evaluation. With no images at all, everything but the scores per species is not a number.

    Raises:
        ValueError: The matrix is not of that shape and kind, or the classes are not.
    """
    _check_classes(classes)
    matrix = np.asarray(confusion)
    if matrix.shape != (len(classes), len(classes)) or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(
            f"a confusion matrix of {matrix.dtype} {matrix.shape}, "
            f"expected integers of shape {(len(classes), len(classes))}"
        )
    if (matrix < 0).any():
        raise ValueError(f"a confusion matrix with a count of {matrix.min()}, expected 0 or more")
    # Python's integers from here on: exact, and JSON knows them.
    rows = tuple(tuple(int(count) for count in row) for row in matrix)
    supports = [sum(row) for row in rows]
    predicted = [sum(column) for column in zip(*rows, strict=True)]
    num_images = sum(supports)
    hits = [rows[place][place] for place in range(len(rows))]
    per_species = tuple(
        _scores(species, support, num_predicted, num_hits, num_images)
        for species, support, num_predicted, num_hits in zip(classes, supports, predicted, hits, strict=True)
    )
    occurring = [scores for scores in per_species if scores.support or scores.predicted]
    accuracy = _ratio(sum(hits), num_images, math.nan)
    return Evaluation(
        classes=tuple(classes),
        confusion=rows,
        num_images=num_images,
        accuracy=accuracy,
        macro_f1=_mean([scores.f1 for scores in occurring]),
        micro_f1=accuracy,
        macro_precision=_mean([scores.precision for scores in occurring]),
        macro_recall=_mean([scores.recall for scores in occurring]),
        weighted_f1=_ratio(math.fsum(each.f1 * each.support for each in per_species), num_images, math.nan),
        per_species=per_species,
    )


class _Scored(Protocol):
    """What the scores of a species have, whether pictures show one or any number of them."""

    @property
    def support(self) -> int: ...
    @property
    def predicted(self) -> int: ...
    @property
    def f1(self) -> float: ...


_Scores = TypeVar("_Scores", bound=_Scored)


def worst(per_species: Iterable[_Scores], n: int) -> list[_Scores]:
    """Of the species that occur, as true or as predicted ones, up to `n` with the lowest F1, the lowest first.

    Of two with the same the one with more images comes first, then their order decides.
    """
    found = [scores for scores in per_species if scores.support or scores.predicted]
    return sorted(found, key=lambda scores: (scores.f1, -scores.support))[: max(n, 0)]


def worst_species(evaluation: Evaluation, n: int) -> tuple[SpeciesScores, ...]:
    """`worst` of an evaluation's species."""
    return tuple(worst(evaluation.per_species, n))


def worst_confusions(evaluation: Evaluation, n: int) -> tuple[Confusion, ...]:
    """The confusions of most images, up to `n` of them; none that did not happen.

    Of two with as many images the one with the larger share of its species comes first, then the order of the
    classes decides.
    """
    confusions = [
        Confusion(truth, predicted, count, count / scores.support)
        for truth, row, scores in zip(
            evaluation.classes, evaluation.confusion, evaluation.per_species, strict=True
        )
        for predicted, count in zip(evaluation.classes, row, strict=True)
        if count and predicted != truth
    ]
    confusions.sort(key=lambda confusion: (-confusion.num_images, -confusion.share))
    return tuple(confusions[: max(n, 0)])


def worst_classes(evaluation: Evaluation, n: int) -> list[int]:
    """Places of up to `n` species that are worth a look: those of the worst confusions, then those of the lowest F1."""
    confused = dict.fromkeys(
        each for one in worst_confusions(evaluation, n) for each in (one.truth, one.predicted)
    )
    found = [*confused, *(scores.species for scores in worst_species(evaluation, n))]
    return [evaluation.classes.index(each) for each in list(dict.fromkeys(found))[:n]]


def _scores(species: str, support: int, predicted: int, hits: int, num_images: int) -> SpeciesScores:
    return SpeciesScores(
        species=species,
        support=support,
        predicted=predicted,
        true_positives=hits,
        precision=_ratio(hits, predicted, 0.0),
        recall=_ratio(hits, support, 0.0),
        f1=_ratio(2 * hits, support + predicted, 0.0),
        false_positive_rate=_ratio(predicted - hits, num_images - support, math.nan),
        false_negative_rate=_ratio(support - hits, support, math.nan),
    )


def _ratio(part: float, whole: int, undefined: float) -> float:
    return part / whole if whole else undefined


def _mean(values: Sequence[float]) -> float:
    return _ratio(math.fsum(values), len(values), math.nan)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_classes(classes: Sequence[str]) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes {list(classes)}, expected at least one and no duplicates")


def _most_frequent(rows: DataFrame, column: str, place: Callable[[str], Column]) -> tuple[str | None, int]:
    """Of what is no class the value that occurs most often, and how often."""
    strange = rows.where(place(column) == 0).groupBy(column).agg(functions.count("*").alias("num_images"))
    first = strange.orderBy(functions.desc("num_images"), functions.asc_nulls_last(column)).first()
    return (None, 0) if first is None else (first[column], int(first["num_images"]))


def _check_columns(predictions: DataFrame, truth: str, predicted: str) -> None:
    for column, error in ((truth, CorpusError), (predicted, SeedlingsError)):
        if column not in predictions.columns:
            raise error(
                f"The table to evaluate has no column {column!r}, only {', '.join(predictions.columns)}",
                f"a true species in {truth!r} and a predicted one in {predicted!r}",
                "Give a table with labels that a model has transformed",
            )


def _found(column: str, num_unknown: int, num_rows: int, most_frequent: tuple[str | None, int]) -> str:
    value, count = most_frequent
    what = "null" if value is None else repr(value)
    often = f"{count} row{'s' * (count != 1)}"
    return f"{num_unknown} of {num_rows} rows have no known species in column {column!r}, such as {what} ({often})"


def _listed(classes: Sequence[str]) -> str:
    listed = ", ".join(classes[:_MAX_LISTED])
    return f"{listed} and {len(classes) - _MAX_LISTED} more" if len(classes) > _MAX_LISTED else listed
