"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).

A picture is confidently of a species if its probability is at least the mean that pictures labelled so have. Where that
is another species than its label, the label is suspect. Probabilities have to be those of a network that has not been
trained on these pictures: one that has learned a wrong label by heart is sure of it.
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
_FOUND = f"place int, {PROBABILITY} float, {NEW_PROBABILITY} float"


@dataclass(frozen=True)
class Suspects:
    """What executors look for.

    Args:
        thresholds: From which probability a picture is confidently of each species; infinite for none of them.
    """

    thresholds: tuple[float, ...]

    def guesses(
        self, labels: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.int64]:
        """The species that pictures probably show, where that is not their label; else -1.

        Args:
            labels: Shape (pictures,): the place of each one's species.
            probabilities: Shape (pictures, species).
        """
        is_confident = probabilities >= np.array(self.thresholds) - _ROUNDING
        most_probable = probabilities.argmax(axis=1)
        # Of several the most probable one.
        guess = np.where(is_confident.sum(axis=1) > 1, most_probable, is_confident.argmax(axis=1))
        is_suspect = is_confident.any(axis=1) & (guess != labels) & (most_probable != labels)
        return np.where(is_suspect, guess, -1)


def suspects(predictions: DataFrame, classes: Sequence[str], most: int) -> DataFrame:
    """The pictures whose labels are probably wrong, the surest first.

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
    rows = predictions.select(*columns, (place - 1).alias("label"), F.col(schema.PROBABILITIES))
    layout = ", ".join([*(f"{name} string" for name in columns), _FOUND])
    found = rows.mapInArrow(partial(_suspects, task), layout)
    margin = F.col(NEW_PROBABILITY) - F.col(PROBABILITY)
    chosen = found.orderBy(F.desc(margin), schema.PATH).limit(most)
    named = F.element_at(names, F.col("place") + 1).alias(SUGGESTED)
    return chosen.select(*columns, named, PROBABILITY, NEW_PROBABILITY)


def _suspects(task: Suspects, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        labels = batch.column("label").to_numpy(zero_copy_only=False)
        values = batch.column(schema.PROBABILITIES).flatten().to_numpy(zero_copy_only=False)
        values = values.reshape(len(labels), len(task.thresholds))
        guesses = task.guesses(labels, values)
        rows = np.flatnonzero(guesses >= 0)
        chosen = batch.take(pa.array(rows))
        found = {
            **{name: chosen.column(name) for name in (schema.PATH, schema.CONTENT_HASH, schema.SPECIES)},
            "place": pa.array(guesses[rows], pa.int32()),
            PROBABILITY: pa.array(values[rows, labels[rows]], pa.float32()),
            NEW_PROBABILITY: pa.array(values[rows, guesses[rows]], pa.float32()),
        }
        yield pa.RecordBatch.from_pydict(found)
