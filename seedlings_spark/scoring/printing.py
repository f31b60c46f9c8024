"""What a person and a scheduler are told of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from seedlings_spark import display
from seedlings_spark.reports import drift
from seedlings_spark.scoring import shadow
from seedlings_spark.scoring.ledger import ALREADY_REJECTED, ALREADY_SCORED
from seedlings_spark.scoring.run import ScoreRun


def printed(run: ScoreRun, form: str) -> str:
    """What `score` prints at its end: a "table" for a person, or one line of "json" for a program."""
    if form == "json":
        return display.as_json(short_summary(run)) + "\n"
    return f"{display.table(summary(run))}\n{drift_table(run)}"


def summary(run: ScoreRun) -> list[tuple[str, object]]:
    """What `score` prints at its end."""
    manifest = run.manifest
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest["rejected_by_reason"].items())
    most = sorted(manifest["images_of_species"].items(), key=lambda item: -item[1])
    seen = [
        (name.replace("_", " "), f"{manifest[name]:,}")
        for name in (ALREADY_SCORED, ALREADY_REJECTED)
        if manifest[name]
    ]
    if manifest.get("without_species"):
        most.append(("without any", manifest["without_species"]))
        most.sort(key=lambda item: -item[1])
    verdict = manifest["drift"]["verdict"]
    # Runs of earlier releases know of none.
    unknown = f" ({manifest['unknown']:,} of them unknown)" if manifest.get("unknown") else ""
    return [
        ("model", f"{manifest['model_name']} {manifest['model_version']}"),
        ("run", display.Whole(run.path or "none, since nothing is new")),
        *([("tables", display.Whole(run.tables_path))] if run.tables_path != run.path else []),
        ("listed", f"{manifest['listed']:,}"),
        ("scored", f"{manifest['scored']:,}" + unknown),
        ("rejected", f"{manifest['rejected']:,}" + (f" ({reasons})" if reasons else "")),
        *seen,
        _said(manifest, most),
        *([("shadow", shadow.in_words(manifest[shadow.FOLDER]))] if shadow.FOLDER in manifest else []),
        (
            "drift",
            verdict if manifest["drift"]["of"] else "unknown: the version has no profile of its corpus",
        ),
    ]


def _said(manifest: Mapping[str, Any], most: Sequence[tuple[str, int]]) -> tuple[str, str]:
    """What was predicted: the numbers, or the species, the most frequent first."""
    if (values := manifest.get("predicted_values")) is None:
        more = " ..." if len(most) > 5 else ""
        return "species", ", ".join(f"{count:,} {name}" for name, count in most[:5]) + more
    if values["mean"] is None:
        return "values", "none"
    return "values", f"{values['mean']:.4g} on average, from {values['least']:.4g} to {values['most']:.4g}"


def drift_table(run: ScoreRun) -> str:
    """How the run differs from the training corpus, as a table; "" where nothing is known."""
    return drift.table(run.drifts) if run.drifts else ""


def short_summary(run: ScoreRun) -> dict[str, Any]:
    """What a scheduler wants to know of a run: its manifest, without what is long."""
    left_out = ("profile", "ledger", "classes", "columns", "files")
    return {"path": run.path, **{key: value for key, value in run.manifest.items() if key not in left_out}}
