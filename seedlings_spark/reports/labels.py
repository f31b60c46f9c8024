"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).

A picture is confidently of a species if its probability is at least the mean that pictures labelled so have. How many
are confidently of another species than their label says how many labels are wrong; which ones, their labels'
probability: the least probable ones are suspect. Probabilities have to be those of a network that has not been trained
on these pictures: one that has learned a wrong label by heart is sure of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema

# Of equal probabilities sums of floats differ in their last digits.
_ROUNDING = 1e-6
SUGGESTED, PROBABILITY, NEW_PROBABILITY = "suggested", "probability", "new_probability"


@dataclass(frozen=True)
class Suspects:
    """What executors count.

    Args:
        thresholds: From which probability a picture is confidently of each species; infinite for none of them.
    """

    thresholds: tuple[float, ...]

    def are_suspect(
        self, labels: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.bool_]:
        """Whether pictures confidently show another species than their label says.

        Args:
            labels: Shape (pictures,): the place of each one's species.
            probabilities: Shape (pictures, species).
        """
        is_confident = probabilities >= np.array(self.thresholds) - _ROUNDING
        most_probable = probabilities.argmax(axis=1)
        # Of several the most probable one.
        guess = np.where(is_confident.sum(axis=1) > 1, most_probable, is_confident.argmax(axis=1))
        found: npt.NDArray[np.bool_] = (
            is_confident.any(axis=1) & (guess != labels) & (most_probable != labels)
        )
        return found


def suspects(predictions: DataFrame, classes: Sequence[str], most: int) -> DataFrame:
    """The pictures whose labels are probably wrong, the least probable first.

    Args:
        predictions: As `schema.EVALUATED`, with probabilities.
        classes: The species, in the order of the probabilities.
        most: How many pictures, at most.

    Returns:
        `path`, `content_hash`, `species`, `suggested`, `probability` (of the label) and `new_probability`.
    """
    names = F.array(*map(F.lit, classes))
    place = F.array_position(names, F.col(schema.SPECIES)).cast("int")
    own = F.element_at(schema.PROBABILITIES, place)
    means = {row[0]: float(row[1]) for row in predictions.groupBy(place).agg(F.avg(own)).collect()}
    task = Suspects(tuple(means.get(number, float("inf")) for number in range(1, len(classes) + 1)))
    columns = [schema.PATH, schema.CONTENT_HASH, schema.SPECIES]
    values, most_probable = F.col(schema.PROBABILITIES), F.array_max(schema.PROBABILITIES)
    counts = predictions.select((place - 1).alias("label"), values).mapInArrow(
        partial(_count, task), "number long"
    )
    number = sum(row[0] for row in counts.collect())
    named = F.element_at(names, F.array_position(values, most_probable).cast("int"))
    found = predictions.select(
        *columns,
        named.alias(SUGGESTED),
        own.alias(PROBABILITY),
        most_probable.alias(NEW_PROBABILITY),
    )
    disagreeing = found.where(F.col(NEW_PROBABILITY) > F.col(PROBABILITY))
    return disagreeing.orderBy(PROBABILITY, schema.PATH).limit(min(number, most))


def _count(task: Suspects, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        labels = batch.column("label").to_numpy(zero_copy_only=False)
        values = batch.column(schema.PROBABILITIES).flatten().to_numpy(zero_copy_only=False)
        are_suspect = task.are_suspect(labels, values.reshape(len(labels), len(task.thresholds)))
        yield pa.RecordBatch.from_pydict({"number": pa.array([int(are_suspect.sum())], pa.int64())})
