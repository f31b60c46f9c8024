"""Scoring what arrives: by the version that is current when it does, each file once whatever is killed."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from seedlings_spark import choices, files, scoring
from seedlings_spark.config import ScoreOptions
from seedlings_spark.errors import InputError, OptionError, StoreError
from seedlings_spark.estimator import SeedlingsModel
from seedlings_spark.lock import Lock
from seedlings_spark.models.store import ModelStore
from seedlings_spark.scoring import streaming
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import publication
from tests.conftest import HANG_SECONDS, ROOT, with_all
from tests.pictures import png
from tests.spark import killed_stream
from tests.spark.test_scoring import CLASSES, SIZE, score

PHOTOGRAPHS = ROOT / "tests" / "data" / "photographs"


@pytest.fixture(scope="module")
def published(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of more than a megabyte, which Spark sends in files; none is current."""
    folder = tmp_path_factory.mktemp("versions")
    store = ModelStore(files.qualify(str(folder / "store")), killed_stream.NAME)
    keras.utils.set_random_seed(5)
    network = keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            layers.Rescaling(1 / 128, -1),
            layers.Flatten(),
            layers.Dense(900, activation="relu"),
            layers.Dense(len(CLASSES), activation="softmax"),
        ]
    )
    for _ in range(2):
        network.save(folder / "network.keras")
        publication.import_network(
            store, str(folder / "network.keras"), CLASSES, aspect="stretch", promote=False
        )
        network.layers[-1].kernel.assign(-network.layers[-1].kernel)
    return folder / "store"


@pytest.fixture
def store(published: Path, tmp_path: Path) -> ModelStore:
    """A copy, whose first version is current."""
    shutil.copytree(published, tmp_path / "store")
    made = ModelStore(files.qualify(str(tmp_path / "store")), killed_stream.NAME)
    made.promote("v0001")
    return made


def arrive(folder: Path, **contents: bytes) -> None:
    """Files come whole, one after the other."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        coming = folder.parent / f"coming-{name}"
        coming.write_bytes(content)
        os.utime(coming, (1_700_000_000 + 60 * len(list(folder.iterdir())),) * 2)
        coming.rename(folder / name)


def rows_of(spark: SparkSession, output: Path, table: str = "predictions") -> list[Any]:
    """Those of all runs."""
    runs = Runs(files.qualify(str(output)))
    tables = [files.join(runs.tables_path(name), table) for name in runs.names()]
    return [row for table in tables for row in spark.read.parquet(table).collect()]


def test_a_stream_takes_up_a_promoted_version_and_goes_on_with_it_where_the_next_one_is_broken(
    spark: SparkSession, store: ModelStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, output = tmp_path / "images", tmp_path / "output"
    photographs = {each.name: each.read_bytes() for each in PHOTOGRAPHS.glob("*.jpg")}
    assert len(photographs) == 2
    arrive(folder, **{"a.png": png(1), "bad.png": b"no picture", **photographs})
    layout = spark.read.format("binaryFile").load(str(folder)).schema
    source = spark.readStream.format("binaryFile").schema(layout).load(str(folder))
    options = ScoreOptions(
        images=str(folder),
        store=store.directory,
        name=store.name,
        output=str(output),
        content_column="content",
        review=0,
    )
    rows = source.select("path", "content", "length")
    scratch = Path(spark.sparkContext._temp_dir)  # type: ignore[arg-type]
    on_disk = set(scratch.iterdir())
    query = scoring.stream(spark, options, str(tmp_path / "checkpoint"), rows).start()
    try:
        query.processAllAvailable()
        assert [each.endswith("-0") for each in Runs(files.qualify(str(output))).names()] == [True]
        store.promote("v0002")
        arrive(folder, **{"b.png": png(2), "c.png": png(3)})
        query.processAllAvailable()
        # Published, promoted, and cut short afterwards.
        broken = Path(files.local_path(store.version_path("v0003")))
        shutil.copytree(files.local_path(store.version_path("v0002")), broken)
        store.promote("v0003")
        (broken / "network.onnx").write_bytes((broken / "network.onnx").read_bytes()[:-1])
        with caplog.at_level(logging.WARNING, "seedlings_spark.scoring.streaming"):
            for name in ("d.png", "e.png"):
                arrive(folder, **{name: png(4)})
                query.processAllAvailable()
    finally:
        query.stop()
    assert set(scratch.iterdir()) == on_disk  # a network a batch would fill it
    predicted = rows_of(spark, output)
    found = {files.name(row.path): row for row in predicted}
    of_version = {name: row.model_version for name, row in found.items()}
    assert of_version == {
        **dict.fromkeys(["a.png", *photographs], "v0001"),
        **dict.fromkeys(["b.png", "c.png", "d.png", "e.png"], "v0002"),
    }
    assert len(predicted) == 7 and found["a.png"].length == len(png(1))
    assert [files.name(row.path) for row in rows_of(spark, output, "rejects")] == ["bad.png"]
    (warning,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "network.onnx has" in warning and "v0002 goes on" in warning
    for version in ("v0001", "v0002"):
        score(spark, store.resolve(version), folder, tmp_path / version, max_pixels=choices.MAX_PIXELS)
        alone = {files.name(row.path): row for row in rows_of(spark, tmp_path / version)}
        for name, row in found.items():
            is_same = row.probabilities == alone[name].probabilities
            assert is_same == (row.model_version == version), name
            assert not is_same or row.predicted_species == alone[name].predicted_species


@pytest.mark.parametrize(
    ("when", "method"),
    [
        pytest.param("before", "publish", marks=with_all),
        ("before", "point_to"),
        pytest.param("after", "point_to", marks=with_all),
    ],
)
def test_a_killed_stream_that_is_started_again_has_each_file_exactly_once(
    spark: SparkSession, store: ModelStore, tmp_path: Path, when: str, method: str
) -> None:
    """At the second batch: before its run is there, and between that and what Spark writes down of it."""
    output, checkpoint = tmp_path / "output", tmp_path / "checkpoint"
    folder = tmp_path / "it's a folder #1 a%20b+c \N{SEEDLING}"
    names = ["0.png", "1 #?%20{a,b}[0-9]*.png", "2 'quoted'.png", "3.png", "4.png"]
    arrive(folder, **{name: png(number) for number, name in enumerate(names)})
    paths = [str(path) for path in (folder, store.directory, output, checkpoint)]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.spark.killed_stream", when, method, *paths],
        cwd=ROOT,
        start_new_session=True,
        timeout=HANG_SECONDS,
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = {each.name for each in (checkpoint / "commits").iterdir() if not each.name.startswith(".")}
    is_there = method == "point_to"
    assert done == {"0"} and len(rows_of(spark, output)) == (4 if is_there else 2)
    store.promote("v0002")
    options = ScoreOptions(
        images=str(folder), store=store.directory, name=store.name, output=str(output), review=0
    )
    killed_stream.start(spark, options, str(checkpoint)).awaitTermination()
    rows = sorted((files.name(row.path), row.model_version) for row in rows_of(spark, output))
    versions = ["v0001", "v0001", *["v0001" if is_there else "v0002"] * 2, "v0002"]
    assert rows == list(zip(names, versions, strict=True))
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["num_runs"] == manifest["sequence"] == 3
    assert not Runs(files.qualify(str(output))).left_behind()
    # To another query nothing of this is known but what the output has.
    arrive(folder, **{"5.png": png(5)})
    again = dataclasses.replace(options, incremental=True)
    another = scoring.stream(spark, again, str(tmp_path / "another"))
    another.trigger(availableNow=True).start().awaitTermination()
    rows = sorted((files.name(row.path), row.model_version) for row in rows_of(spark, output))
    assert rows == list(zip([*names, "5.png"], [*versions, "v0002"], strict=True))


def test_a_stream_waits_for_who_has_its_output_and_takes_pictures_of_any_age_and_versions_of_its_kind(
    spark: SparkSession,
    store: ModelStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "_LOOK_SECONDS", 0.1)
    folder, output = tmp_path / "images", tmp_path / "output"
    options = ScoreOptions(
        images=str(folder), store=store.directory, name=store.name, output=str(output), review=0
    )
    arrive(folder, **{"new.png": png(1)})
    query = scoring.stream(spark, options, str(tmp_path / "checkpoint")).start()
    try:
        query.processAllAvailable()
        # Of lists of species, which have no place beside the names of these runs.
        sigmoid = keras.Sequential(
            [keras.Input((*SIZE, 3)), layers.Flatten(), layers.Dense(len(CLASSES), "softmax")]
        )
        model = SeedlingsModel.from_network(sigmoid, CLASSES, loss="categorical_crossentropy")
        model.set(model.kind, "multilabel")
        model.set(model.num_outputs, len(CLASSES))
        about = {"image_size": list(SIZE), "aspect": "stretch"}
        other = publication.publish(store, PipelineModel([model]), about=about, promote=True).version
        with caplog.at_level(logging.WARNING, "seedlings_spark.scoring.streaming"):
            with Lock(files.qualify(str(output)), "somebody else"):
                arrive(folder, **{"old.png": png(2)})
                os.utime(folder / "old.png", (1_500_000_000, 1_500_000_000))
                end = time.monotonic() + HANG_SECONDS
                while not any("batch 1 waits" in each.getMessage() for each in caplog.records):
                    assert query.isActive and time.monotonic() < end, query.exception()
                    time.sleep(0.1)
            query.processAllAvailable()
    finally:
        query.stop()
    found = {files.name(row.path): row.model_version for row in rows_of(spark, output)}
    assert found == {"new.png": "v0001", "old.png": "v0001"}
    said = [each.getMessage() for each in caplog.records]
    assert sum("batch 1 waits" in each for each in said) == 1
    (told,) = (each for each in said if other in each)
    assert "names any number of species" in told and "v0001 goes on" in told


def test_what_cannot_be_streamed_is_refused_before_anything_is_written(
    spark: SparkSession, store: ModelStore, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    layout = "path string, modificationTime timestamp, length bigint, content binary"
    table = spark.readStream.format("binaryFile").schema(layout).load(str(tmp_path / "images"))
    good = {"images": str(tmp_path / "images"), "store": store.directory, "name": store.name}

    def refused(error: type[Exception], match: str, rows: Any = table, **others: Any) -> None:
        options = ScoreOptions(**{**good, "output": str(tmp_path / "output"), **others})
        with pytest.raises(error, match=match):
            scoring.stream(spark, options, str(tmp_path / "checkpoint"), rows)

    refused(InputError, "no stream", spark.createDataFrame([("a.png",)], "path string"))
    refused(InputError, "the stream with the columns length", table.select("length"))
    refused(InputError, "column path of type array", table.selectExpr("array(path) AS path"))
    refused(InputError, "column length of type bigint", content_column="length")
    refused(InputError, "other names", table.withColumn("reason", table.path))
    refused(InputError, "inside of the images", output=str(tmp_path / "images" / "scores"))
    refused(InputError, "no folder", None, images=str(tmp_path / "nowhere"))
    around = {"images": str(tmp_path), "output": str(tmp_path.parent / "another output")}
    refused(InputError, "the checkpoint .* inside of the images", None, **around)
    refused(OptionError, "path_column='p' for a stream of files", None, path_column="p")
    refused(OptionError, "table_format='csv'", table_format="csv")
    refused(OptionError, "run_id='one'", run_id="one")
    refused(StoreError, "no version v0009", model_version="v0009")
    assert {each.name for each in tmp_path.iterdir()} == {"images", "store"}
