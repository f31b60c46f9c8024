"""Jobs whose driver is killed at any instant, and which are started again, on disks and in an object store."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import pytest
from pyspark.sql import SparkSession

from seedlings_spark import corpus, files, scoring
from seedlings_spark.config import PrepareOptions, ScoringOptions
from seedlings_spark.corpus import synthetic
from seedlings_spark.errors import CorpusError, OutputInUseError
from seedlings_spark.models.store import ModelStore
from seedlings_spark.scoring import ScoreRun
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import jobs, publication
from tests import s3
from tests.cluster.standalone import Session, clean_environment

ROOT = Path(__file__).parents[2]
# All of them with `test --all`.
INSTANTS = 20 if os.environ.get("SEEDLINGS_TEST_ALL") else 3


class Place:
    """A store with one version, images, and an output with one old run.

    Args:
        spark: The session.
        folder: Of this machine, below which all of it lies.
        root: The folder's URI, in an object store or not.
        work: Working directory of jobs, with their logs.
        options: For spark-submit.
        variables: For its environment.
    """

    def __init__(
        self,
        spark: SparkSession,
        folder: Path,
        root: str,
        work: Path,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.spark, self.root, self.work, self.options = spark, root, work, options
        self.variables = dict(variables or {})
        self.images, self.output = folder / "images", folder / "output"
        synthetic.write_corpus(self.images, images_per_species=25, size=64)
        (self.images / "bad.png").write_bytes(b"no picture")
        (self.images / "empty.png").touch()
        keras.utils.set_random_seed(1)
        network = keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.Conv2D(8, 3, activation="relu"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(12, activation="softmax"),
            ]
        )
        network.save(folder / "network.keras")
        self.store = ModelStore(f"{root}/store", "seedlings")
        classes = [f"species {number}" for number in range(12)]
        publication.import_network(
            self.store, str(folder / "network.keras"), classes, aspect="crop", promote=True
        )

    @property
    def runs(self) -> Runs:
        return Runs(f"{self.root}/output")

    def start(self, run: str) -> Session:
        paths = ("--store", self.store.directory, "--output", self.runs.output)
        return self.start_job(run, "score", *paths, "--run-id", run)

    def start_job(self, name: str, job: str, *options: str) -> Session:
        """Start a job over the images, with a log of this name."""
        command = [str(ROOT / "spark-submit.sh"), "--master", "local[2]", *self.options]
        command += [job, "--images", f"{self.root}/images", *options]
        environment = {**clean_environment(), **self.variables}
        return Session(command, environment, self.work, self.work / f"{name}.log")

    def score(self, run: str) -> ScoreRun:
        """Score in this process."""
        options = ScoringOptions(f"{self.root}/images", output=self.runs.output, run_id=run, review=0)
        return scoring.score(self.spark, self.store.resolve(), options)

    def rows(self, run: str) -> list[tuple[Any, ...]]:
        """Path and outcome of every row of a run, in the order of the paths."""
        folder = self.runs.tables_path(run)
        predictions = self.spark.read.parquet(files.join(folder, "predictions"))
        rejects = self.spark.read.parquet(files.join(folder, "rejects"))
        found = [(row.path, row.predicted_species) for row in predictions.collect()]
        return sorted(found + [(row.path, row.reason) for row in rejects.collect()])


@pytest.fixture(scope="module", params=["disk", "object store"])
def place(
    request: pytest.FixtureRequest,
    spark: SparkSession,
    s3_server: s3.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    work = tmp_path_factory.mktemp("killed")
    if request.param == "disk":
        folder = tmp_path_factory.mktemp("place")
        yield Place(spark, folder, files.qualify(str(folder)), work)
        return
    root, behind = s3_server.bucket()
    with s3_server.used_by(spark, root):
        options = [
            part
            for item in s3_server.settings().items()
            for part in ("--conf", "spark.hadoop.{}={}".format(*item))
        ]
        variables = {**s3_server.variables(), "SPARK_DIST_CLASSPATH": f"{s3.connector()}/*"}
        yield Place(spark, behind, root, work, options, variables)


@pytest.fixture(scope="module")
def seconds(place: Place) -> float:
    """How long an undisturbed job works, from its lock to its end."""
    with place.start("calm") as job:
        _wait_for(place.output / ".lock", job)
        started = time.monotonic()
        assert job.wait() == 0, job.said()
    return time.monotonic() - started


def _wait_for(path: Path, job: Session) -> None:
    job.wait_for(path.exists, f"{path} is there")


def _kill(job: Session) -> None:
    """The script, spark-submit, the driver and its Python processes at once."""
    for process in job.members():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("seed", range(INSTANTS))
def test_a_killed_job_that_is_started_again_leaves_each_file_exactly_once(
    place: Place, seconds: float, seed: int
) -> None:
    calm = place.rows("calm")
    assert len(calm) == len({path for path, _ in calm}) == 302
    run = f"run-{seed}"
    with place.start(run) as job:
        _wait_for(place.output / ".lock", job)
        time.sleep(random.Random(seed).uniform(0, seconds))
        _kill(job)
    # What was there stays readable, and what is there now is whole.
    assert place.rows("calm") == calm
    finished = place.runs.is_finished(run)
    if finished:
        assert place.rows(run) == calm
    assert place.score(run).is_new != finished
    assert place.rows(run) == calm
    left = {each.name for each in place.output.iterdir() if not each.name.startswith(".lock")}
    assert left - {"tables"} == {"manifest.json", "runs"}
    assert not place.runs.left_behind() or finished


def test_a_second_driver_is_refused(place: Place) -> None:
    with place.start("first") as job:
        _wait_for(place.output / ".lock", job)
        with pytest.raises(OutputInUseError, match="is writing"):
            place.score("second")
        assert job.wait() == 0, job.said()
    assert {"first"} == {"first", "second"} & set(place.runs.names())


@pytest.mark.parametrize("seed", range(INSTANTS))
def test_a_killed_prepare_that_is_started_again_leaves_one_corpus(place: Place, seed: int) -> None:
    path, behind = f"{place.root}/corpus-{seed}", place.images.parent / f"corpus-{seed}"
    with place.start_job(behind.name, "prepare", "--corpus", path, "--image-size", "32") as job:
        job.wait_for(lambda: list(behind.glob("*/.lock")), f"a lock below {behind}")
        time.sleep(random.Random(seed).uniform(0, 8))
        _kill(job)
    is_there = (behind / "manifest.json").exists()
    if is_there:
        assert corpus.load(path).images(place.spark).count() == 300
    else:
        with pytest.raises(CorpusError):
            corpus.load(path)
    options = PrepareOptions(f"{place.root}/images", corpus=path, image_size=32, overwrite=is_there)
    made = jobs.prepare(place.spark, options)
    assert made.images(place.spark).count() == made.manifest["accepted"] == 300
    for left in corpus.left_behind(path):
        files.delete(left)
    tables = {"images", "rejects"} if files.renames(path) else {files.name(made.tables_path)}
    assert set(files.list_names(path)) == {"manifest.json", *tables}
