"""What is no longer needed of an output of scores, of a run's folder, of a corpus, or of a model in a store.

Nothing is removed that a result still depends on. Of an output these are the newest run, those with the newest
prediction or reject of any file, and those with an entry of the ledger that counts: an old run whose files no later
one has scored again stays. Of a run the last checkpoint stays, and while it has published nothing the one before
too, which counts should the last be damaged. Of a model the current version stays, the one that a rollback leads to,
and the newest. What dead processes have left half-made goes; a lock tells it from what living ones are making.
"""

import contextlib
import datetime
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StructType

from seedlings_spark import corpus, display, files, lock, schema
from seedlings_spark.errors import InputError
from seedlings_spark.models.store import ModelStore
from seedlings_spark.scoring import ledger
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.training.checkpoint import Checkpoints
from seedlings_spark.workflow import runs

_log = logging.getLogger(__name__)
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@dataclass(frozen=True)
class Superfluous:
    """Something that is not needed any more.

    Args:
        path: Where it is, or was.
        num_bytes: That it takes up.
    """

    path: str
    num_bytes: int


def age_of(text: str) -> datetime.timedelta:
    """An age such as `30d`, `12h` or `90m`, as `CleanOptions` takes it."""
    return datetime.timedelta(**{_UNITS[text[-1]]: int(text[:-1])})


def clean_output(
    spark: SparkSession, output: str, age: datetime.timedelta, *, dry: bool
) -> list[Superfluous]:
    """Remove the runs of an output of which nothing is needed; a run whose name is given again is then made again.

    Args:
        spark: The session.
        output: Full URI of the folder of the runs.
        age: Nothing is removed of a run that has ended later.
        dry: Whether to remove nothing, and only say what would be.

    Raises:
        InputError: There are no runs.
        OutputInUseError: A run is under way.
    """
    found = Runs(output)
    if not (found.names() or found.left_behind()):
        raise InputError(f"no run in {output}", "what was given to score as --output", "Check --output")
    with _locked(output, dry=dry) as is_alone:
        removed = [_measured(path) for path in (found.left_behind() if is_alone else [])]
        names = found.in_order()
        ended = {name: _time(found.manifest(name).get("finished")) for name in names}
        old = [name for name in names[:-1] if ended[name] < _now() - age]
        needed = _needed(spark, found, names) if old else set()
        superfluous = [name for name in old if name not in needed]
        removed += [_measured(found.tables_path(name)) for name in superfluous]
        if not dry:
            found.clear()
            for name in superfluous:
                found.delete(name)
            if superfluous:
                found.point_to(found.manifest(names[-1]))
        if len(superfluous) < len(old):
            _log.info(
                "%d runs are old and stay: no later run has what they have of some files",
                len(old) - len(superfluous),
            )
    return removed


def clean_run(run: str, age: datetime.timedelta, *, dry: bool) -> list[Superfluous]:
    """Remove the checkpoints of a run of `train` that no attempt would take up.

    Args:
        run: Its folder.
        age: A checkpoint that is younger stays.
        dry: As for `clean_output`.

    Raises:
        InputError: It is no folder of a run.
        OutputInUseError: It is under way.
    """
    has_published = runs.has_published(run)
    with _locked(run, dry=dry) as is_alone:
        if not is_alone:
            return []
        checkpoints = Checkpoints(files.join(run, runs.CHECKPOINTS)).superfluous(has_published=has_published)
        return _remove([path for path in checkpoints if _is_old(path, age)], dry=dry)


def clean_corpus(path: str, age: datetime.timedelta, *, dry: bool) -> list[Superfluous]:
    """Remove what runs of `prepare` that died have left in the folder of a corpus.

    Args:
        path: Path of the corpus, which may be half-written.
        age: What is younger stays.
        dry: As for `clean_output`.

    Raises:
        CorpusError: There is no such folder, or the only corpus in it is what such a run was about to replace.
    """
    if not files.is_directory(path):
        corpus.load(path)  # says what is missing
    return _remove([each for each in corpus.left_behind(path) if _is_old(each, age)], dry=dry)


def clean_store(store: ModelStore, age: datetime.timedelta, *, dry: bool) -> list[Superfluous]:
    """Remove the versions of a model that are not in use, and what publishers that died have left.

    Args:
        store: The model's.
        age: A version that is younger stays.
        dry: As for `clean_output`.

    Raises:
        StoreError: There is no such model, or a version of it is damaged.
    """
    versions = store.versions()
    if not (versions or store.left_behind()):
        store.resolve()  # says what is missing
    stay = {store.current(), store.previous(), *(each.version for each in versions[-1:])}
    removed = []
    for version in versions:
        if version.version not in stay and _time(version.manifest.get("created")) < _now() - age:
            removed.append(_measured(version.path))
            if not dry:
                store.delete(version.version)
    for path in store.left_behind():
        if _is_old(path, age):
            removed.append(_measured(path))
            if not dry:
                store.remove_left_behind(path)
    return removed


def summary(removed: Sequence[Superfluous], *, dry: bool) -> list[tuple[str, object]]:
    """What was removed, as rows of a table."""
    rows = [(f"{each.num_bytes / 1e6:,.1f} MB", display.Whole(each.path)) for each in removed]
    freed = sum(each.num_bytes for each in removed) / 1e6
    word = "would be freed" if dry else "freed"
    return [*rows, (f"{freed:,.1f} MB", f"{word} by the removal of {len(removed)} folders and files")]


def _needed(spark: SparkSession, found: Runs, names: Sequence[str]) -> set[str]:
    """The runs with the newest prediction, outcome or entry of the ledger of any path."""
    predictions, rejects = (
        found.rows(spark, names, table, StructType()).drop("own") for table in ("predictions", "rejects")
    )
    entries = spark.createDataFrame([], predictions.schema)
    for number, run in enumerate(found.state().ledger):
        part = ledger.part_of(spark, found.output, run).select(schema.PATH)
        entries = entries.union(part.select(schema.PATH, F.lit(run), F.lit(number)))
    return _newest(predictions) | _newest(predictions.union(rejects)) | _newest(entries)


def _newest(rows: DataFrame) -> set[str]:
    """The runs that have the last row of any path."""
    chosen = rows.groupBy(schema.PATH).agg(F.max_by("run", "number").alias("run"))
    return {row[0] for row in chosen.select("run").distinct().collect()}


@contextlib.contextmanager
def _locked(folder: str, *, dry: bool) -> Iterator[bool]:
    """Hold the lock of a folder, or look whether somebody else does: whether nobody does."""
    if dry:
        yield not lock.is_held(folder)
        return
    with lock.Lock(folder, "clean"):
        yield True


def _remove(paths: Sequence[str], *, dry: bool) -> list[Superfluous]:
    removed = [_measured(path) for path in paths]
    for each in [] if dry else removed:
        files.delete(each.path)
    return removed


def _measured(path: str) -> Superfluous:
    return Superfluous(path, files.tree_size(path))


def _is_old(path: str, age: datetime.timedelta) -> bool:
    return files.status(path).modified < (_now() - age).timestamp()


def _time(text: object) -> datetime.datetime:
    """Of a manifest; where it has none, now, so that nothing is removed for it."""
    try:
        time = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return _now()
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
