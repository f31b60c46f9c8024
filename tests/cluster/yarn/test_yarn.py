"""The jobs on a YARN cluster of two nodes, with all that they read and write on its HDFS."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from seedlings_spark.corpus import synthetic
from tests import docs
from tests.cluster.here import run_here
from tests.cluster.standalone import SCRIPT, Session, wait_until
from tests.cluster.yarn.hadoop import NoHadoopError, YarnCluster, fetch_jars

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("SEEDLINGS_TEST_YARN") != "1", reason="asked for with ./spark-submit.sh test --yarn"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere /proc is missing"),
]

with_all = pytest.mark.skipif(
    not os.environ.get("SEEDLINGS_TEST_ALL"),
    reason="takes minutes: asked for with ./spark-submit.sh test --all --yarn",
)
IMAGES_PER_SPECIES = 10  # stratified: 7 to train on, 1 or 2 to validate, 1 or 2 to test
NUM_IMAGES = 12 * IMAGES_PER_SPECIES
BATCH_SIZE = 4
EPOCHS = 8
PREPARE = ("--image-size", "32", "--split-policy", "stratified")
TRAIN = ("--batch-size", str(BATCH_SIZE), "--epochs", str(EPOCHS), "--augment", "flip")
# Two executors of one core, and where the driver has a container of its own, its size.
NODES: tuple[str, ...] = ("--num-executors", "2", "--executor-cores", "1", "--executor-memory", "1g")
NODES += ("--conf", "spark.executor.memoryOverhead=2g")
NODES += ("--driver-memory", "1g", "--conf", "spark.driver.memoryOverhead=2g")
CLUSTER_MODE = ("--deploy-mode", "cluster")


@dataclass
class Place:
    """Where the jobs of this module run.

    Args:
        cluster: That is up.
        folder: Folder on this machine, for logs.
    """

    cluster: YarnCluster
    folder: Path

    def start(self, name: str, *arguments: str) -> Session:
        """Start a job on the cluster."""
        command = [str(SCRIPT), "--master", "yarn", *NODES, *arguments]
        return Session(command, self.cluster.environment(), self.folder, self.folder / f"{name}.log")

    def run(self, name: str, *arguments: str, code: int = 0) -> str:
        """Run a job to its end; what it has printed.

        Args:
            name: Name of its log.
            arguments: Arguments of the script.
            code: That it has to end with.
        """
        with self.start(name, *arguments) as job:
            return self.finish(job, code)

    def finish(self, job: Session, code: int = 0) -> str:
        """Wait for a job's end; what it has printed."""
        found = job.wait()
        assert found == code, f"exit code {found}\n{job.said()[-4000:]}\n{self._said_on_the_nodes()}"
        return job.said()

    def at(self, name: str) -> str:
        """A path on the HDFS."""
        return f"{self.cluster.uri}/{name}"

    def read_json(self, name: str) -> Any:
        content = self.cluster.read(self.at(name))
        assert content is not None, name
        return json.loads(content)

    def lines(self, name: str) -> list[Any]:
        """The lines of a file of JSON lines; none if it is not there yet."""
        return [json.loads(line) for line in (self.cluster.read(self.at(name)) or b"").splitlines()]

    def manifest(self, store: str) -> Any:
        """Of a store's only version."""
        versions = [name for name in self.cluster.list_names(self.at(f"{store}/seedlings")) if name[0] == "v"]
        assert versions == ["v0001"]
        return self.read_json(f"{store}/seedlings/v0001/manifest.json")

    def weights(self, store: str) -> list[bytes]:
        content = self.cluster.read(self.at(f"{store}/seedlings/v0001/network.keras"))
        assert content is not None, store
        return weights(content)

    def train(self, store: str) -> tuple[str, ...]:
        """A job and its options."""
        folders = (
            "--corpus",
            self.at("corpus"),
            "--store",
            self.at(store),
            "--run",
            self.at(f"run of {store}"),
        )
        return ("train", *folders, *TRAIN)

    def score(self, output: str) -> tuple[str, ...]:
        """A job and its options; one of the images is broken."""
        return ("score", "--images", self.at("new images"), "--store", self.at("store"), "--output", output)

    def _said_on_the_nodes(self) -> str:
        applications = self.cluster.applications()
        return self.cluster.said(applications[-1]) if applications else ""


def weights(network: bytes) -> list[bytes]:
    from seedlings_spark.models import networks

    return [weight.tobytes() for weight in networks.from_bytes(network).get_weights()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster, drawn images, and a corpus that the cluster has prepared."""
    try:
        fetch_jars()
    except NoHadoopError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("yarn")
    images, new_images = folder / "images", folder / "new images"
    synthetic.write_corpus(images, images_per_species=IMAGES_PER_SPECIES, size=40)
    shutil.copytree(images, new_images)
    (new_images / synthetic.SPECIES[0] / "empty.png").write_bytes(b"")
    with YarnCluster(folder / "cluster") as cluster:
        made = Place(cluster, folder)
        cluster.put(made.at(""), images, new_images)
        folders = ("--images", made.at("images"), "--corpus", made.at("corpus"))
        made.run("prepare", "prepare", *folders, *PREPARE)
        yield made
    assert cluster.processes() == []


@pytest.fixture(scope="module")
def store(place: Place) -> str:
    """A store with a version that was trained in cluster mode, one epoch after the other in step."""
    place.run("train", *CLUSTER_MODE, *place.train("store"))
    return "store"


def test_cluster_mode_trains_the_same_bits_as_one_machine(
    spark: SparkSession, place: Place, store: str
) -> None:
    corpus, here = place.folder / "corpus", place.folder / "store"
    run_here(spark, "prepare", "--images", str(place.folder / "images"), "--corpus", str(corpus), *PREPARE)
    run_here(spark, "train", "--corpus", str(corpus), "--store", str(here), *TRAIN)
    version = here / "seedlings" / "v0001"
    there, expected = place.manifest(store), json.loads((version / "manifest.json").read_text("utf-8"))
    assert there["corpus"]["fingerprint"] == expected["corpus"]["fingerprint"]
    assert there["history"] == expected["history"]
    assert there["training"]["rows"] == expected["training"]["rows"]
    assert place.weights(store) == weights((version / "network.keras").read_bytes())


@with_all
def test_client_mode_trains_the_same_bits_as_cluster_mode(place: Place, store: str) -> None:
    place.run("in the client", *place.train("store of the client"))
    here, there = place.manifest("store of the client"), place.manifest(store)
    assert here["history"] == there["history"]
    assert here["training"]["rows"] == there["training"]["rows"]
    assert place.weights("store of the client") == place.weights(store)


@with_all
def test_jobs_in_client_mode_account_for_every_image(place: Place, store: str) -> None:
    corpus = place.read_json("corpus/manifest.json")
    assert (corpus["listed"], corpus["accepted"], corpus["rejected"]) == (NUM_IMAGES, NUM_IMAGES, 0)
    assert sum(corpus["images_of_split"].values()) == NUM_IMAGES
    trained = place.manifest(store)
    assert sum(trained["training"]["rows"]) == corpus["images_of_split"]["train"]
    assert len(trained["training"]["rows"]) == 2
    assert len(trained["history"]["loss"]) == EPOCHS == len(place.lines(f"run of {store}/metrics.jsonl"))

    folders = ("--corpus", place.at("corpus"), "--store", place.at(store), "--report", place.at("report"))
    place.run("evaluate", "evaluate", *folders)
    matrix = place.read_json("report/metrics.json")["confusion_matrix"]
    assert sum(map(sum, matrix)) == corpus["images_of_split"]["test"] > 0

    place.run("score", *place.score(place.at("scores")))
    first = place.read_json("scores/manifest.json")
    assert (first["listed"], first["scored"], first["rejected"]) == (NUM_IMAGES + 1, NUM_IMAGES, 1)
    assert first["rejected_by_reason"] == {"empty": 1}
    assert sum(first["images_of_species"].values()) == NUM_IMAGES
    place.run("again", *place.score(place.at("scores")), "--incremental", "--keep-empty")
    second = place.read_json("scores/manifest.json")
    assert (second["listed"], second["scored"], second["rejected"]) == (NUM_IMAGES + 1, 0, 0)
    assert (second["already_scored"], second["already_rejected"]) == (NUM_IMAGES, 1)


@with_all
def test_asynchronous_training_applies_each_update_once(place: Place) -> None:
    place.run("asynchronous", *place.train("asynchronous"), "--mode", "asynchronous")
    training = place.manifest("asynchronous")["training"]
    expected = {str(rank): EPOCHS * -(-rows // BATCH_SIZE) for rank, rows in enumerate(training["rows"])}
    assert training["updates_of_rank"] == expected
    assert training["updates"] == sum(expected.values())
    assert training["stage_failures"] == 0


@with_all
def test_a_killed_application_master_is_followed_by_one_that_ends_with_the_same_bits(
    place: Place, store: str
) -> None:
    killed = "store of the killed"
    before = len(place.cluster.applications())
    with place.start("killed", *CLUSTER_MODE, *place.train(killed)) as job:
        # Of three epochs the last may be told and not be checkpointed yet.
        job.wait_for(lambda: len(place.lines(f"run of {killed}/metrics.jsonl")) >= 3, "three epochs")
        application = place.cluster.applications()[before]
        master = place.cluster.application_master(application)
        assert master is not None
        os.kill(master, signal.SIGKILL)
        told = place.lines(f"run of {killed}/metrics.jsonl")
        assert 3 <= len(told) < EPOCHS
        assert place.cluster.list_names(place.at(f"{killed}/seedlings")) == []
        place.finish(job)

    assert place.cluster.attempts(application) == [1, 2]
    wait_until(lambda: not place.cluster.processes(application), "the end of its containers", place.folder)
    assert place.manifest(killed)["history"] == place.manifest(store)["history"]
    assert place.weights(killed) == place.weights(store)
    # Its second master has gone on: what the first one told, with its times, still stands, and nothing twice.
    lines, expected = (place.lines(f"run of {each}/metrics.jsonl") for each in (killed, store))
    assert lines[:2] == told[:2]
    assert [{**line, "time": None} for line in lines] == [{**line, "time": None} for line in expected]


@with_all
def test_a_run_whose_executor_is_killed_goes_on_with_fewer_workers_to_the_same_bits(
    place: Place, store: str
) -> None:
    """YARN brings another executor, which takes longer than to go on without."""
    fewer = "store of the fewer"
    before = len(place.cluster.applications())
    size = ("--num-workers", "auto", "--shards", "2")
    with place.start("fewer", *place.train(fewer), *size) as job:
        job.wait_for(lambda: len(place.lines(f"run of {fewer}/metrics.jsonl")) >= 2, "two epochs")
        executors = place.cluster.executors(place.cluster.applications()[before])
        assert len(executors) == 2
        os.kill(executors[0], signal.SIGKILL)
        said = place.finish(job)
    assert "training with 2 of at most 2 workers" in said and "training with 1 of at most 2 workers" in said
    manifest = place.manifest(fewer)
    assert manifest["training"]["stage_failures"] == 1
    assert manifest["history"] == place.manifest(store)["history"]
    assert place.weights(fewer) == place.weights(store)


@with_all
def test_the_exit_code_of_the_script_is_that_of_the_job_in_the_cluster(place: Place, store: str) -> None:
    before = len(place.cluster.applications())
    options = ("--max-reject-fraction", "0")
    place.run("rejects", *CLUSTER_MODE, *place.score(place.at("strict scores")), *options, code=3)
    manifest = place.read_json("strict scores/manifest.json")
    assert (manifest["listed"], manifest["scored"], manifest["rejected"]) == (NUM_IMAGES + 1, NUM_IMAGES, 1)
    assert manifest["num_runs"] == 1  # a second attempt would have scored all of them again
    assert len(place.cluster.applications()) == before + 1


@with_all
def test_the_packages_come_from_an_archive_that_lies_on_hdfs(place: Place, store: str) -> None:
    """Uploaded once; for the executors in client mode, and for the driver too in cluster mode."""
    archive = SCRIPT.parent / "dist" / "environment.tar.gz"
    if not archive.exists():
        subprocess.run([SCRIPT, "pack"], env=place.cluster.environment(), check=True)
    place.cluster.put(place.at("environment.tar.gz"), archive)
    packages = ("--archives", place.at("environment.tar.gz") + "#environment")
    # The nodes unpack it while the application starts.
    patient = (*packages, "--conf", "spark.scheduler.maxRegisteredResourcesWaitingTime=600s")
    said = place.run("doctor", *patient, "doctor", "--output", place.at("work"))
    assert re.search(r"^ok +TensorFlow on the executors +imported in ", said, re.MULTILINE), said
    assert re.search(r"^ok +executors seen +2 tasks", said, re.MULTILINE), said
    place.run("packed", *patient, *CLUSTER_MODE, *place.train("packed"))
    assert place.weights("packed") == place.weights(store)


@with_all
def test_the_documented_commands_do_what_they_say(place: Place) -> None:
    instead = {
        "--master yarn": " ".join(["--master", "yarn", *NODES]),
        "--num-executors 8": "",
        "--num-workers 8": "--num-workers 2",
    }
    block = docs.command("docs/clusters.md", "On YARN", instead)
    command = ["bash", "-euc", block]
    with Session(command, place.cluster.environment(), SCRIPT.parent, place.folder / "docs.log") as shell:
        said = place.finish(shell)
    assert "FAIL" not in said
    assert place.cluster.list_names(place.at("envs")) == ["environment.tar.gz"]
    assert place.read_json("runs/7/run.json")["version"]


@pytest.mark.parametrize(("option", "value"), [("--output", "relative"), ("--store", "file:///tmp/store")])
def test_folders_on_the_disk_of_a_container_are_refused_at_once(
    place: Place, option: str, value: str
) -> None:
    before = len(place.cluster.applications())
    with place.start(f"refused {option}", *CLUSTER_MODE, *place.score(place.at("no")), option, value) as job:
        assert job.wait() in (1, 2), job.said()
    assert f"{option} {value}" in job.said() and "cluster" in job.said(), job.said()
    assert len(place.cluster.applications()) == before
