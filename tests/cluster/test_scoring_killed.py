"""A scoring job whose driver is killed at any instant, and which is started again."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import keras
import pytest
from pyspark.sql import SparkSession

from seedlings_spark import files, scoring
from seedlings_spark.config import ScoringOptions
from seedlings_spark.corpus import synthetic
from seedlings_spark.models.store import ModelStore
from seedlings_spark.scoring.runs import Runs
from seedlings_spark.workflow import publication
from tests.cluster.standalone import Session, clean_environment

ROOT = Path(__file__).parents[2]
# All of them with `test --all`.
INSTANTS = 20 if os.environ.get("SEEDLINGS_TEST_ALL") else 3


class Place:
    """A store with one version, images, and an output with one old run."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark = spark
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
        self.store = ModelStore(files.qualify(str(folder / "store")), "seedlings")
        classes = [f"species {number}" for number in range(12)]
        publication.import_network(
            self.store, str(folder / "network.keras"), classes, aspect="crop", promote=True
        )

    def command(self, run: str) -> list[str]:
        paths = ("--images", str(self.images), "--store", self.store.directory, "--output", str(self.output))
        return [str(ROOT / "spark-submit.sh"), "--master", "local[2]", "score", *paths, "--run-id", run]

    def start(self, run: str) -> Session:
        folder = self.images.parent
        return Session(self.command(run), clean_environment(), folder, folder / f"{run}.log")

    def rows(self, run: str) -> list[tuple[Any, ...]]:
        """Path and outcome of every row of a run, in the order of the paths."""
        folder = Runs(files.qualify(str(self.output))).path(run)
        predictions = self.spark.read.parquet(files.join(folder, "predictions"))
        rejects = self.spark.read.parquet(files.join(folder, "rejects"))
        found = [(row.path, row.predicted_species) for row in predictions.collect()]
        return sorted(found + [(row.path, row.reason) for row in rejects.collect()])


@pytest.fixture(scope="module")
def place(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(spark, tmp_path_factory.mktemp("killed"))


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
    finished = Runs(files.qualify(str(place.output))).is_finished(run)
    if finished:
        assert place.rows(run) == calm
    output = files.qualify(str(place.output))
    options = ScoringOptions(files.qualify(str(place.images)), output=output, run_id=run, review=0)
    made = scoring.score(place.spark, place.store.resolve(), options)
    assert made.is_new != finished
    assert place.rows(run) == calm
    left = sorted(each.name for each in place.output.iterdir())
    assert [name for name in left if not name.startswith(".lock")] == ["manifest.json", "runs"]
    assert not [each for each in (place.output / "runs").iterdir() if each.name.startswith(".")] or finished
