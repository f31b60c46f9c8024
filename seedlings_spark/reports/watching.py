"""The runs of an output over time: how far the images of each are from the training corpus, and since when too far."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from seedlings_spark import display
from seedlings_spark.reports import drift, html

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A run, as its manifest tells of it.

    Attributes:
        name: Its name.
        started: When it began.
        version: Model and version that it was made with.
        scored: Files that it has scored.
        unknown: Those of them that were called unknown.
        rejected: Files that it has rejected.
        psi: The largest population stability index of all that is compared; None where that is not known, as of a
            version without a profile, or of a run that has scored nothing.
        verdict: One of `drift.VERDICTS`.
        largest: What is furthest from the corpus, and how.
    """

    name: str
    started: str
    version: str
    scored: int
    unknown: int
    rejected: int
    psi: float | None
    verdict: str
    largest: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> "Run":
        """A run, of its manifest."""
        said = manifest.get("drift") or {}
        known = [each for each in said.get("of", ()) if each.get("psi") is not None]
        above = [each for each in known if each["psi"] > each["noise"]]
        first = max(above, key=lambda each: each["psi"], default=None)
        return cls(
            str(manifest["run"]),
            str(manifest.get("started", "")),
            f"{manifest['model_name']} {manifest['model_version']}",
            int(manifest["scored"]),
            int(manifest.get("unknown", 0)),
            int(manifest["rejected"]),
            float(said.get("worst", 0.0)) if known else None,
            str(said.get("verdict", drift.UNKNOWN)),
            f"{first['name']} {first['largest']}".strip() if first else "",
        )


@dataclass(frozen=True)
class Watched:
    """The runs of an output, the oldest first.

    Attributes:
        runs: All of them.
        max_drift: The index up to which a run is in the corridor.
    """

    runs: tuple[Run, ...]
    max_drift: float

    def is_out(self, run: Run) -> bool:
        """Whether a run is outside of the corridor; one of which nothing is known is not."""
        return run.psi is not None and run.psi > self.max_drift

    @property
    def first(self) -> Run | None:
        """The first run that has left the corridor."""
        return next((run for run in self.runs if self.is_out(run)), None)

    @property
    def since(self) -> Run | None:
        """The first one of those that are outside up to the newest run; None where that is inside."""
        found = None
        for run in reversed([run for run in self.runs if run.psi is not None]):
            if not self.is_out(run):
                break
            found = run
        return found

    @property
    def words(self) -> str:
        """What a person is told."""
        if all(run.psi is None for run in self.runs):
            return "nothing is known: no run was made with a version that has a profile of its corpus"
        if self.first is None:
            return f"no run has left the corridor (up to {self.max_drift:g})"
        told = f"{self.first.name} of {self.first.started} was the first to leave the corridor ({self.first.largest})"
        if self.since is None:
            return f"{told}; the newest one is inside"
        if self.since is self.first:
            return f"{told}; none is inside since then"
        return f"{told}; none is inside since {self.since.name} of {self.since.started}"

    def to_dict(self) -> dict[str, object]:
        """The same for JSON."""
        return {
            "format": FORMAT,
            "max_drift": self.max_drift,
            "first": self.first and self.first.name,
            "since": self.since and self.since.name,
            "runs": [{**asdict(run), "is_out": self.is_out(run)} for run in self.runs],
        }

    def table(self) -> str:
        """The same for a terminal, the newest runs last."""
        rows = [("run", "scored", "rejected", "PSI", "verdict", "largest difference")]
        for run in self.runs[-_MOST_ROWS:]:
            index = "-" if run.psi is None else f"{run.psi:.3f}"
            told = "out" if self.is_out(run) else run.verdict
            cells = (run.name, f"{run.scored:,}", f"{run.rejected:,}", index, told, run.largest)
            rows.append(tuple(map(display.shown, cells)))  # type: ignore[arg-type]
        left = len(self.runs) - _MOST_ROWS
        more = [f"and {left:,} older ones, in the report"] if left > 0 else []
        return "\n".join([display.aligned(rows, "<>>>"), *more, "", display.shown(self.words)])

    def page(self, scores: str) -> str:
        """One HTML page.

        Args:
            scores: Where the runs are.
        """
        shown = self.runs[-_MOST_POINTS:]
        points = [
            {
                "name": run.started[:10],
                "value": run.psi,
                "low": None,
                "high": None,
                "is_marked": self.is_out(run),
                "title": f"{run.name}: {run.psi:.3f} {run.largest}" if run.psi is not None else run.name,
            }
            for run in shown
        ]
        top = max([2 * self.max_drift, *(1.1 * run.psi for run in shown if run.psi is not None)])
        return html.sheet("watch.html", watched=self, scores=scores, points=points, top=top)


_MOST_ROWS, _MOST_POINTS = 20, 200


def watched(manifests: Iterable[Mapping[str, Any]], max_drift: float) -> Watched:
    """The runs that these manifests, the oldest first, tell of."""
    return Watched(tuple(map(Run.of, manifests)), max_drift)
