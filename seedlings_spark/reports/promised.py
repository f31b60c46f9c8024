"""Whether a version keeps what it promises: how often its sets hold the true species, and how many it calls unknown."""

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema
from seedlings_spark.models.decisions import Decisions
from seedlings_spark.reports.evaluation import wilson


@dataclass(frozen=True)
class Promised:
    """A version's decisions on the pictures of a split.

    Attributes:
        decisions: What is promised.
        num_images: How many pictures there are.
        covered: Pictures whose set holds the true species; 0 without sets.
        sizes: Number of species in a set -> how many sets; empty without sets.
        unknown: Pictures that are called unknown.
        right: Pictures that are given a species, the true one.
    """

    decisions: Decisions
    num_images: int
    covered: int
    sizes: dict[int, int]
    unknown: int
    right: int

    @property
    def mean_size(self) -> float:
        """Species in a set, on average."""
        return sum(size * count for size, count in self.sizes.items()) / self.num_images

    def to_dict(self) -> dict[str, object]:
        """Their numbers, as JSON can hold them."""
        found: dict[str, object] = {"num_images": self.num_images, **self.decisions.to_dict()}
        if self.decisions.coverage:
            found |= {"covered": self.covered / self.num_images, "mean_set_size": self.mean_size}
            found |= {
                "covered_interval": list(wilson(self.covered, self.num_images)),
                "sets_by_size": {str(size): count for size, count in sorted(self.sizes.items())},
            }
        if self.decisions.max_unknown:
            named = self.num_images - self.unknown
            found |= {
                "unknown": self.unknown / self.num_images,
                "accuracy_of_named": self.right / named if named else None,
            }
        return found


def promised(predictions: DataFrame, decisions: Decisions, classes: tuple[str, ...]) -> Promised | None:
    """Count what became of a version's promises; None where it has made none, or there are no pictures.

    Args:
        predictions: As `schema.EVALUATED`, with probabilities.
        decisions: The version's.
        classes: The species, in the order of the probabilities.
    """
    if not decisions.images:
        return None
    place = F.array_position(F.array(*map(F.lit, classes)), F.col(schema.SPECIES)).cast("int")
    is_right = F.col(schema.SPECIES) == F.col(schema.PREDICTED_SPECIES)
    threshold = F.lit(decisions.set_from)
    size = F.size(F.filter(schema.PROBABILITIES, lambda value: value >= threshold))
    rows = predictions.select(
        F.greatest(size, F.lit(1)).alias("size"),
        ((F.element_at(schema.PROBABILITIES, place) >= threshold) | is_right).alias("is_covered"),
        (F.col(schema.CONFIDENCE) < F.lit(decisions.unknown_below)).alias("is_unknown"),
        is_right.alias("is_right"),
    )
    counted = rows.groupBy("size").agg(
        F.count("*"),
        F.count_if("is_covered"),
        F.count_if("is_unknown"),
        F.count_if(F.col("is_right") & ~F.col("is_unknown")),
    )
    found = [tuple(map(int, row)) for row in counted.collect()]
    if not found:
        return None
    sizes = {size: count for size, count, *_ in found} if decisions.coverage else {}
    _, images, covered, unknown, right = (sum(column) for column in zip(*found, strict=True))
    return Promised(decisions, images, covered if decisions.coverage else 0, sizes, unknown, right)
