"""Two versions on the same pictures: which one is better, or whether these pictures cannot tell."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import schema

# Verdicts are at this level.
LEVEL = 0.05
Key = TypeVar("Key", bound=Hashable)
BETTER, WORSE, UNTOLD = "better", "worse", "not to be told apart"


@dataclass(frozen=True)
class Paired:
    """What two versions made of the same pictures.

    Attributes:
        num_images: How many these are.
        right: How many of them this version has right.
        others_right: How many the other one.
        only_this: Pictures that only this version has right.
        only_other: Pictures that only the other one has right.
        p_value: Of McNemar's exact test, two-sided: how probable so uneven a share of `only_this` and `only_other`
            is where both are as good.
        verdict: This version is "better", "worse" or "not to be told apart" at `LEVEL`.
    """

    num_images: int
    right: int
    others_right: int
    only_this: int
    only_other: int
    p_value: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """A version beside another one.

    Attributes:
        other: The other version's name.
        overall: On all pictures.
        of_species: Species -> on its pictures. Their p-values are adjusted for their number (Holm 1979), so that
            not one of many species seems better or worse by chance alone.
    """

    other: str
    overall: Paired
    of_species: Mapping[str, Paired]

    def to_dict(self) -> dict[str, object]:
        """The same as JSON can hold it."""
        return asdict(self)

    @property
    def words(self) -> str:
        """What a person is told."""
        found = self.overall
        return (
            f"{found.verdict} than {self.other}" if found.verdict != UNTOLD else f"{UNTOLD} from {self.other}"
        ) + (
            f" (right on {found.right:,} and {found.others_right:,} of {found.num_images:,} pictures; only this one on"
            f" {found.only_this:,}, only {self.other} on {found.only_other:,}; McNemar's exact p = {found.p_value:.3g})"
        )


def mcnemar(only_this: int, only_other: int) -> float:
    """The two-sided p-value of McNemar's exact test: of a binomial distribution of one half."""
    total, few = only_this + only_other, min(only_this, only_other)
    if not total:
        return 1.0
    # In logarithms: the numbers themselves leave a float's range from a thousand pictures on.
    logs = [
        math.lgamma(total + 1) - math.lgamma(each + 1) - math.lgamma(total - each + 1)
        for each in range(few + 1)
    ]
    tail = math.fsum(math.exp(each - total * math.log(2)) for each in logs)
    return min(1.0, 2 * tail)


def compare(other: str, counts: Mapping[str, Sequence[int]]) -> Comparison:
    """The comparison that follows from counts.

    Args:
        other: Name of the other version.
        counts: Species -> its pictures that both versions have right, only this one, only the other one, none.
    """
    values = {species: mcnemar(each[1], each[2]) for species, each in counts.items()}
    adjusted = holm(values)
    of_species = {species: _paired(each, adjusted[species]) for species, each in counts.items()}
    total = [sum(each[place] for each in counts.values()) for place in range(4)]
    return Comparison(other, _paired(total, mcnemar(total[1], total[2])), of_species)


def comparison(predictions: DataFrame, other: str, classes: Sequence[str]) -> Comparison:
    """Compare a table's predictions with those of another version, which stand beside them.

    Args:
        predictions: As `schema.EVALUATED`, with the other version's in `current_species`.
        other: Name of the other version.
        classes: The species, in the order wanted; those without a picture are left out.
    """
    this, that = (
        F.col(schema.SPECIES) == F.col(name) for name in (schema.PREDICTED_SPECIES, schema.CURRENT_SPECIES)
    )
    kinds = [this & that, this & ~that, ~this & that, ~this & ~that]
    sums = [F.sum(kind.cast("int")).alias(f"kind_{place}") for place, kind in enumerate(kinds)]
    rows = predictions.groupBy(schema.SPECIES).agg(*sums).collect()
    found = {row[0]: [int(each or 0) for each in row[1:]] for row in rows}
    return compare(other, {name: found[name] for name in classes if name in found})


def _paired(counts: Sequence[int], p_value: float) -> Paired:
    both, this, that, none = counts
    verdict = UNTOLD if p_value > LEVEL else BETTER if this > that else WORSE
    return Paired(both + this + that + none, both + this, both + that, this, that, p_value, verdict)


def holm(values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values adjusted for their number: the least times all, the next times one less, never falling."""
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for place, (name, value) in enumerate(sorted(values.items(), key=lambda each: each[1])):
        highest = max(highest, min(1.0, value * (len(values) - place)))
        adjusted[name] = highest
    return adjusted
