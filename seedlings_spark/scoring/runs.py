"""The runs of one output: where they are, which one is the newest, and what their ledger is made of.

    OUTPUT/runs/RUN/      predictions/ rejects/ ledger/ review/ manifest.json; appears whole, by one rename
    OUTPUT/manifest.json  the newest run's

On an object store, where a rename is a copy, a run appears by one write of its manifest, which the store refuses if
there is one. It names the folder that the tables were made in, and they stay there; its `files` are all of theirs:

    OUTPUT/runs/RUN/manifest.json
    OUTPUT/tables/RUN-.../  predictions/ rejects/ ledger/ review/

So does, on any file system, a run whose tables were written anew without pictures that are to be forgotten (`erasure`):
the write of its manifest takes it from its old tables to the new ones.

The order of runs is that of the `sequence` in their manifests, not of clocks or names.
"""

import dataclasses
import json
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import StringType, StructField, StructType

from seedlings_spark import files, schema
from seedlings_spark.corpus import tables
from seedlings_spark.errors import InputError, OptionError

FORMAT = 1
_BUILDING = ".building-"
# A folder of an output, and a key of a manifest.
_TABLES = "tables"
# What may stand in the name of a run and is not encoded in Spark's `_metadata.file_path`.
_AS_THEY_ARE = "._:+-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}")


@dataclass(frozen=True)
class RunsState:
    """What a new run has to know of those before it.

    Args:
        sequence: Number of the newest one; 0 where there is none.
        ledger: Names of the runs whose parts make up the ledger, the oldest first.
        columns: Columns of the predictions of all of them together; None where that has not been written down.
    """

    sequence: int = 0
    ledger: tuple[str, ...] = ()
    columns: StructType | None = None


@dataclass(frozen=True)
class Runs:
    """The runs of an output.

    Args:
        output: Full URI of the folder.
    """

    output: str
    _known: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def path(self, run: str) -> str:
        """The folder of a run.

        Raises:
            OptionError: It is no name.
        """
        if not _NAME.fullmatch(run):
            raise OptionError(
                f"the name {run!r} of a run",
                "up to 128 letters, digits and . _ : + -, beginning with a letter or digit",
                "Give another --run",
            )
        return files.join(self.output, "runs", run)

    def building_path(self, run: str) -> str:
        """Where a run is while it is made: a place of its own, should another one of its name be made."""
        self.path(run)
        unique = f"{run}-{uuid.uuid4().hex[:8]}"
        if files.renames(self.output):
            return files.join(self.output, "runs", f"{_BUILDING}{unique}")
        return files.join(self.output, _TABLES, unique)

    def tables_path(self, run: str) -> str:
        """The folder of a finished run's tables.

        Raises:
            InputError: Its manifest cannot be read.
        """
        return tables_path(self.path(run), self.manifest(run))

    def publish(self, building: str, run: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let a run appear, whole.

        Args:
            building: Where its tables have been made, of `building_path`.
            run: Its name.
            manifest: Of the run.

        Returns:
            The manifest as it was written.

        Raises:
            FileExistsError: There is one of that name.
        """
        if files.renames(self.output):
            files.write_text(files.join(building, "manifest.json"), as_json(manifest))
            files.rename(building, self.path(run))
            return manifest
        content = _with_tables(manifest, building)
        files.create(files.join(self.path(run), "manifest.json"), as_json(content).encode("utf-8"))
        return content

    def replacement_path(self, run: str) -> str:
        """Where the tables of a finished run are written anew; they stay there."""
        self.path(run)
        return files.join(self.output, _TABLES, f"{run}-{uuid.uuid4().hex[:8]}")

    def replace(self, run: str, building: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let a finished run have other tables, at once; what becomes of the old ones is for `clear` to remove.

        Args:
            run: Its name.
            building: Where the new ones are, of `replacement_path`.
            manifest: That goes with them.

        Returns:
            The manifest as it was written.
        """
        content = _with_tables(manifest, building)
        files.write_text(files.join(self.path(run), "manifest.json"), as_json(content))
        self._known[run] = dict(content)
        return content

    def is_finished(self, run: str) -> bool:
        """Whether there is such a run."""
        return files.exists(self.path(run))

    def manifest(self, run: str) -> dict[str, Any]:
        """Of a finished run.

        Raises:
            InputError: It cannot be read.
        """
        if run not in self._known:
            self._known[run] = _read(files.join(self.path(run), "manifest.json"))
        return self._known[run]

    def names(self) -> list[str]:
        """Of all finished runs, in no order that means anything."""
        return [name for name in self._in("runs") if _NAME.fullmatch(name)]

    def in_order(self) -> list[str]:
        """The names of all finished runs, the oldest first."""
        return [name for name, _ in self._manifests()]

    def state(self) -> RunsState:
        """What a new run has to know.

        The newest run's manifest is also that of the output, unless a run died in the instant after it appeared. Then
        the number of runs does not agree, and all manifests are looked at.
        """
        names = set(self.names())
        if not names:
            return RunsState()
        path = files.join(self.output, "manifest.json")
        newest = _read(path) if files.exists(path) else {}
        if newest.get("run") not in names or newest.get("num_runs") != len(names):
            newest = self._manifests()[-1][1]
        parts = [run for run in newest.get("ledger", ()) if run in names]
        columns = newest.get("columns")
        return RunsState(
            int(newest.get("sequence", 0)),
            tuple(parts),
            StructType.fromJson({"type": "struct", "fields": columns}) if columns else None,
        )

    def columns(self, spark: SparkSession, state: RunsState) -> StructType:
        """The columns of the predictions of all runs, each of a type that all of them can be read with.

        Raises:
            InputError: A column has no such type.
        """
        if state.columns is not None:
            return state.columns
        # An earlier release has not written it down.
        columns = StructType()
        for run in self.in_order():
            path = tables.literal(files.join(self.tables_path(run), "predictions"))
            columns = with_columns(
                columns, spark.read.parquet(path).schema, f"run {run}", "Give another --output"
            )
        return columns

    def point_to(self, manifest: Mapping[str, Any]) -> None:
        """Say that this run is the newest one."""
        content = {**manifest, "num_runs": len(self.names())}
        files.write_text(files.join(self.output, "manifest.json"), as_json(content))

    def left_behind(self) -> list[str]:
        """What runs were made in, and what was deleted or replaced; with the lock of the output, all of it is dead."""
        found = [name for name in self._in("runs") if name.startswith(_BUILDING)]
        left = [files.join(self.output, "runs", name) for name in found]
        made = [(name, name.rpartition("-")[0]) for name in self._in(_TABLES)]
        finished, tried = set(self.names()), Counter(run for _, run in made)
        renames = files.renames(self.output)
        for name, run in made:
            path = files.join(self.output, _TABLES, name)
            # Of a finished run with one folder on an object store this is it, and its manifest need not be read.
            if run not in finished or ((renames or tried[run] > 1) and self.tables_path(run) != path):
                left.append(path)
        for run in sorted({run for _, run in made} & finished) if renames else ():
            if self.tables_path(run) != self.path(run):
                own = files.list_names(self.path(run))
                left += [files.join(self.path(run), name) for name in own if name != "manifest.json"]
        return left

    def clear(self) -> None:
        """Remove what runs that died have left behind."""
        for path in self.left_behind():
            files.delete(path)

    def delete(self, run: str) -> None:
        """Delete a run: at no time is a part of it there. `point_to` the newest one afterwards."""
        place = self.tables_path(run)
        self._known.pop(run, None)
        if files.renames(self.output):
            aside = self.building_path(run)
            files.rename(self.path(run), aside)
            files.delete(aside)
        else:
            files.delete(self.path(run))
        files.delete(place)

    def rows(self, spark: SparkSession, runs: Sequence[str], table: str, columns: StructType) -> DataFrame:
        """One of the tables of several runs, as one: a union of so many would be a plan of so many parts.

        Args:
            spark: The session.
            runs: Their names, in the order that `number` shall have.
            table: `predictions` or `rejects`.
            columns: Columns of the table, without `path`.

        Returns:
            `path`, the struct `own` with the columns, so that none of them can have the name of one of ours, `run`
            and `number`.
        """
        folders = [self.tables_path(run) for run in runs]
        paths = [files.join(folder, table) for folder in folders]
        path = StructField(schema.PATH, StringType())
        own = [schema.column(name) for name in columns.names]
        rows = tables.parquet(spark, paths, StructType([path, *columns])).select(
            schema.PATH,
            (F.struct(*own) if own else F.lit(None)).alias("own"),
            folder_of(table).alias("folder"),
        )
        names = map(as_spark_names, folders)
        numbers = [(name, run, number) for number, (name, run) in enumerate(zip(names, runs, strict=True))]
        of_run = spark.createDataFrame(numbers, "folder string, run string, number int")
        return rows.join(F.broadcast(of_run), "folder").select(schema.PATH, "own", "run", "number")

    def _in(self, name: str) -> list[str]:
        """What is in a folder of the output; nothing if that is not there."""
        folder = files.join(self.output, name)
        return files.list_names(folder) if files.is_directory(folder) else []

    def _manifests(self) -> list[tuple[str, dict[str, Any]]]:
        found = [(name, self.manifest(name)) for name in self.names()]
        return sorted(found, key=lambda item: (int(item[1].get("sequence", 0)), item[0]))


def tables_path(path: str, manifest: Mapping[str, Any]) -> str:
    """The folder of a run's tables.

    Args:
        path: Of the run.
        manifest: Its own.
    """
    if _TABLES not in manifest:
        return path
    return files.join(files.parent(files.parent(path)), _TABLES, str(manifest[_TABLES]))


def _with_tables(manifest: Mapping[str, Any], building: str) -> dict[str, Any]:
    """A manifest that names the folder of the tables, and their files."""
    lengths = {each.path[len(building) + 1 :]: each.length for each in files.walk(building)}
    return {**manifest, _TABLES: files.name(building), "files": lengths}


def folder_of(table: str) -> Column:
    """Of each row of a table of several runs the name of the folder of its run's tables, as `as_spark_names` has it."""
    return F.regexp_extract("_metadata.file_path", rf"/([^/]+)/{table}/[^/]+\z", 1)


def as_spark_names(folder: str) -> str:
    """The name of a folder as it stands in Spark's `_metadata.file_path`."""
    return quote(files.name(folder), safe=_AS_THEY_ARE)


def with_columns(earlier: StructType, new: StructType, where: str, remedy: str) -> StructType:
    """The columns of earlier runs and those of a new one.

    Args:
        earlier: Columns of the earlier ones.
        new: Columns of the new one.
        where: What has the new ones, for the message.
        remedy: What to do where they do not go together.

    Raises:
        InputError: A column is of another type, and no type holds the values of both.
    """
    known = {field.name.lower(): field.dataType for field in earlier}
    for field in new:
        before = known.get(field.name.lower(), field.dataType)
        if schema.widened(before, field.dataType) is None:
            raise InputError(
                f"the column {field.name} of type {field.dataType.simpleString()} in {where}, which is"
                f" {before.simpleString()} in earlier runs of this output",
                schema.WIDER,
                remedy,
            )
    return cast(StructType, schema.widened(earlier, new))


def as_json(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written."""
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(files.read_text(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}, which cannot be read ({error})",
            "the manifest of a scoring run",
            "Move this run out of the output's folder runs, or give another --output",
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise InputError(
            f"{path} of format {found!r}",
            f"format {FORMAT}",
            "Use the release that wrote it, or another --output",
        )
    return content


def latest(spark: SparkSession, output: str, name: str = "latest") -> DataFrame:
    """The newest prediction of each path over all runs of an output, with the further column `run`.

    Args:
        spark: The session.
        output: Folder of the runs.
        name: Name of a temporary view that is made of it, for SQL; "" for none.

    Raises:
        InputError: There is no finished run, or one has more or fewer predictions than its manifest says.
    """
    runs = Runs(files.qualify(output))
    names = runs.in_order()
    if not names:
        raise InputError(
            f"no run in {output}", "the folder that score was given as --output", "Score something first"
        )
    columns = [field for field in runs.columns(spark, runs.state()) if field.name != schema.PATH]
    if "run" in (field.name.lower() for field in columns):
        raise InputError(
            f"runs with a column run in {output}, from an earlier release",
            "none in the tables that were scored: the view has a column of that name",
            "Give score another --output, and tables whose column has another name",
        )
    table = runs.rows(spark, names, "predictions", StructType(columns))
    # By the files' own numbers: no column is read.
    counts = {str(run): int(count) for run, count in table.groupBy("run").count().collect()}
    for run in names:
        scored = int(runs.manifest(run)["scored"])
        if counts.get(run, 0) != scored:
            raise InputError(
                f"{counts.get(run, 0):,} predictions in {runs.path(run)}",
                f"{scored:,}, as its manifest says",
                "Restore the run from a copy, or move it out of the output's folder runs",
            )
    chosen = table.groupBy(schema.PATH).agg(F.max_by(F.struct("own", "run"), "number").alias("newest"))
    own = F.col("newest").getField("own")
    view = chosen.select(
        schema.PATH,
        *[own.getField(field.name).alias(field.name) for field in columns],
        F.col("newest").getField("run").alias("run"),
    )
    if name:
        view.createOrReplaceTempView(name)
    return view
