"""Pictures that are to be forgotten: out of scores and a corpus, and which versions were trained on them.

Before anything is written it is known what is held where. Whenever the job is killed, each place is as it was, or
without the pictures; a file `.forgetting-...` in it, which goes last, keeps content hashes and the paths of copies for
the call that ends the work: by then a picture may be in one of the places only, under another name.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from seedlings_spark import config, corpus, display, files, fingerprint, schema
from seedlings_spark.config import ForgetOptions
from seedlings_spark.corpus import Corpus, tables
from seedlings_spark.corpus import erasure as of_corpus
from seedlings_spark.corpus.erasure import Held, Pictures
from seedlings_spark.corpus.manifest import FORGOTTEN
from seedlings_spark.errors import CorpusError, InputError
from seedlings_spark.lock import Lock
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.scoring import erasure as of_scores
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import late_labels, runs

_log = logging.getLogger(__name__)
_JOURNAL = ".forgetting-"
_EXAMPLES = 3
_TRAINED_ON = (schema.TRAIN, schema.VALIDATION)


@dataclass(frozen=True)
class Forgotten:
    """What `forget` has done.

    Args:
        paths: How many were given.
        unmatched: Those of them that nothing held.
        copies: Other paths of the same bytes, which have gone, too.
        scores: Predictions, rejects and runs that have changed; None without `--output`.
        corpus: What is gone from the corpus, and what it is now; None without `--corpus`.
        fingerprint: Of the corpus before.
        versions: That were trained on any of the pictures: name and version, path and fingerprint of the corpus.
        unknown: Versions of which it is not known, since their corpus is gone or another one by now.
        elsewhere: Other corpora that hold any of them.
        tables: Kept features, tables of cross-validations and pictures of runs that have gone or were written anew.
        there: Files of the pictures that still exist.
    """

    paths: int
    unmatched: Sequence[str]
    copies: Sequence[str]
    scores: of_scores.Erased | None = None
    corpus: of_corpus.Erased | None = None
    fingerprint: str = ""
    versions: Sequence[tuple[str, str, str]] = ()
    unknown: Sequence[str] = ()
    elsewhere: Sequence[str] = ()
    tables: Sequence[str] = ()
    there: Sequence[str] = ()

    def summary(self) -> list[tuple[str, object]]:
        """Rows of a table for a person to read."""
        rows: list[tuple[str, object]] = [
            ("paths", f"{self.paths:,}, of which {self.paths - len(self.unmatched):,} were found")
        ]
        if self.copies:
            rows.append(("copies", _some(self.copies, "other paths of the same bytes have gone, too")))
        if self.scores is not None:
            of = self.scores
            text = f"{of.predictions:,} predictions and {of.rejects:,} rejects are gone, of {len(of.runs):,} runs"
            rows.append(("scores", text))
        if self.corpus is not None:
            splits = ", ".join(f"{count:,} {split}" for split, count in self.corpus.images_of_split.items())
            text = f"{self.corpus.num_images:,} images{f' ({splits})' if splits else ''}"
            rows.append(("corpus", f"{text} and {self.corpus.rejected:,} rejects are gone"))
            now = self.corpus.corpus.fingerprint
            is_same = now == self.fingerprint
            rows.append(
                ("fingerprint", f"{now} (as before)" if is_same else f"{now} (before: {self.fingerprint})")
            )
        for name, path, trained in self.versions:
            rows.append(("trained", display.Whole(f"{name}, on {path} of the fingerprint {trained}")))
        if self.unknown:
            rows.append(
                ("not known", _some(self.unknown, "versions, whose corpora are gone or others by now"))
            )
        rows += [
            ("held by", display.Whole(f"{path}: call forget --corpus for it")) for path in self.elsewhere
        ]
        rows += [("removed from", display.Whole(path)) for path in self.tables]
        if self.there:
            text = "files of them still exist: delete these, or score and prepare take them as new ones"
            rows.append(("still there", f"{len(self.there):,} {text}"))
            rows += [("", display.Whole(path)) for path in self.there]
        return rows


def _some(items: Sequence[str], what: str) -> display.Whole:
    shown = ", ".join(items[:_EXAMPLES])
    return display.Whole(f"{len(items):,} {what}: {shown}{' ...' if len(items) > _EXAMPLES else ''}")


def forget(spark: SparkSession, options: ForgetOptions) -> Forgotten:
    """Remove pictures from scores and from a corpus, and say which versions were trained on them.

    Args:
        spark: The session.
        options: Those of the job `forget`.

    Raises:
        CorpusError: The corpus is damaged.
        InputError: None of the paths is held anywhere, or the table of them cannot be read.
        OutputInUseError: A run is writing to the scores, or another call is at work on the corpus.
    """
    options = config.qualified(options)
    given = _paths(spark, options.paths)
    spelled = {each: {each, late_labels.full_path(files.parent(options.paths), each)} for each in given}
    request = fingerprint.content_hash("\n".join(sorted(given)).encode("utf-8", "surrogatepass"))[:16]
    prepared = corpus.load(options.corpus) if options.corpus else None
    if options.output and not Runs(options.output).names():
        raise InputError(
            f"no run in {options.output}", "the folder that was given to score as --output", "Check --output"
        )
    with ExitStack() as locks:
        at = [each for each in (options.output, options.corpus) if each]
        checks = {each: locks.enter_context(Lock(each, "forget")).check for each in at}
        if prepared is not None:
            prepared = corpus.load(options.corpus)  # as it is with the lock
        pictures = Pictures(frozenset().union(*spelled.values()), *_journals(at, request))
        is_second = bool(at) and any(files.exists(_journal(each, request)) for each in at)
        store = _Store.of(spark, options, prepared)
        places = _Places(spark, Runs(options.output) if options.output else None, prepared, store)
        pictures = replace(pictures, hashes=pictures.hashes | places.hashes(pictures))
        found = places.held(pictures)
        if options.output:
            pictures = replace(pictures, copies=pictures.copies | found[options.output].paths)
        paths = frozenset().union(*(each.paths for each in found.values()))
        unmatched = [each for each in given if not spelled[each] & paths]
        _say_unmatched(options, given, unmatched, is_second=is_second, request=request)
        for each in at:
            content = {"hashes": sorted(pictures.hashes), "copies": sorted(pictures.copies)}
            files.write_text(_journal(each, request), json.dumps(content) + "\n")
        told = Forgotten(len(given), unmatched, sorted(paths - pictures.paths))
        if places.runs is not None:
            of = (found[options.output], request, checks[options.output])
            told = replace(told, scores=of_scores.erase(spark, places.runs, pictures, *of))
        if prepared is not None:
            of = (found[options.corpus], request, checks[options.corpus])
            erased = of_corpus.erase(spark, prepared, pictures, *of)
            told = replace(told, corpus=erased, fingerprint=prepared.fingerprint)
        if store is not None:
            told = store.told(told, pictures, found, request)
        for each in at:
            files.delete(_journal(each, request))
    there = sorted(each for each in {*pictures.paths, *paths} if _exists(each))
    return replace(told, there=list(dict.fromkeys(_qualified(each) for each in there)))


def _paths(spark: SparkSession, table: str) -> list[str]:
    """The paths of a file, each once, in its order.

    Raises:
        InputError: It cannot be read, or has none.
    """
    name = files.name(table).lower()
    kind = "parquet" if name.endswith(".parquet") else "csv" if name.endswith((".csv", ".csv.gz")) else "text"
    expected = "a text with a path on each line, or a .csv or .parquet table with the column path"
    if not files.exists(table):
        raise InputError(f"no file {table}", expected, "Check --paths")
    try:
        rows = tables.read_table(spark, table, kind, expected)
    except InputError as error:
        raise InputError(error.found, error.expected, "Check --paths") from None
    if kind == "text":
        found = [str(row[0]).removesuffix("\r") for row in rows.collect()]
    else:
        tables.require_columns(rows, table, [schema.PATH], "")
        found = [
            str(row[0] or "") for row in rows.select(schema.column(schema.PATH).cast("string")).collect()
        ]
    paths = list(dict.fromkeys(each for each in found if each))
    if not paths:
        raise InputError(f"{table} without a path", expected, "Check --paths")
    return paths


def _journal(place: str, request: str) -> str:
    return files.join(place, f"{_JOURNAL}{request}")


def _journals(places: Sequence[str], request: str) -> tuple[frozenset[str], frozenset[str]]:
    """The content hashes and copies' paths that a call for the same paths has left which was cut short."""
    hashes, copies = set[str](), set[str]()
    for place in places:
        others = [each for each in files.list_names(place) if each.startswith(_JOURNAL)]
        if others and f"{_JOURNAL}{request}" not in others:
            _log.warning("a call of forget with other --paths was cut short in %s: call it again, too", place)
        if files.exists(_journal(place, request)):
            _log.info("an earlier call for these paths was cut short in %s; this one ends its work", place)
            left = json.loads(files.read_text(_journal(place, request)))
            hashes |= set(left["hashes"])
            copies |= set(left.get("copies", ()))
    return frozenset(hashes), frozenset(copies)


@dataclass(frozen=True)
class _Places:
    """Where pictures may be held.

    Args:
        spark: The session.
        runs: The runs of an output, or None.
        prepared: The corpus, or None.
        store: The versions with their corpora, or None.
    """

    spark: SparkSession
    runs: Runs | None
    prepared: Corpus | None
    store: "_Store | None"

    @property
    def _corpora(self) -> Sequence[Corpus]:
        others = self.store.others if self.store is not None else ()
        return [*others, *([self.prepared] if self.prepared is not None else [])]

    def hashes(self, pictures: Pictures) -> frozenset[str]:
        """The content hashes that they have of pictures."""
        found = [of_corpus.held(self.spark, each, pictures) for each in self._corpora]
        if self.runs is not None:
            found.append(of_scores.held(self.spark, self.runs, pictures, [of_scores.PREDICTIONS]))
        return frozenset().union(*(each.hashes for each in found))

    def held(self, pictures: Pictures) -> dict[str, Held]:
        """What each of them holds, by its path."""
        found = {each.path: of_corpus.held(self.spark, each, pictures) for each in self._corpora}
        if self.runs is not None:
            found[self.runs.output] = of_scores.held(self.spark, self.runs, pictures)
        return found


def _say_unmatched(
    options: ForgetOptions, given: Sequence[str], unmatched: Sequence[str], *, is_second: bool, request: str
) -> None:
    """Warn of paths that nothing holds.

    Raises:
        InputError: Nothing holds any of them, and no earlier call for the same paths has forgotten any.
    """
    if not unmatched:
        return
    first = ", ".join(unmatched[:_EXAMPLES]) + (" ..." if len(unmatched) > _EXAMPLES else "")
    if len(unmatched) == len(given) and not (is_second or _is_known(options, request)):
        places = " and ".join(each for each in (options.output, options.corpus, options.store) if each)
        raise InputError(
            f"{len(given):,} paths, none of which {places} holds: {first}",
            "paths as the column path of scores and corpora has them, or relative ones beside the table",
            "Correct the paths; nothing was written",
        )
    _log.warning("%d of %d paths are held nowhere: %s", len(unmatched), len(given), first)


def _is_known(options: ForgetOptions, request: str) -> bool:
    """Whether the places have forgotten these very paths before."""
    manifests: list[Mapping[str, Any]] = []
    if options.output:
        runs = Runs(options.output)
        manifests += [runs.manifest(name) for name in runs.names()]
    if options.corpus:
        manifests.append(corpus.load(options.corpus).manifest)
    return any(entry.get("request") == request for each in manifests for entry in each.get(FORGOTTEN, ()))


def _exists(path: str) -> bool:
    try:
        return files.exists(path)
    except (OSError, ValueError):  # a name of a table with the files' bytes, or a system that does not answer
        return False


def _qualified(path: str) -> str:
    try:
        return files.qualify(path)
    except (OSError, ValueError):
        return path


# --- the store ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Store:
    """The versions of a model, and the corpora that they were trained on.

    Args:
        store: The model's.
        prepared: The corpus that is to forget, or None.
        others: The other corpora that can still be read.
        versions: All versions.
    """

    store: ModelStore
    prepared: Corpus | None
    others: Sequence[Corpus]
    versions: Sequence[ModelVersion]

    @classmethod
    def of(cls, spark: SparkSession, options: ForgetOptions, prepared: Corpus | None) -> "_Store | None":
        if not options.store:
            return None
        store = ModelStore(options.store, options.name)
        versions = store.versions()
        if not versions:
            store.resolve()  # says what is missing
        others = []
        for path in dict.fromkeys(path for each in versions if (path := _trained_by(each)[0])):
            if prepared is None or path != prepared.path:
                try:
                    other = corpus.load(path)
                    other.images(spark), other.rejects(spark)
                    others.append(other)
                except (CorpusError, OSError, ValueError) as error:
                    _log.debug("%s: %s", path, error)
        return cls(store, prepared, others, versions)

    def told(self, told: Forgotten, pictures: Pictures, found: Mapping[str, Held], request: str) -> Forgotten:
        """The same with what there is to say of versions; the tables beside them forget the pictures."""
        from seedlings_spark.workflow import transfer  # and with it TensorFlow

        corpora = [*self.others, *([told.corpus.corpus] if told.corpus is not None else [])]
        known = {each.path: {each.fingerprint, *_former(each)} for each in corpora}
        trained = {each.path: _former(each, request) for each in corpora}
        holding = {each.path: _former(each, request, schema.SPLITS) for each in corpora}
        elsewhere = []
        for each in self.others:
            splits = {row.part for row in found[each.path].rows}
            if splits:
                elsewhere.append(each.path)
                holding[each.path] = known[each.path]
            if splits.intersection(_TRAINED_ON):
                trained[each.path] = known[each.path]
        versions, unknown = [], []
        for version in self.versions:
            path, of = _trained_by(version)
            name = f"{version.name} {version.version}"
            if of in trained.get(path, ()):
                versions.append((name, path, of))
            elif of not in known.get(path, ()):
                unknown.append(name)
        changed = self._tables_with(pictures)
        for table in changed:
            if files.parent(files.parent(table)) == self._features_path:
                # Each run makes what is not there; without this file it is not.
                files.delete(files.join(files.parent(table), transfer.NAMED))
                files.delete(files.parent(table))
            else:
                _rewrite(table, pictures)
        changed += self._without_pictures(trained, holding)
        return replace(told, versions=versions, unknown=unknown, elsewhere=elsewhere, tables=changed)

    @property
    def _features_path(self) -> str:
        from seedlings_spark.workflow import transfer

        return files.join(self.store.path, transfer.FEATURES)

    def _tables_with(self, pictures: Pictures) -> list[str]:
        """Folders of tables beside the versions that have any of the pictures."""
        return [
            table
            for table in (*_children(self._features_path, depth=2), *self._tables_of_runs())
            if any(pc.any(_mask(_read(part), pictures)).as_py() for part in _parts(table))
        ]

    def _tables_of_runs(self) -> Iterator[str]:
        """What the runs that have trained the versions keep of single pictures."""
        from seedlings_spark.workflow import curriculum, folds

        for run in self._runs():
            of_folds = files.join(run, folds.FOLDS)
            for folder in (run, of_folds, *_children(of_folds)):
                yield files.join(folder, folds.PREDICTIONS)
                yield files.join(folder, curriculum.FOLDER, curriculum.LOSSES)

    def _runs(self) -> Iterator[str]:
        """The folders of the runs that have trained the versions, and of those that repeat them."""
        from seedlings_spark.workflow.reproduction import REPRODUCED

        runs = [str(each.manifest["run_path"]) for each in self.versions if each.manifest.get("run_path")]
        for run in dict.fromkeys([*_children(files.join(self.store.path, "runs")), *runs]):
            yield run
            yield from (files.join(each, "run") for each in _children(files.join(run, REPRODUCED)))

    def _without_pictures(
        self, trained: Mapping[str, set[str]], holding: Mapping[str, set[str]]
    ) -> list[str]:
        """Remove pictures that runs have drawn of their corpora; the places that had any.

        Args:
            trained: Path of a corpus -> its fingerprints with any of the pictures among those that are trained on.
            holding: The same with any of them at all.
        """
        from seedlings_spark.workflow import pipeline, search

        changed = []
        for run in self._runs():
            if _is_of(run, trained):
                drawn = files.join(run, runs.AUGMENTATION)
                changed += [drawn] if files.exists(drawn) else []
                files.delete(drawn)
                changed += pipeline.remove_pictures(run)
        for run in _children(files.join(self.store.path, search.SEARCHES)):
            report = files.join(run, "report", search.TEST_IMAGES)
            if files.exists(report) and _is_of(run, holding):
                files.delete(report)
                changed.append(report)
        return changed


def _trained_by(version: ModelVersion) -> tuple[str, str]:
    """Path and fingerprint of the corpus that a version was trained on; "" of one from elsewhere."""
    of = version.manifest.get("corpus") or {}
    return str(of.get("path", "")), str(of.get("fingerprint", ""))


def _is_of(run: str, corpora: Mapping[str, set[str]]) -> bool:
    """Whether a run has been recorded that is of one of these corpora: by path and fingerprints."""
    try:
        of = runs.record(run).get("corpus") or {}
    except InputError:
        return False
    return of.get("fingerprint") in corpora.get(str(of.get("path", "")), ())


def _former(prepared: Corpus, request: str = "", splits: Sequence[str] = _TRAINED_ON) -> set[str]:
    """The fingerprints that a corpus has had before it forgot pictures.

    Args:
        prepared: The corpus.
        request: A call by which it has forgotten pictures of these splits: what it was before held these. "" for any.
        splits: By default those that are trained on.
    """
    entries = prepared.manifest.get(FORGOTTEN, ())
    ends = [
        number
        for number, entry in enumerate(entries, 1)
        if not request or (entry["request"] == request and any(map(entry["images_of_split"].get, splits)))
    ]
    return {str(entry["fingerprint"]) for entry in entries[: max(ends, default=0)]}


def _children(folder: str, depth: int = 1) -> list[str]:
    """The folders so deep in a folder; none if it is not there."""
    if depth == 0:
        return [folder]
    names = files.list_names(folder) if files.is_directory(folder) else []
    below = [files.join(folder, name) for name in names]
    return [each for one in below if files.is_directory(one) for each in _children(one, depth - 1)]


def _parts(table: str) -> list[str]:
    names = files.list_names(table) if files.is_directory(table) else []
    return [
        files.join(table, name)
        for name in names
        if name.endswith(".parquet") and not name.startswith(("_", "."))
    ]


def _read(part: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(files.read_bytes(part)))


def _mask(rows: pa.Table, pictures: Pictures) -> pa.ChunkedArray:
    """Which rows are of the pictures."""
    mask = pa.chunked_array([pa.array([False] * rows.num_rows)])
    for name, values in ((schema.PATH, pictures.paths), (schema.CONTENT_HASH, pictures.hashes)):
        if name in rows.column_names:
            mask = pc.or_(mask, pc.is_in(rows.column(name), pa.array(sorted(values), pa.string())))
    return mask


def _rewrite(table: str, pictures: Pictures) -> None:
    """Write the files of a table that hold any of the pictures anew, each in one piece."""
    for part in _parts(table):
        rows = _read(part)
        mask = _mask(rows, pictures)
        if pc.any(mask).as_py():
            sink = pa.BufferOutputStream()
            pq.write_table(rows.filter(pc.invert(mask)), sink)
            files.write_bytes(part, sink.getvalue().to_pybytes())
