"""What the labels of a corpus are, and so what a model of it says of a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What is said of each picture; manifests of corpora and of versions have it under `kind`."""

    CLASSIFICATION = "classification"  # one species
    MULTILABEL = "multilabel"  # any number of species
    REGRESSION = "regression"  # a number

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Kind":
        """That of a manifest.

        Raises:
            ValueError: It has another one.
        """
        return cls(manifest.get("kind", cls.CLASSIFICATION))

    @property
    def manifest_format(self) -> int:
        """The format of such manifests: an earlier release, which would take all labels for names, knows 1 only."""
        return list(Kind).index(self) + 1

    @property
    def of_pictures(self) -> str:
        """What pictures of such a corpus do, in words."""
        return {
            Kind.CLASSIFICATION: "show one species each",
            Kind.MULTILABEL: "show any number of species",
            Kind.REGRESSION: "have a number each",
        }[self]

    @property
    def of_versions(self) -> str:
        """What a version of such a corpus does, in words."""
        return {
            Kind.CLASSIFICATION: "names one species",
            Kind.MULTILABEL: "names any number of species",
            Kind.REGRESSION: "gives a number",
        }[self]


@dataclass(frozen=True)
class Reading:
    """How the outputs of a network are read.

    Args:
        kind: One species: the most probable one. Any number of them: those whose probabilities reach their thresholds.
            A number: as it is.
        thresholds: From which probability each class is named, in their order; of any number of species only.
        mean: Of the numbers of the training images, in their unit.
        deviation: Likewise their standard deviation.
    """

    kind: Kind = Kind.CLASSIFICATION
    thresholds: tuple[float, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0


ONE_SPECIES = Reading()
