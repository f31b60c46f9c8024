"""Scoring again and again: what is new, what there is to score, what is watched; as SQL and as a stream."""

import contextlib
import csv
import datetime
import json
import os
import re
import shutil
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.special
from keras import layers
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from seedlings_spark import display, files, images, lock, schema, scoring
from seedlings_spark.errors import InputError, OptionError, OutputInUseError, StoreError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel, features
from seedlings_spark.models.store import ModelStore, ModelVersion
from seedlings_spark.reports import drift
from seedlings_spark.scoring import ScoreRun, progress, sources, tasks
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import clean, publication
from tests.conftest import with_all
from tests.spark.test_scoring import CLASSES, MAX_BYTES, SIZE, picture, runs_of, score, tiny_network

Rows = dict[str, Any]


@pytest.fixture(scope="module")
def store(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("versions")
    made = ModelStore(files.qualify(str(folder / "store")), "twice")
    network = tiny_network()
    for _ in range(2):
        network.save(folder / "elsewhere.keras")
        publication.import_network(
            made, str(folder / "elsewhere.keras"), CLASSES, aspect="stretch", promote=True
        )
        network.layers[-1].kernel.assign(-network.layers[-1].kernel)
    return made


@pytest.fixture(scope="module")
def version(store: ModelStore) -> ModelVersion:
    return store.resolve("v0001")


def write(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.fixture(scope="module")
def plain(spark: SparkSession, version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ScoreRun:
    """A run over the pictures 1 and 2 and a file that is none."""
    folder = tmp_path_factory.mktemp("plain")
    write(folder / "images", a=picture(1), b=picture(2), bad=b"no picture")
    return score(spark, version, folder / "images", folder / "output")


def predictions_of(spark: SparkSession, run: ScoreRun) -> dict[str, Any]:
    """Name -> row."""
    rows = spark.read.parquet(files.join(run.path, "predictions")).collect()
    return {files.name(row.path).removesuffix(".png"): row for row in rows}


def numbers(run: ScoreRun) -> tuple[int, int, int, int, int]:
    names = ("listed", "scored", "rejected", "already_scored", "already_rejected")
    listed, *rest = (run.manifest[name] for name in names)
    assert listed == sum(rest)
    return (listed, *rest)


def names_in(spark: SparkSession, run: ScoreRun, table: str = "predictions") -> list[str]:
    rows = spark.read.parquet(files.join(run.path, table)).select(schema.PATH).collect()
    return sorted(files.name(row[0]).removesuffix(".png") for row in rows)


# --- Only what is new


def test_only_new_and_changed_files_are_scored(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    folder, output = tmp_path / "images", tmp_path / "output"
    write(folder, a=picture(1), b=picture(2), bad=b"no picture")
    first = score(spark, version, folder, output, incremental=True)
    assert numbers(first) == (3, 2, 1, 0, 0)
    before = (output / "manifest.json").read_text()
    nothing = score(spark, version, folder, output, incremental=True)
    assert numbers(nothing) == (3, 0, 0, 2, 1) and nothing.path == ""
    assert dict(scoring.summary(nothing))["run"] == "none, since nothing is new"
    assert runs_of(output) == [files.name(first.path)]
    assert (output / "manifest.json").read_text() == before
    kept = score(spark, version, folder, output, incremental=True, keep_empty=True)
    assert numbers(kept) == (3, 0, 0, 2, 1)
    assert names_in(spark, kept) == names_in(spark, kept, "rejects") == []
    write(folder, c=picture(3), b=picture(40))
    os.utime(folder / "a.png", (1_000_000_000, 1_000_000_000))  # other bytes may be as long
    (folder / "bad.png").unlink()
    third = score(spark, version, folder, output, incremental=True)
    assert numbers(third) == (3, 3, 0, 0, 0)
    assert names_in(spark, third) == ["a", "b", "c"]


def test_a_run_with_a_name_is_made_once(spark: SparkSession, version: ModelVersion, tmp_path: Path) -> None:
    """A scheduler that asks for a run twice gets one, whatever has come meanwhile."""
    folder, output = tmp_path / "images", tmp_path / "output"
    write(folder, a=picture(1), bad=b"no picture")
    first = score(spark, version, folder, output, incremental=True, run_id="2026-11-21T06:00")
    assert files.name(first.path) == "2026-11-21T06:00" and first.is_new
    assert numbers(first) == (2, 1, 1, 0, 0)
    empty = score(spark, version, folder, output, incremental=True, run_id="07:00")
    assert numbers(empty) == (2, 0, 0, 1, 1) and empty.is_new
    write(folder, b=picture(2))
    for made in (first, empty):
        again = score(spark, version, folder, output, incremental=True, run_id=files.name(made.path))
        assert not again.is_new and dict(again.manifest) == dict(made.manifest)
    assert names_in(spark, first) == ["a"]


def test_runs_of_which_something_is_needed_are_not_cleaned_away(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    folder, output = tmp_path / "images", tmp_path / "output"

    def one(run: str, **contents: bytes) -> None:
        for file in folder.glob("*"):
            file.unlink()
        write(folder, **contents)
        for file in folder.glob("*"):
            os.utime(file, (1_000_000_000, 1_000_000_000))
        made = score(spark, version, folder, output, run_id=run)
        # Without `incremental` everything is scored again.
        rejected = sum(content == b"no picture" for content in contents.values())
        assert numbers(made) == (len(contents), len(contents) - rejected, rejected, 0, 0)

    one("1-again-by-4", a=picture(1), bad=b"no picture")
    one("2-only-one-with-b", a=picture(1), b=picture(2))
    one("3-only-one-with-that-reject", lost=b"no picture")
    one("4-again-by-5", a=picture(1), bad=b"no picture")
    one("5-the-newest", a=picture(1), bad=b"no picture")
    (output / "runs" / ".building-dead").mkdir()
    latest = sorted(scoring.latest(spark, str(output)).collect())

    def cleaned(days: float, *, dry: bool) -> list[str]:
        age = datetime.timedelta(days=days)
        return [
            files.name(each.path)
            for each in clean.clean_output(spark, files.qualify(str(output)), age, dry=dry)
        ]

    assert cleaned(1, dry=True) == [".building-dead"]
    superfluous = [".building-dead", "1-again-by-4", "4-again-by-5"]
    assert cleaned(0, dry=True) == superfluous and len(runs_of(output)) == 6
    with lock.Lock(files.qualify(str(output)), "a run"):
        assert cleaned(0, dry=True) == superfluous[1:]  # the other one might be the run's
        with pytest.raises(OutputInUseError):
            cleaned(0, dry=False)
    assert cleaned(0, dry=False) == superfluous
    assert runs_of(output) == ["2-only-one-with-b", "3-only-one-with-that-reject", "5-the-newest"]
    assert sorted(scoring.latest(spark, str(output)).collect()) == latest
    newest = json.loads((output / "manifest.json").read_text())
    assert (newest["run"], newest["num_runs"]) == ("5-the-newest", 3)
    # What earlier runs have seen is still known.
    write(folder, b=picture(2), lost=b"no picture")
    for name in ("b", "lost"):
        os.utime(folder / f"{name}.png", (1_000_000_000, 1_000_000_000))
    assert numbers(score(spark, version, folder, output, incremental=True)) == (4, 0, 0, 2, 2)
    with pytest.raises(InputError, match="no run in"):
        clean.clean_output(spark, files.qualify(str(tmp_path / "none")), datetime.timedelta(0), dry=False)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def rescored(
    spark: SparkSession, store: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[ScoreRun], Path]:
    """Runs of one version and of another, and their output; a file is there for the first one only."""
    folder = tmp_path_factory.mktemp("rescored")
    write(folder / "images", a=picture(1), b=picture(2), bad=b"no picture")
    one, two = store.resolve("v0001"), store.resolve("v0002")
    places = folder / "images", folder / "output"
    made = [score(spark, one, *places, incremental=True, run_id="z+first:06")]
    (folder / "images" / "a.png").unlink()
    made.append(score(spark, two, *places, incremental=True))
    made.append(score(spark, two, *places, incremental=True, rescore=True, run_id="a-second"))
    made.append(score(spark, two, *places, incremental=True, rescore=True))
    return made, folder / "output"


def test_another_version_takes_up_old_files_only_if_told_to(rescored: tuple[list[ScoreRun], Path]) -> None:
    made, _ = rescored
    assert [numbers(run) for run in made] == [
        (3, 2, 1, 0, 0),
        (2, 0, 0, 1, 1),
        (2, 1, 0, 0, 1),
        (2, 0, 0, 1, 1),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_tried_again(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    write(tmp_path / "images", a=picture(1))
    (tmp_path / "images" / "a.png").chmod(0)
    assert numbers(score(spark, version, tmp_path / "images", tmp_path / "output")) == (1, 0, 1, 0, 0)
    (tmp_path / "images" / "a.png").chmod(0o600)
    again = score(spark, version, tmp_path / "images", tmp_path / "output", incremental=True)
    assert numbers(again) == (1, 1, 0, 0, 0)


def test_files_that_could_not_be_read_or_changed_meanwhile_are_tried_again_and_other_rejects_are_not(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    write(folder, good=picture(1), other=picture(2), bad=b"no picture", empty=b"")
    (folder / "link.png").symlink_to(folder / "target")
    scored = tasks.score_files

    def late(*args: Any, **options: Any) -> DataFrame:
        write(folder, other=picture(2, (30, 30)))
        return scored(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "score_files", late)
        run = score(spark, version, folder, tmp_path / "output")
    assert numbers(run) == (5, 1, 4, 0, 0)
    reasons = {"changed": 1, "empty": 1, "not_an_image": 1, "unreadable": 1}
    assert run.manifest["rejected_by_reason"] == reasons
    again = score(spark, version, folder, tmp_path / "output", incremental=True)
    assert numbers(again) == (5, 1, 1, 1, 2)
    assert names_in(spark, again) == ["other"] and names_in(spark, again, "rejects") == ["link"]


def test_the_ledger_is_written_down_as_a_whole_now_and_then(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedlings_spark.scoring.ledger.MOST_PARTS", 2)
    folder, output = tmp_path / "images", tmp_path / "output"
    for number in range(4):
        write(folder, **{f"{number}": picture(number)})
        run = score(spark, version, folder, output, incremental=True)
        assert numbers(run) == (number + 1, 1, 0, number, 0)
        assert len(run.manifest["ledger"]) <= 2
    # Earlier runs are no longer needed.
    newest = json.loads((output / "manifest.json").read_text())
    for name in runs_of(output):
        if name not in newest["ledger"]:
            files.delete(str(output / "runs" / name))
    assert numbers(score(spark, version, folder, output, incremental=True)) == (4, 0, 0, 4, 0)


def test_a_run_that_died_counts_when_it_was_published_and_is_removed_when_not(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    folder, output = tmp_path / "images", tmp_path / "output"
    write(folder, a=picture(1))
    first = score(spark, version, folder, output)
    old = (output / "manifest.json").read_text()
    write(folder, b=picture(2))
    left = output / "runs" / ".building-dead" / "all"
    left.mkdir(parents=True)
    (left / "part-0.parquet").write_bytes(b"half")
    second = score(spark, version, folder, output, incremental=True)
    assert runs_of(output) == sorted(files.name(run.path) for run in (first, second))
    (output / "manifest.json").write_text(old)
    third = score(spark, version, folder, output, incremental=True)
    assert numbers(third) == (2, 0, 0, 2, 0)
    assert third.manifest["sequence"] == second.manifest["sequence"] + 1 == 3


def test_very_many_unchanged_files_start_no_tensorflow(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "images", tmp_path / "output"
    folders, each = (100, 1_000) if os.environ.get("SEEDLINGS_TEST_ALL") else (10, 100)
    for number in range(folders):
        (folder / f"{number}").mkdir(parents=True)
        for other in range(each):
            (folder / f"{number}" / f"{other}.png").touch()
    write(folder, picture=picture(1))
    first = score(spark, version, folder, output, incremental=True)
    empty = folders * each
    assert numbers(first) == (empty + 1, 1, empty, 0, 0)

    def scored(*_: Any, **__: Any) -> DataFrame:
        raise AssertionError("a task would start TensorFlow")

    monkeypatch.setattr(tasks, "score_files", scored)
    assert numbers(score(spark, version, folder, output, incremental=True)) == (empty + 1, 0, 0, 1, empty)


# --- Exactly once


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", " ", "x" * 200])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="the name"):
        Runs("file:///output").path(name)


def test_an_owner_that_has_lost_its_lock_does_not_publish(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "images", a=picture(1))
    output = tmp_path / "output"
    scored = tasks.score_files

    def late(*args: Any, **options: Any) -> DataFrame:
        (output / lock.NAME).write_text(
            json.dumps({"id": "another", "owner": "run y", "renewed": time.time()})
        )
        return scored(*args, **options)

    monkeypatch.setattr(tasks, "score_files", late)
    with pytest.raises(OutputInUseError, match="run y"):
        score(spark, version, tmp_path / "images", output)
    assert runs_of(output) == [] and (output / lock.NAME).exists()


def test_the_latest_view_has_the_newest_prediction_of_each_path(
    spark: SparkSession, rescored: tuple[list[ScoreRun], Path], tmp_path: Path
) -> None:
    output = shutil.copytree(rescored[1], tmp_path / "output")
    view = scoring.latest(spark, str(output))
    found = {files.name(row.path): (row.model_version, row.run) for row in view.collect()}
    assert found == {"a.png": ("v0001", "z+first:06"), "b.png": ("v0002", "a-second")}
    assert spark.sql("SELECT count(*), count(DISTINCT path) FROM latest").first() == (2, 2)
    with pytest.raises(InputError, match="no run in"):
        scoring.latest(spark, str(tmp_path / "elsewhere"))
    (part,) = (output / "runs" / "a-second" / "predictions").glob("*.parquet")
    part.unlink()
    with pytest.raises(InputError, match=r"0 predictions in .*a-second. Expected 1, as its manifest says"):
        scoring.latest(spark, str(output))


# --- The columns of the table that was scored

# Names that mean something to Spark, or that tables of ours have or had while a run was made.
NAMES = [
    "folder",
    "sequence",
    "camera.id",
    "a `tick`",
    "with blanks ",
    "species",
    "length",
    "modified",
    "status",
]
NAMES += [
    "entry",
    "part",
    "newest",
    "own",
    "others",
    "given",
    "content",
    "cells",
    "count",
    "label",
    "dot.",
    "a,b=(c)",
]


@pytest.mark.parametrize("content", [False, pytest.param(True, marks=with_all)])
def test_columns_of_any_name_and_type_come_through_to_the_latest_view(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, content: bool
) -> None:
    write(tmp_path / "images", a=picture(1), bad=b"no picture")
    at = datetime.datetime(2026, 11, 21, 6, 0)
    rows = [
        (
            str(tmp_path / "images" / f"{name}.png"),
            bytearray(read),
            *range(len(NAMES)),
            ((1, ["x"]), {"k": 2}, at),
        )
        for name, read in (("a", picture(1)), ("bad", b"no picture"))
    ]
    columns = ", ".join(f"`{name.replace('`', '``')}` int" for name in NAMES)
    odd = "struct<struct:struct<`a.b`:int,c:array<string>>,map:map<string,int>,at:timestamp>"
    table = spark.createDataFrame(rows, f"`the.path` string, `the.bytes` binary, {columns}, odd {odd}")
    table = table.select("*", "odd.*").drop("odd", *([] if content else ["the.bytes"]))
    table.write.parquet(str(tmp_path / "table.parquet"))
    options = {"path_column": "the.path", **({"content_column": "the.bytes"} if content else {})}
    run = score(spark, version, tmp_path / "table.parquet", tmp_path / "output", **options)
    expected = {**dict(zip(NAMES, range(len(NAMES)), strict=True)), "map": {"k": 2}, "at": at}
    for found in (
        scoring.latest(spark, str(tmp_path / "output")).first().asDict(),
        spark.read.parquet(files.join(run.path, "rejects")).first().asDict(),
    ):
        assert {name: found[name] for name in expected} == expected
        assert (found["struct"]["a.b"], found["struct"]["c"]) == (1, ["x"])
    assert scoring.latest(spark, str(tmp_path / "output")).columns[-1] == "run"


TYPES = [
    # Of the first run, of the second one, their values, what is read of both.
    ("int", "bigint", "7", "5000000000", (7, 5_000_000_000)),
    ("bigint", "smallint", "5000000000", "7", (5_000_000_000, 7)),
    ("int", "double", "7", "0.5", (7.0, 0.5)),
    ("float", "double", "0.5", "1e300", (0.5, 1e300)),
    (
        "decimal(5,2)",
        "decimal(12,4)",
        "123.45",
        "12345678.1234",
        (Decimal("123.4500"), Decimal("12345678.1234")),
    ),
    ("void", "string", "NULL", "x", (None, "x")),
    ("array<struct<a:int>>", "array<struct<a:bigint,b:string>>", "a", "b", ([(7, None)], [(8, "x")])),
]


def test_a_column_whose_type_grows_is_read_as_the_widest_of_all_runs(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    write(tmp_path / "images", a=picture(1), b=picture(2))
    literals = {"a": "array(named_struct('a', 7))", "b": "array(named_struct('a', 8, 'b', 'x'))"}
    for place, name in enumerate("ab"):
        values = []
        for number, row in enumerate(TYPES):
            value = literals.get(
                row[2 + place], f"'{row[2 + place]}'" if row[2 + place] != "NULL" else "NULL"
            )
            if row[place] != "void":
                # The second run's names are in capitals, which are the same columns for Spark.
                values.append(f"CAST({value} AS {row[place]}) AS {'cC'[place]}{number}")
        path = tmp_path / "images" / f"{name}.png"
        spark.sql(f"SELECT '{path}' AS path, {', '.join(values)}").write.parquet(f"{tmp_path}/{name}.parquet")
        score(spark, version, tmp_path / f"{name}.parquet", tmp_path / "output")
    found = {files.name(row.path): row for row in scoring.latest(spark, str(tmp_path / "output")).collect()}
    for number, row in enumerate(TYPES):
        name = f"c{number}" if row[0] != "void" else f"C{number}"
        read = (found["a.png"][name], found["b.png"][name])
        assert read == row[4], row
    # Runs of an earlier release do not say what their columns are.
    for manifest in [
        tmp_path / "output" / "manifest.json",
        *(tmp_path / "output" / "runs").glob("*/manifest.json"),
    ]:
        text = json.loads(manifest.read_text())
        del text["columns"]
        manifest.write_text(json.dumps(text))
    again = scoring.latest(spark, str(tmp_path / "output"))
    assert sorted(again.collect()) == sorted(found.values())


def test_a_column_of_a_type_that_earlier_runs_cannot_be_read_with_is_refused_before_anything_is_scored(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "images", a=picture(1))
    columns = "1 AS `camera.id`, 5000000000 AS number, true AS night"
    rows = spark.sql(f"SELECT 'images/a.png' AS path, {columns}")
    rows.write.parquet(str(tmp_path / "first.parquet"))
    score(spark, version, tmp_path / "first.parquet", tmp_path / "output")
    monkeypatch.setattr(tasks, "score_files", lambda *_, **__: pytest.fail("something was scored"))
    for name, value in (("camera.id", "'one'"), ("number", "0.5D"), ("night", "1")):
        rows = spark.sql(f"SELECT 'images/a.png' AS path, {value} AS `{name}`")
        rows.write.parquet(str(tmp_path / f"{name}.parquet"))
        with pytest.raises(InputError, match=rf"the column {re.escape(name)} of type .* in earlier runs"):
            score(spark, version, tmp_path / f"{name}.parquet", tmp_path / "output")
    assert scoring.latest(spark, str(tmp_path / "output")).count() == 1


# --- What there is to score


def test_a_glob_takes_files_and_folders_and_each_once(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    write(folder / "2026-01", a=picture(1), b=picture(2))
    write(folder / "2026-02", c=picture(3))
    write(folder / "2025-12", d=picture(4))
    write(folder / "[ab]*", e=picture(5))

    def listed(pattern: str) -> list[str]:
        rows = sources.find(spark, files.qualify(f"{folder}/{pattern}")).listing.collect()
        return sorted(files.name(row.path).removesuffix(".png") for row in rows)

    assert listed("2026-*") == ["a", "b", "c"]
    assert listed("*/[ac].png") == ["a", "c"]
    assert listed("{2025-12,2026-02}/*.png") == ["c", "d"]
    assert listed("**") == ["a", "b", "c", "d", "e"]
    assert listed("[ab]*") == ["e"]  # there is a folder of that name
    run = score(spark, version, f"{folder}/{{2026-01,2026-01/a.png,2026-0*/a.png}}", tmp_path / "output")
    assert names_in(spark, run) == ["a", "b"]
    with pytest.raises(InputError, match="nothing that matches"):
        listed("2027-*")


@pytest.mark.parametrize(
    ("pattern", "output", "is_inside"),
    [
        ("*", "scores", True),
        ("*/", "scores/deep", True),
        ("{b*,sc*}", "scores", True),
        ("s[a-c]?res", "scores", True),
        ("**/*.png", "scores", True),
        ("link/*", "scores", True),
        ("*", "link/scores", True),
        ("*/*.png", "scores", False),
        ("2026-*", "scores", False),
        ("[*", "scores", False),
    ],
)
def test_a_glob_that_would_list_the_output_is_known_before_anything_is_there(
    tmp_path: Path, pattern: str, output: str, is_inside: bool
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    arguments = files.qualify(f"{tmp_path}/{pattern}"), files.qualify(f"{tmp_path}/{output}")
    with pytest.raises(InputError, match="inside of the images") if is_inside else contextlib.nullcontext():
        sources.check_output(*arguments)


def test_a_list_of_what_an_earlier_run_has_written_is_refused(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    write(tmp_path / "images", a=picture(1))
    (tmp_path / "paths.txt").write_text("images/a.png\noutput/runs/../runs/x/review/a.png\n")
    with pytest.raises(InputError, match="inside of the images"):
        score(spark, version, tmp_path / "paths.txt", tmp_path / "output")
    assert runs_of(tmp_path / "output") == []


def test_a_list_of_paths_is_scored_as_it_stands(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    write(folder, a=picture(1), b=picture(2), c=picture(3))
    listed = ["images/a.png", str(folder / "b.png"), "", "images/a.png", f"file://{folder}/missing.png"]
    (tmp_path / "paths.txt").write_text("\r\n".join(listed) + "\n")
    run = score(spark, version, tmp_path / "paths.txt", tmp_path / "output")
    assert numbers(run) == (3, 2, 1, 0, 0)
    assert names_in(spark, run) == ["a", "b"] and names_in(spark, run, "rejects") == ["missing"]
    again = score(spark, version, tmp_path / "paths.txt", tmp_path / "output", incremental=True)
    assert numbers(again) == (3, 0, 1, 2, 0)


@pytest.mark.parametrize(
    "kind", ["csv", *(pytest.param(each, marks=with_all) for each in ("parquet", "json", "orc"))]
)
def test_the_other_columns_of_a_table_of_paths_are_kept(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "images"
    write(folder, a=picture(1), b=picture(2), bad=b"no picture")
    rows = [(f"images/{name}.png", 7, plot) for name, plot in (("a", "north"), ("b", "south"), ("bad", "x"))]
    table = spark.createDataFrame(rows, "file string, number int, plot string").coalesce(1)
    target = tmp_path / f"table.{kind}"
    if kind == "csv":
        table.toPandas().to_csv(target, index=False)
    else:
        table.write.format(kind).save(str(target))
    if kind != "csv":  # whose cells are all texts
        given = sources.find(spark, files.qualify(str(target)), path_column="file").extras
        assert given is not None
        others = sorted((files.name(row.path), *row.others) for row in given.collect())
        assert others == [("a.png", 7, "north"), ("b.png", 7, "south"), ("bad.png", 7, "x")]
        return
    run = score(spark, version, target, tmp_path / "output", path_column="file")
    assert numbers(run) == (3, 2, 1, 0, 0)
    predictions = spark.read.parquet(files.join(run.path, "predictions"))
    assert predictions.columns == [*schema.PREDICTIONS.names, "number", "plot"]
    found = {files.name(row.path): (row.plot, int(row.number)) for row in predictions.collect()}
    assert found == {"a.png": ("north", 7), "b.png": ("south", 7)}
    assert spark.read.parquet(files.join(run.path, "rejects")).first().plot == "x"


def test_a_table_that_holds_the_bytes_is_scored_without_its_files(
    spark: SparkSession, version: ModelVersion, plain: ScoreRun, tmp_path: Path
) -> None:
    contents = [("one", bytearray(picture(1)), 1), ("two", bytearray(b"no picture"), 2), ("three", None, 3)]
    contents += [("four", bytearray(b""), 4), ("five", bytearray(b"x" * (MAX_BYTES + 1)), 5)]
    table = spark.createDataFrame(contents, "path string, bytes binary, plot int")
    table.write.parquet(str(tmp_path / "table"))
    options = {"content_column": "bytes", "incremental": True, "review": 5}
    run = score(spark, version, tmp_path / "table", tmp_path / "output", **options)
    assert numbers(run) == (5, 1, 4, 0, 0)
    row = spark.read.parquet(files.join(run.path, "predictions")).first()
    assert (row.path, row.plot) == ("one", 1)
    assert row.probabilities == predictions_of(spark, plain)["a"].probabilities
    rejects = spark.read.parquet(files.join(run.path, "rejects")).collect()
    assert {row.path: row.reason for row in rejects} == {
        "two": "not_an_image",
        "three": "unreadable",
        "four": "empty",
        "five": "too_large",
    }
    assert "data:image/jpeg" in files.read_text(files.join(run.path, "review", "index.html"))
    again = score(spark, version, tmp_path / "table", tmp_path / "output", **options)
    assert numbers(again) == (5, 0, 1, 1, 3)
    spark.createDataFrame([("six", bytearray(picture(6)), 6)], table.schema).write.mode("append").parquet(
        str(tmp_path / "table")
    )
    more = score(spark, version, tmp_path / "table", tmp_path / "output", **options)
    assert numbers(more) == (6, 1, 1, 1, 3)
    assert names_in(spark, more) == ["six"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("file string", {}, "Add path, or name"),
        ("path string, plot string", {"content_column": "bytes"}, "Add bytes, or name"),
        ("path string, bytes string", {"content_column": "bytes"}, "of type string"),
        ("path string, confidence float", {}, "with a column confidence"),
        ("path string, Confidence float", {}, "with a column Confidence"),
        ("path string, RUN int", {}, "with a column RUN"),
        ("path string, _metadata string", {}, "with a column _metadata"),
        ("path string, Path int", {"path_column": "path"}, "the columns path, Path"),
        ("path array<string>", {}, "of type array<string>"),
        ("path string, a struct<b:int,B:int>", {}, "a column a of type"),
    ],
)
def test_a_table_that_is_not_as_it_has_to_be_is_refused(
    spark: SparkSession,
    version: ModelVersion,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    options: Rows,
    message: str,
) -> None:
    monkeypatch.setattr(scoring.sources.tables, "read_table", lambda *_: spark.createDataFrame([], columns))
    (tmp_path / "table.parquet").touch()
    with pytest.raises(InputError, match=message):
        score(spark, version, tmp_path / "table.parquet", tmp_path / "output", **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [([("a", 1), (None, 2)], "1 of 2 rows without a path"), ([("a", 1), ("a", 2)], "has a 2 times")],
)
def test_a_table_of_which_a_row_has_no_path_of_its_own_is_refused(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, rows: list[Any], message: str
) -> None:
    spark.createDataFrame(rows, "path string, plot int").write.parquet(str(tmp_path / "table.parquet"))
    with pytest.raises(InputError, match=message):
        score(spark, version, tmp_path / "table.parquet", tmp_path / "output")


# --- What is kept of a prediction


def test_a_table_that_spells_one_file_twice_is_refused(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    write(tmp_path / "images", a=picture(1))
    rows = [("images/a.png", 1), ("images//./a.png", 2)]
    spark.createDataFrame(rows, "path string, number int").write.parquet(str(tmp_path / "table.parquet"))
    with pytest.raises(InputError, match=r"a\.png 2 times, as images//\./a\.png and images/a\.png"):
        score(spark, version, tmp_path / "table.parquet", tmp_path / "output")
    # Without further columns it is one file, however it is called.
    spark.createDataFrame(rows, "path string, number int").select("path").write.parquet(
        str(tmp_path / "b.parquet")
    )
    run = score(spark, version, tmp_path / "b.parquet", tmp_path / "output")
    assert numbers(run) == (1, 1, 0, 0, 0)


@pytest.fixture(scope="module")
def much(spark: SparkSession, version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ScoreRun:
    """A run that keeps much of its predictions."""
    folder = tmp_path_factory.mktemp("much")
    write(folder / "images", **{f"{number}": picture(number) for number in range(9)}, bad=b"no picture")
    return score(spark, version, folder / "images", folder / "output", top_k=2, review=4)


def test_the_most_likely_species_are_named_in_order(spark: SparkSession, much: ScoreRun) -> None:
    for row in predictions_of(spark, much).values():
        order = np.argsort(-np.array(row.probabilities), kind="stable")[:2]
        assert [each.species for each in row.top_species] == [CLASSES[place] for place in order]
        assert [each.confidence for each in row.top_species] == [row.probabilities[place] for place in order]
        assert row.predicted_species == row.top_species[0].species


def test_the_least_confident_images_are_laid_out_to_be_looked_at(spark: SparkSession, much: ScoreRun) -> None:
    text = files.read_text(files.join(much.path, "review", "least_confident.csv"))
    rows = list(csv.DictReader(text.splitlines()))
    predictions = spark.read.parquet(files.join(much.path, "predictions")).orderBy("confidence", "path")
    assert [row["path"] for row in rows] == [row.path for row in predictions.limit(4).collect()]
    page = files.read_text(files.join(much.path, "review", "index.html"))
    places = [page.index(f">{display.shown(row['path'])}</small>") for row in rows]
    assert places == sorted(places) and page.count("data:image/jpeg") == 4


def test_the_probabilities_and_what_is_to_be_looked_at_can_be_left_out(
    spark: SparkSession, version: ModelVersion, tmp_path: Path
) -> None:
    write(tmp_path / "images", a=picture(1))
    options = {"probabilities": False, "top_k": 100, "review": 0}
    run = score(spark, version, tmp_path / "images", tmp_path / "output", **options)
    predictions = spark.read.parquet(files.join(run.path, "predictions"))
    expected = [name for name in schema.PREDICTIONS.names if name != schema.PROBABILITIES]
    assert predictions.columns == [*expected, "top_species"]
    assert len(predictions.first().top_species) == len(CLASSES)
    assert "review" not in files.list_names(run.path)


# --- Drift


def bright(seed: int, brightness: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 56, (16, 15, 3), dtype=np.uint8)
    return images.encode_png(noise + np.uint8(brightness))


@pytest.fixture(scope="module")
def watched(spark: SparkSession, store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """A version whose corpus was 300 dark images."""
    folder = tmp_path_factory.mktemp("dark")
    write(folder / "images", **{f"{number}": bright(number, 0) for number in range(300)})
    run = score(spark, store.resolve("v0001"), folder / "images", folder / "output")
    current = store.resolve("v0001")

    def build(target: str) -> None:
        files.write_bytes(files.join(target, "network.keras"), files.read_bytes(current.network_path))
        files.write_text(files.join(target, "profile.json"), json.dumps(run.manifest["profile"]))

    about = {"classes": CLASSES, "image_size": list(SIZE), "aspect": "stretch"}
    return store.publish(build, about, promote=False)


def test_images_like_those_of_the_corpus_are_stable(
    spark: SparkSession, watched: ModelVersion, tmp_path: Path
) -> None:
    write(tmp_path / "images", **{f"{number}": bright(1_000 + number, 0) for number in range(200)})
    run = score(spark, watched, tmp_path / "images", tmp_path / "output")
    assert run.manifest["drift"]["verdict"] == "stable"
    assert {each["name"] for each in run.manifest["drift"]["of"]} == {
        drift.SPECIES,
        drift.CONFIDENCE,
        *drift.STATISTICS,
    }
    assert dict(scoring.summary(run))["drift"] == "stable"


def test_brighter_images_are_said_to_have_shifted(
    spark: SparkSession, watched: ModelVersion, tmp_path: Path
) -> None:
    write(tmp_path / "images", **{f"{number}": bright(number, 150) for number in range(100)})
    run = score(spark, watched, tmp_path / "images", tmp_path / "output")
    found = {each["name"]: each for each in run.manifest["drift"]["of"]}
    assert run.manifest["drift"]["verdict"] == found["brightness"]["verdict"] == "shifted"
    assert found["brightness"]["psi"] > 0.25 and found["brightness"]["largest"] == "higher"
    assert drift.worst(run.drifts) == run.manifest["drift"]["worst"] > 0.25
    assert "brightness" in scoring.drift_table(run)
    profile = drift.Profile.from_json(run.manifest["profile"])
    assert sum(profile.species.values()) == sum(profile.histograms["size"]) == 100


def test_a_version_without_a_profile_leaves_drift_unknown(plain: ScoreRun) -> None:
    assert plain.manifest["drift"] == {"verdict": "unknown", "worst": 0.0, "of": []}
    assert str(dict(scoring.summary(plain))["drift"]).startswith("unknown")


# --- As SQL, as a stream


def test_a_version_is_a_function_of_spark_sql(
    spark: SparkSession, store: ModelStore, plain: ScoreRun
) -> None:
    contents = {"a": picture(1), "b": picture(2), "bad": b"no picture", "empty": b"", "null": None}
    rows = [(name, None if content is None else bytearray(content)) for name, content in contents.items()]
    spark.createDataFrame(rows, "path string, content binary").createOrReplaceTempView("photographs")
    scoring.register(spark, "species", store.directory, "v0001", model=store.name)
    found = {row[0]: row[1] for row in spark.sql("SELECT path, species(content) FROM photographs").collect()}
    expected = predictions_of(spark, plain)
    assert found == {
        **{name: row.predicted_species for name, row in expected.items()},
        **dict.fromkeys(("bad", "empty", "null")),
    }
    details = spark.sql("SELECT path, species_details(content) AS details FROM photographs")
    of = {row.path: row.details for row in details.collect()}
    assert {name: of[name].reason for name in of} == {
        "a": None,
        "b": None,
        "bad": "not_an_image",
        "empty": "empty",
        "null": "unreadable",
    }
    np.testing.assert_allclose(of["a"].probabilities, expected["a"].probabilities, atol=1e-6)
    assert of["bad"].probabilities is None and of["bad"].confidence is None
    assert spark.sql("SELECT species(content) FROM photographs WHERE path = 'nowhere'").collect() == []
    with pytest.raises(Exception, match="bytes of an image file, not its path"):
        spark.sql("SELECT species(path) FROM photographs").collect()


def test_a_function_whose_name_is_none_is_refused(spark: SparkSession, store: ModelStore) -> None:
    with pytest.raises(OptionError, match="function's name"):
        scoring.register(spark, "my species", store.directory, "v0001", model=store.name)


def test_a_fitted_model_transforms_a_stream(spark: SparkSession, tmp_path: Path) -> None:
    network = tiny_network()
    model = SeedlingsModel.from_network(network, CLASSES)
    pixels = np.random.default_rng(3).integers(0, 256, (6, *SIZE, 3), dtype=np.uint8)
    rows = [(number, bytearray(each.tobytes())) for number, each in enumerate(pixels)]
    table = spark.createDataFrame(rows, "number int, image binary")
    table.coalesce(1).where("number < 4").write.mode("append").parquet(str(tmp_path / "arriving"))
    stream = model.transform(spark.readStream.schema(table.schema).parquet(str(tmp_path / "arriving")))
    assert stream.isStreaming

    def run() -> dict[int, str]:
        query = (
            stream.select("number", "predicted_species")
            .writeStream.format("parquet")
            .option("checkpointLocation", str(tmp_path / "checkpoint"))
            .option("path", str(tmp_path / "out"))
            .trigger(availableNow=True)
            .start()
        )
        assert query.awaitTermination(120)
        return {row[0]: row[1] for row in spark.read.parquet(str(tmp_path / "out")).collect()}

    places = np.argmax(network.predict(pixels.astype("float32"), verbose=0), axis=1)
    expected = {number: CLASSES[place] for number, place in enumerate(places)}
    assert run() == {number: expected[number] for number in range(4)}
    table.where("number >= 4").coalesce(1).write.mode("append").parquet(str(tmp_path / "arriving"))
    assert run() == expected
    assert spark.read.parquet(str(tmp_path / "out")).count() == 6  # the first four were not done again


@pytest.mark.parametrize("outputs", [pytest.param(1, marks=with_all), len(CLASSES)])
def test_what_was_trained_on_logits_gives_probabilities_in_sql_and_in_a_stream(
    spark: SparkSession, tmp_path: Path, outputs: int
) -> None:
    classes = CLASSES if outputs > 1 else CLASSES[:2]
    contents = {number: picture(number, SIZE) for number in range(8)}  # which are scored as they are
    pixels = np.stack(
        [images.decode(each, SIZE, aspect="stretch", formats=images.FORMATS) for each in contents.values()]
    )
    rows = [
        (number, bytearray(contents[number]), bytearray(each.tobytes()), classes[number % len(classes)])
        for number, each in enumerate(pixels)
    ]
    table = spark.createDataFrame(rows, "number int, content binary, image binary, species string")
    scaled = layers.Rescaling(1 / 128, -1)
    made = keras.Sequential([keras.Input((*SIZE, 3)), scaled, layers.Flatten(), layers.Dense(outputs)])
    of_kind = keras.losses.BinaryCrossentropy if outputs == 1 else keras.losses.SparseCategoricalCrossentropy
    estimator = SeedlingsEstimator(
        keras_model_config=made.to_json(),
        loss=of_kind(from_logits=True),
        featuresCol="image",
        num_workers=1,
        epochs=1,
        batch_size=4,
    )
    model = Pipeline(stages=[features.species_indexer(), estimator]).fit(table)
    logits = model.stages[-1].get_model().predict(pixels.astype("float32"), verbose=0).astype(np.float64)
    if outputs == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    expected = scipy.special.softmax(logits, axis=1)
    assert np.abs(logits.sum(axis=1) - 1).max() > 0.1  # what would be seen if they were taken as they are

    table.write.parquet(str(tmp_path / "arriving"))
    arriving = spark.readStream.schema(table.schema).parquet(str(tmp_path / "arriving"))
    name = f"probabilities_of_{outputs}"
    stream = model.transform(arriving).select("number", "prediction", "probability")
    query = stream.writeStream.format("memory").queryName(name).trigger(availableNow=True).start()
    assert query.awaitTermination(120)
    found = spark.table(name).orderBy("number").collect()
    np.testing.assert_allclose([row.probability.toArray() for row in found], expected, atol=1e-6)
    assert [row.prediction for row in found] == expected.argmax(axis=1).tolist()

    about = {"image_size": list(SIZE), "aspect": "stretch"}
    store = ModelStore(files.qualify(str(tmp_path / "store")), "logits")
    if outputs == 1:  # a version gives each image one of its species: no network of one output can be one
        with pytest.raises(StoreError, match="'binary'"):
            publication.publish(store, model, about=about, promote=True)
        return
    publication.publish(store, model, about=about, promote=True)
    scoring.register(spark, "trained_on_logits", store.directory, model="logits")
    details = table.select("number", F.expr("trained_on_logits_details(content) AS details"))
    of = {row.number: row.details for row in details.collect()}
    np.testing.assert_allclose([of[number].probabilities for number in range(8)], expected, atol=1e-6)
    names = [sorted(CLASSES)[place] for place in expected.argmax(axis=1)]
    assert [of[number].predicted_species for number in range(8)] == names


def test_no_species_is_chosen_by_what_is_no_number(spark: SparkSession, tmp_path: Path) -> None:
    broken = tiny_network()
    broken.layers[-1].bias.assign([0.0, np.nan, 0.0, 0.0])
    model = PipelineModel([SeedlingsModel.from_network(broken, CLASSES, loss="categorical_crossentropy")])
    store = ModelStore(files.qualify(str(tmp_path / "store")), "broken")
    publication.publish(store, model, about={"image_size": list(SIZE), "aspect": "stretch"}, promote=True)
    scoring.register(spark, "broken", store.directory, model="broken")
    table = spark.createDataFrame([(bytearray(picture(1)),)], "content binary")
    with pytest.raises(Exception, match="outputs that are not finite"):
        table.selectExpr("broken(content)").collect()


# --- What a person sees


def test_the_line_says_how_far_it_is() -> None:
    assert progress.line(0, 1_000, 0, 0.0, None) == "0/1,000 images  0 images/s  0 rejected"
    assert progress.line(250, 1_000, 3, 25.0, 30.0) == "250/1,000 images  25 images/s  3 rejected  30 s left"
    assert progress.line(1_000, 1_000, 3, 100.0, 0.0) == "1,000/1,000 images  100 images/s  3 rejected"


def test_a_terminal_is_shown_what_the_tasks_have_done(
    spark: SparkSession, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr("seedlings_spark.progress.REFRESH_SECONDS", 0.0)
    write(tmp_path / "images", a=picture(1), bad=b"no picture", c=picture(2))
    tallies: list[progress.Tally] = []
    scored = tasks.score_files

    def seen(*args: Any, **options: Any) -> DataFrame:
        tallies.append(args[-1])
        return scored(*args, **options)

    monkeypatch.setattr(tasks, "score_files", seen)
    score(spark, version, tmp_path / "images", tmp_path / "output")
    assert (tallies[0]._done.value, tallies[0]._rejected.value) == (3, 1)
    assert "/3 images" in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[K")


def test_the_summary_for_a_program_is_one_line_of_json_with_the_numbers(plain: ScoreRun) -> None:
    found = json.loads(json.dumps(scoring.short_summary(plain)))
    assert (found["listed"], found["scored"], found["rejected"], found["path"]) == (3, 2, 1, plain.path)
    assert "profile" not in found


def test_equal_confidences_do_not_count_a_row_twice(spark: SparkSession) -> None:
    rows = spark.createDataFrame([([0.5, 0.5],)], "probabilities array<float>")
    assert tasks.with_species(rows, ["a", "b"]).select(F.col("predicted_species")).first()[0] == "a"
