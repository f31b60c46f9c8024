"""What a version promises of its answers: sets that hold the true species, and when it says that it knows none.

Both are split conformal prediction (Vovk, Gammerman and Shafer 2005; sets by a probability's size as Sadinle, Lei and
Wasserman 2019): a threshold is the k-th lowest of the validation images' own probabilities. Of new images that are
drawn as those were the promise holds, whatever the network is; how good that is shows in the sets' sizes.

The highest probability says which images are unknown. The energy of the logits (Liu et al. 2020) is no better a sign:
of linear heads that were trained on 9 of 12 species of seedlings it told the other three apart with an area under the
ROC curve of 0.62 in the mean of four such choices, the highest probability with 0.67, and it cannot be had of
probabilities.

Where pictures show any number of species, nothing is promised: a threshold for each of them says from which probability
it is named.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seedlings_spark.errors import CorpusError

# Of a version's manifest: the decisions by the numbers that the network computes with, as it is scored.
KEY = "decisions"
FLOAT32 = "float32"


@dataclass(frozen=True)
class Decisions:
    """Thresholds of one network, and what they promise.

    Args:
        coverage: The share of images whose true species is in their set; 0 for no sets.
        set_from: Species of at least this probability are in the set, and the most probable one always.
        max_unknown: The share of images of known species that may be called unknown; 0 for none.
        unknown_below: An image with a confidence below is called unknown.
        images: Number of the validation images that this was fitted on.
    """

    coverage: float = 0.0
    set_from: float = 0.0
    max_unknown: float = 0.0
    unknown_below: float = 0.0
    images: int = 0

    @classmethod
    def of(cls, manifest: Mapping[str, Any], precision: str = FLOAT32) -> "Decisions":
        """Those of a version, which promises nothing where its manifest has none.

        Args:
            manifest: The version's.
            precision: "int8" for its quantised network; all others give nearly the same probabilities.
        """
        known = manifest.get(KEY) or {}
        found = known.get(precision) or ({} if precision == "int8" else known.get(FLOAT32)) or {}
        return cls(**{name: found[name] for name in cls.__dataclass_fields__ if name in found})

    def to_dict(self) -> dict[str, float]:
        """The same for a manifest."""
        return asdict(self)

    def doubt(self, views: int) -> str:
        """What a person is told where an image's probabilities are means of several views; "" where nothing is.

        A mean's highest probability is lower than the mean of the highest: more images fall below a threshold that was
        fitted on one view of each, and more species into a set.

        Args:
            views: One of `choices.VIEWS`.
        """
        if views == 1 or not self.words:
            return ""
        return (
            f"--tta {views} with thresholds that were fitted without: more known species may be called unknown than was"
            " promised, and sets may be larger than they need be"
        )

    @property
    def words(self) -> str:
        """What a person is told."""
        told = []
        if self.coverage:
            told.append(
                f"{self.coverage:.4g} of species_set hold the true species (probabilities from {self.set_from:.4g})"
            )
        if self.max_unknown:
            told.append(
                f"unknown below a confidence of {self.unknown_below:.4g}, up to {self.max_unknown:.4g} of known species"
            )
        return "; ".join(told)


@dataclass(frozen=True)
class Thresholds:
    """From which probability each class is named, where a row may have any number of them.

    Args:
        values: One for each class, in their order.
        f1: That each class has with it on the rows that it was fitted on; 0 of a class that none of them has.
        support: How many of these rows have each class.
        images: Number of these rows.
    """

    values: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """The same for a manifest."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }


def fit_thresholds(
    probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.floating | np.integer]
) -> Thresholds:
    """For each class the threshold with the highest F1; 0.5 for a class that no row has.

    A threshold lies half-way between two probabilities, so that no engine's rounding moves a row to its other side. Of
    several with the same F1 the highest is taken, which names the class least often.

    Args:
        probabilities: Shape (rows, classes).
        truth: The same shape: 1 where a row has a class.
    """
    found = [
        _best_threshold(probabilities[:, place], truth[:, place] > 0.5) for place in range(truth.shape[1])
    ]
    return Thresholds(
        tuple(threshold for threshold, _ in found),
        tuple(f1 for _, f1 in found),
        tuple(int(count) for count in (truth > 0.5).sum(axis=0)),
        len(truth),
    )


def _best_threshold(values: npt.NDArray[np.floating], has: npt.NDArray[np.bool_]) -> tuple[float, float]:
    if not has.any():
        return 0.5, 0.0
    order = np.argsort(-values, kind="stable")
    falling = values[order].astype(np.float64)
    hits = np.cumsum(has[order])
    f1 = 2 * hits / (np.arange(1, len(falling) + 1) + hits[-1])
    below = np.append(falling[1:], 0.0)
    f1[falling == below] = -1.0  # no threshold parts equal probabilities
    best = int(np.argmax(f1))
    if f1[best] < 0:  # all probabilities are 0
        return 0.5, 0.0
    return float((falling[best] + below[best]) / 2), float(f1[best])


def fit(
    of_truth: npt.NDArray[np.floating],
    highest: npt.NDArray[np.floating],
    *,
    coverage: float,
    max_unknown: float,
) -> Decisions:
    """Fit the thresholds.

    Args:
        of_truth: Shape (images,): the probability of each one's true species.
        highest: Shape (images,): the highest of each one's probabilities.
        coverage: As `Decisions` has it.
        max_unknown: As `Decisions` has it.

    Raises:
        CorpusError: There are too few images for the promise.
    """
    num = len(of_truth)
    # Of so many, one more image is as likely at each place: below the k-th lowest it is with k / (num + 1).
    below = {
        "coverage": math.floor((1 - coverage) * (num + 1) + 1e-9),
        "max_unknown": math.floor(max_unknown * (num + 1) + 1e-9),
    }
    asked = {"coverage": (coverage, 1 - coverage), "max_unknown": (max_unknown, max_unknown)}
    for name, (value, share) in asked.items():
        if value and not below[name]:
            raise CorpusError(
                f"{num:,} validation images for --{name.replace('_', '-')} {value:g}",
                f"at least {math.ceil(1 / share - 1 - 1e-9):,}, or nothing can be promised",
                f"Prepare a corpus with more of them, or choose another --{name.replace('_', '-')}",
            )
    return Decisions(
        coverage=coverage,
        set_from=float(np.sort(of_truth)[below["coverage"] - 1]) if coverage else 0.0,
        max_unknown=max_unknown,
        unknown_below=float(np.sort(highest)[below["max_unknown"] - 1]) if max_unknown else 0.0,
        images=num,
    )
