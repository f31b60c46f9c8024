"""How sure a model is, and how often it is right when it is so sure: counts of probabilities, and what follows.

Executors count, each its partition; the counts add up, and every number is a pure function of them. Probabilities
are counted in `BINS` equal steps, so at each threshold that is a multiple of a step precision, recall and
false-positive rate are exact; areas under curves are those of the probabilities in steps.
"""

import functools
import io
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema

BINS = 200
# Bins of the reliability diagram and of the calibration error: few enough that each has pictures.
RELIABILITY_BINS = 10

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reliability:
    """The pictures whose confidence lies in one bin.

    Attributes:
        lower: Least confidence of the bin.
        upper: Above its highest, which only 1 belongs to.
        num_images: How many they are.
        confidence: Their mean confidence; not a number where there are none.
        accuracy: The share of them that is right; likewise.
    """

    lower: float
    upper: float
    num_images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Certainty:
    """Counts of a split's pictures by probability. `count` makes it, `+` adds what two partitions have.

    Attributes:
        of_species: Shape (classes, BINS, 2): by a species' probability the pictures of others, and its own.
        of_chosen: Shape (BINS, 2): by the highest probability the pictures that are wrong, and that are right.
        confidences: float64 of shape (BINS,): sums of the highest probabilities.
        ranks: Shape (classes,): pictures whose true species is the most probable one, the second one, and so on.
    """

    of_species: Counts
    of_chosen: Counts
    confidences: npt.NDArray[np.float64]
    ranks: Counts

    def __add__(self, other: "Certainty") -> "Certainty":
        return Certainty(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def num_images(self) -> int:
        """All pictures."""
        return int(self.of_chosen.sum())

    def top(self, k: int) -> float:
        """The share of pictures whose true species is among the `k` most probable ones."""
        return float(self.ranks[:k].sum() / self.num_images) if self.num_images else math.nan

    @property
    def reliability(self) -> tuple[Reliability, ...]:
        """Confidence and accuracy in `RELIABILITY_BINS` bins of equal width."""
        counts = self.of_chosen.reshape(RELIABILITY_BINS, -1, 2).sum(axis=1)
        sums = self.confidences.reshape(RELIABILITY_BINS, -1).sum(axis=1)
        return tuple(
            Reliability(
                place / RELIABILITY_BINS,
                (place + 1) / RELIABILITY_BINS,
                int(wrong + right),
                float(total / (wrong + right)) if wrong + right else math.nan,
                float(right / (wrong + right)) if wrong + right else math.nan,
            )
            for place, ((wrong, right), total) in enumerate(zip(counts, sums, strict=True))
        )

    @property
    def calibration_error(self) -> float:
        """The expected calibration error (Guo et al. 2017): how far confidence is from accuracy, in the mean."""
        if not self.num_images:
            return math.nan
        filled = [each for each in self.reliability if each.num_images]
        return math.fsum(e.num_images * abs(e.confidence - e.accuracy) for e in filled) / self.num_images

    def areas(self) -> list[tuple[float, float]]:
        """Of each species the average precision and the area under the ROC curve; NaN where it is not defined."""
        return [_areas(counts) for counts in self.of_species]

    def to_bytes(self) -> bytes:
        """The counts, of which most are 0, in few bytes."""
        content = io.BytesIO()
        np.savez_compressed(content, **vars(self))
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Certainty":
        """The counterpart of `to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return cls(**{name: found[name] for name in cls.__dataclass_fields__})


def count(truth: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating]) -> Certainty:
    """Count some pictures.

    Args:
        truth: Shape (pictures,): the place of each one's true species.
        probabilities: Shape (pictures, classes), from 0 to 1. Of species that are equally probable the first one is
            chosen, as everywhere.
    """
    num, classes = probabilities.shape
    rows = np.arange(num)
    values = probabilities.astype(np.float64)
    bins = np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
    is_true = np.zeros((num, classes), np.int64)
    is_true[rows, truth] = 1
    species = np.broadcast_to(np.arange(classes), (num, classes))
    flat = (species * BINS + bins) * 2 + is_true
    of_species = np.bincount(flat.ravel(), minlength=classes * BINS * 2).reshape(classes, BINS, 2)
    own = values[rows, truth][:, None]
    before = (values > own) | ((values == own) & (species < np.asarray(truth)[:, None]))
    ranks = before.sum(axis=1)
    highest = values.max(axis=1, initial=0.0)
    chosen = np.clip((highest * BINS).astype(np.int64), 0, BINS - 1)
    of_chosen = np.bincount(chosen * 2 + (ranks == 0), minlength=BINS * 2).reshape(BINS, 2)
    sums = np.bincount(chosen, weights=highest, minlength=BINS).astype(np.float64)
    return Certainty(of_species, of_chosen, sums, np.bincount(ranks, minlength=classes))


def certainty(predictions: DataFrame, classes: Sequence[str]) -> Certainty:
    """Count all pictures of a table, by Spark.

    Args:
        predictions: One row a picture, as `schema.EVALUATED`: each species is one of `classes`, and each row has as
            many probabilities.
        classes: The species, in the order of the probabilities.
    """
    names = F.array(*[F.lit(name) for name in classes])
    place = F.array_position(names, F.col(schema.SPECIES)).cast("int") - 1
    num_classes = len(classes)

    def counted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = nothing
        for batch in batches:
            truth = batch.column(0).to_numpy(zero_copy_only=False)
            values = batch.column(1).flatten().to_numpy(zero_copy_only=False).reshape(-1, num_classes)
            found += count(truth, values)
        yield pa.RecordBatch.from_arrays([pa.array([found.to_bytes()], pa.binary())], ["content"])

    nothing = count(np.zeros(0, np.int64), np.zeros((0, num_classes)))
    rows = predictions.select(place.alias("place"), F.col(schema.PROBABILITIES))
    parts = rows.mapInArrow(counted, "content binary").collect()
    return functools.reduce(operator.add, (Certainty.from_bytes(bytes(row[0])) for row in parts), nothing)


def _areas(counts: Counts) -> tuple[float, float]:
    """Average precision and area under the ROC curve of one species, of its counts by probability."""
    others, own = (np.cumsum(counts[::-1, side]) for side in (0, 1))
    if not own[-1]:
        return math.nan, math.nan
    steps = np.diff(own, prepend=0)
    precision = np.divide(own, own + others, out=np.zeros(BINS), where=(own + others) > 0)
    average = float((precision * steps).sum() / own[-1])
    if not others[-1]:
        return average, math.nan
    # Trapezoids: two pictures in the same bin count as half in the right order.
    higher = own - steps / 2
    area = float((np.diff(others, prepend=0) * higher).sum() / (own[-1] * others[-1]))
    return average, area
