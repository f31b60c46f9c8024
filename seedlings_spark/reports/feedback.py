"""Labels that come late, beside what was predicted: accuracy by week, version and species.

Pictures that a version calls unknown are counted apart: it has named nothing there that could be right or wrong.
Labels of species that a version does not know are, too: whether they are misspelt or new is a person's to say.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from seedlings_spark import display
from seedlings_spark.reports import html
from seedlings_spark.reports.evaluation import wilson
from seedlings_spark.reports.plots import in_digits
from seedlings_spark.reports.slices import Slices

FORMAT = 1


class Counted(NamedTuple):
    """So many labelled pictures of one week, version, true and predicted species.

    Attributes:
        week: In which they were scored, such as 2026-W48.
        version: That has scored them: model and version.
        truth: Their label.
        predicted: None where they were called unknown.
        is_known: Whether the version knows the label.
        number: How many there are.
    """

    week: str
    version: str
    truth: str
    predicted: str | None
    is_known: bool
    number: int


@dataclass(frozen=True)
class Group:
    """Some labelled pictures.

    Attributes:
        name: Their week, version or true species.
        num_images: How many.
        right: Of how many the label was predicted.
        unknown: How many were called unknown.
    """

    name: str
    num_images: int
    right: int
    unknown: int

    @property
    def wrong(self) -> int:
        """For how many another species was predicted."""
        return self.num_images - self.right - self.unknown

    @property
    def accuracy(self) -> float:
        """The share that is right, of those that were given a species; not a number where none was."""
        named = self.num_images - self.unknown
        return self.right / named if named else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson(self.right, self.num_images - self.unknown)

    def to_dict(self) -> dict[str, object]:
        """The same for JSON."""
        named = self.num_images > self.unknown
        return {
            "name": self.name,
            "num_images": self.num_images,
            "right": self.right,
            "unknown": self.unknown,
            "accuracy": self.accuracy if named else None,
            "accuracy_interval": list(self.interval) if named else None,
        }


@dataclass(frozen=True)
class Labels:
    """What the table of labels held.

    Attributes:
        rows: All of them.
        empty: Those without a label, which are passed over.
        repeated: Those that say again what another row says.
        unmatched: Those whose path no run has scored.
        example: One of these paths.
        strange: Label that the version which has scored the picture does not know -> pictures.
    """

    rows: int
    empty: int
    repeated: int
    unmatched: int
    example: str
    strange: Mapping[str, int] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """What a person is told of them."""
        told = [f"{self.rows:,} rows in the table of labels"]
        told += [f"{self.empty:,} without a label, passed over"] if self.empty else []
        told += [f"{self.repeated:,} that repeat another row"] if self.repeated else []
        if self.unmatched:
            told.append(f"{self.unmatched:,} whose path was never scored, such as {self.example}")
        if self.strange:
            most = sorted(self.strange.items(), key=lambda item: (-item[1], item[0]))
            shown = ", ".join(f"{name} ({count:,})" for name, count in most[:8])
            more = f" and {len(most) - 8} more" if len(most) > 8 else ""
            told.append(
                f"{sum(self.strange.values()):,} of species that the version does not know, in no accuracy:"
                f" {shown}{more}"
            )
        return told


@dataclass(frozen=True)
class TestSplit:
    """What `evaluate` has found of a version on the test split of a corpus."""

    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Feedback:
    """Late labels beside predictions.

    Attributes:
        overall: All pictures whose label their version knows.
        weeks: The oldest first.
        versions: By name.
        species: By name, of the true ones.
        labels: What the table held.
        tests: Version -> its test split, where that is known.
        slices: By columns of the table of labels, of the pictures that were given a species; None where none were
            named.
    """

    overall: Group
    weeks: tuple[Group, ...]
    versions: tuple[Group, ...]
    species: tuple[Group, ...]
    labels: Labels
    tests: Mapping[str, TestSplit] = field(default_factory=dict)
    slices: Slices | None = None

    def beside(self, version: Group) -> str:
        """A version's accuracy beside that on its test split: "lower" or "higher" where their intervals are apart."""
        low, high = version.interval
        test_low, test_high = self.tests[version.name].interval
        return "lower" if high < test_low else "higher" if low > test_high else "not to be told apart"

    def to_dict(self) -> dict[str, object]:
        """The same for JSON."""
        return {
            "format": FORMAT,
            "overall": self.overall.to_dict(),
            **{
                name: [each.to_dict() for each in getattr(self, name)]
                for name in ("weeks", "versions", "species")
            },
            "labels": {
                name: getattr(self.labels, name) for name in ("rows", "empty", "repeated", "unmatched")
            },
            "unknown_species": dict(self.labels.strange),
            **({"slices": self.slices.to_dict()} if self.slices is not None else {}),
            "test_split": {
                name: {"accuracy": test.accuracy, "accuracy_interval": list(test.interval)}
                for name, test in self.tests.items()
            },
        }

    def table(self) -> str:
        """The same for a terminal."""
        rows = [("", "labelled", "unknown", "accuracy", "95 % interval", "test split")]
        for each in (*self.weeks, *self.versions, *self.species, self.overall):
            test = self.tests.get(each.name) if each in self.versions else None
            rows.append(
                (
                    display.shown(each.name),
                    f"{each.num_images:,}",
                    f"{each.unknown:,}",
                    in_digits(each.accuracy),
                    " to ".join(map(in_digits, each.interval)),
                    f"{in_digits(test.accuracy)}, {self.beside(each)}" if test else "",
                )
            )
        return "\n".join([display.aligned(rows, "<>>><<"), "", *map(display.shown, self.labels.words)])


def summarize(
    counts: Iterable[Counted], labels: Labels, tests: Mapping[str, TestSplit] | None = None
) -> Feedback:
    """The numbers that follow from counts.

    Args:
        counts: Of all pictures that have a label and a prediction.
        labels: What the table held; its `strange` is counted here.
        tests: As `Feedback` has it.
    """
    counts = list(counts)
    known = [each for each in counts if each.is_known]
    strange = dict[str, int]()
    for each in counts:
        if not each.is_known:
            strange[each.truth] = strange.get(each.truth, 0) + each.number

    def by(place: str) -> tuple[Group, ...]:
        names = sorted({getattr(each, place) for each in known})
        return tuple(_group(name, [each for each in known if getattr(each, place) == name]) for name in names)

    given = Labels(labels.rows, labels.empty, labels.repeated, labels.unmatched, labels.example, strange)
    return Feedback(_group("all", known), by("week"), by("version"), by("truth"), given, dict(tests or {}))


def page(feedback: Feedback, *, scores: str, copied: int, min_accuracy: float) -> str:
    """One HTML page.

    Args:
        feedback: The numbers.
        scores: Where the predictions are.
        copied: How many wrong pictures were copied.
        min_accuracy: What was asked for; 0 for nothing.
    """
    points = [
        {
            "name": each.name,
            "value": each.accuracy if each.num_images > each.unknown else None,
            "low": each.interval[0] if each.num_images > each.unknown else None,
            "high": each.interval[1],
            "is_marked": each.accuracy < min_accuracy,
            "title": f"{each.name}: {in_digits(each.accuracy)} of {each.num_images - each.unknown:,}",
        }
        for each in feedback.weeks
    ]
    return html.sheet(
        "feedback.html",
        feedback=feedback,
        scores=scores,
        copied=copied,
        least=min_accuracy or None,
        points=points,
    )


def _group(name: str, counts: Sequence[Counted]) -> Group:
    return Group(
        name,
        sum(each.number for each in counts),
        sum(each.number for each in counts if each.predicted == each.truth),
        sum(each.number for each in counts if each.predicted is None),
    )
