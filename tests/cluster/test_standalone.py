"""The jobs on a standalone cluster of two hosts: the same bits as on one machine, and each update once."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from seedlings_spark.corpus import synthetic
from tests import docs
from tests.cluster import raising
from tests.cluster.here import run_here
from tests.cluster.standalone import (
    HOSTS,
    PRIVATE_KEY,
    SCRIPT,
    Attempt,
    Session,
    StandaloneCluster,
    clean_environment,
    kill_all,
    training_attempts,
)
from tests.conftest import with_all
from tests.sockets import command_line, environment_of

ROOT = SCRIPT.parent
RAISING = Path(raising.__file__)

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address and /proc is missing"
    ),
]

IMAGES_PER_SPECIES = 10  # stratified: 7 to train on, 1 or 2 to validate, 1 or 2 to test
NUM_IMAGES = 12 * IMAGES_PER_SPECIES
BATCH_SIZE = 4
# An executor of one core on each host: Spark gives each of two workers its own.
ONE_CORE_EACH = ("--total-executor-cores", "2", "--executor-cores", "1")
# Of how many runs executors are killed, at so many seeded instants of each; all of them with test --all.
NUM_KILLED, KILLS = (4, 3) if os.environ.get("SEEDLINGS_TEST_ALL") else (1, 1)
LONGER = ("--epochs", "14")
TRAIN = ("--batch-size", str(BATCH_SIZE), "--augment", "flip")


@dataclass
class Place:
    """Where the jobs of this module run.

    Args:
        cluster: That is up.
        folder: Folder of images, corpora and stores.
    """

    cluster: StandaloneCluster
    folder: Path

    def start(self, name: str, *arguments: str) -> Session:
        """Start a job on the cluster, or with `--master` of its own."""
        environment = clean_environment()
        if "--master" not in arguments:
            environment = self.cluster.environment()
            events = self.events(name)
            events.mkdir(parents=True)
            arguments = (
                *("--master", self.cluster.url, "--conf", f"spark.eventLog.dir=file://{events}"),
                *arguments,
            )
        return Session([str(SCRIPT), *arguments], environment, self.folder, self.folder / f"{name}.log")

    def run(self, name: str, *arguments: str) -> None:
        """Run a job to its good end."""
        with self.start(name, *arguments) as job:
            finish(job)

    def record(self, name: str, program: Path, *arguments: str) -> Any:
        """The line of JSON that a program of one's own prints at its good end."""
        with self.start(name, *ONE_CORE_EACH, str(program), *arguments) as job:
            finish(job)
        (line,) = re.findall("^RECORD (.*)$", job.said(), re.MULTILINE)
        return json.loads(line)

    def start_as_stranger(self, name: str, *arguments: str) -> Session:
        """Start a job of a user who knows the cluster's address and secret, and has no settings of the site."""
        environment = {**clean_environment(), "SEEDLINGS_SPARK_SECRET": self.cluster.secret}
        spark = ("--master", self.cluster.url)
        for setting in ("driver.host=127.0.0.1", "driver.bindAddress=127.0.0.1"):
            spark += ("--conf", f"spark.{setting}")
        command = [str(SCRIPT), *spark, *arguments]
        return Session(command, environment, self.folder, self.folder / f"{name}.log")

    def events(self, name: str) -> Path:
        """Where a job on the cluster leaves Spark's event log."""
        return self.folder / "events" / name

    def attempts(self, name: str) -> list[Attempt]:
        """Spark's own record of a job's training workers."""
        (log,) = self.events(name).glob("app-*")
        return training_attempts(log)


def finish(job: Session) -> None:
    code = job.wait()
    assert code == 0, job.said()[-4000:]


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def version_of(store: Path) -> Path:
    return store / "seedlings" / "v0001"


def weights(store: Path) -> list[bytes]:
    from seedlings_spark.models import networks

    content = (version_of(store) / "network.keras").read_bytes()
    return [weight.tobytes() for weight in networks.from_bytes(content).get_weights()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A cluster, drawn images and a corpus that the cluster has prepared."""
    folder = tmp_path_factory.mktemp("standalone")
    synthetic.write_corpus(folder / "images", images_per_species=IMAGES_PER_SPECIES, size=40)
    with StandaloneCluster(folder / "cluster") as cluster:
        made = Place(cluster, folder)
        made.run("prepare-cluster", *ONE_CORE_EACH, *prepare(folder / "corpus"))
        yield made
    assert cluster.processes() == []


@pytest.fixture(scope="module")
def store(place: Place) -> Path:
    """A store with a version that the cluster has trained, one epoch after the other in step."""
    made = place.folder / "store"
    place.run("train-cluster", *ONE_CORE_EACH, *train(place.folder / "corpus", made), "--epochs", "2")
    return made


def prepare(corpus: Path) -> tuple[str, ...]:
    options = ("--image-size", "32", "--split-policy", "stratified")
    return ("prepare", "--images", str(corpus.parent / "images"), "--corpus", str(corpus), *options)


def train(corpus: Path, store: Path) -> tuple[str, ...]:
    run = store.parent / f"run of {store.name}"
    return ("train", "--corpus", str(corpus), "--store", str(store), "--run", str(run), *TRAIN)


def epochs_of(store: Path) -> int:
    """How many epochs a run that is under way has told of."""
    metrics = store.parent / f"run of {store.name}" / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def training_of(store: Path) -> Any:
    return read_json(version_of(store) / "manifest.json")["training"]


def updates_expected(training: Any, epochs: int) -> dict[str, int]:
    """At frequency batch each worker pushes once for each of its batches."""
    return {str(rank): epochs * -(-rows // BATCH_SIZE) for rank, rows in enumerate(training["rows"])}


def test_a_cluster_of_two_hosts_trains_the_same_bits_as_one_machine(place: Place, store: Path) -> None:
    hosts = {attempt.host for attempt in place.attempts("train-cluster")}
    assert hosts == set(HOSTS)

    here, corpus = place.folder / "store of one machine", place.folder / "corpus of one machine"
    local = ("--master", "local[2]")
    place.run("prepare-local", *local, *prepare(corpus))
    place.run("train-local", *local, *train(corpus, here), "--epochs", "2")
    there_manifest, here_manifest = (read_json(version_of(each) / "manifest.json") for each in (store, here))
    assert there_manifest["corpus"]["fingerprint"] == here_manifest["corpus"]["fingerprint"]
    assert there_manifest["history"] == here_manifest["history"]
    assert len(there_manifest["history"]["loss"]) == 2
    assert there_manifest["training"]["rows"] == here_manifest["training"]["rows"]
    assert weights(store) == weights(here)


def test_a_killed_worker_is_retried_alone_and_each_update_is_applied_once(place: Place) -> None:
    store, epochs = place.folder / "store of the killed", 20
    options = ("--mode", "asynchronous", "--epochs", str(epochs))
    with place.start("killed", *ONE_CORE_EACH, *train(place.folder / "corpus", store), *options) as job:
        job.wait_for(lambda: epochs_of(store) >= 2, "two epochs")
        place.cluster.check_privacy(job)
        workers = place.cluster.training_workers(job)
        assert sorted(workers.values()) == sorted(HOSTS), job.said()
        victim, host = next(iter(workers.items()))
        os.kill(victim, signal.SIGKILL)
        finish(job)

    training = training_of(store)
    expected = updates_expected(training, epochs)
    assert training["updates_of_rank"] == expected
    assert training["updates"] == sum(expected.values())
    assert training["stage_failures"] == 0

    attempts = place.attempts("killed")
    assert len({attempt.stage for attempt in attempts}) == 1
    (failed,) = (attempt for attempt in attempts if attempt.reason != "Success")
    assert failed.host == host and "Python worker exited unexpectedly" in failed.text
    assert sorted(attempt.rank for attempt in attempts if attempt.reason == "Success") == [0, 1]
    # The worker that took over has done a part of its rank's work, the other one all of its own.
    images = {worker["rank"]: worker["images"] for worker in training["workers"]}
    other = 1 - failed.rank
    assert images[other] == epochs * training["rows"][other]
    assert 0 < images[failed.rank] < epochs * training["rows"][failed.rank]


def test_a_speculative_copy_takes_the_place_of_a_stalled_worker_which_is_refused(place: Place) -> None:
    """Spark copies a worker only by `task.duration.threshold`.

    By the quantile it copies what is slower than those that have succeeded, and no worker of a run ends before all
    do. The threshold counts where an executor has as many slots as there are workers, and then for all of them.
    """
    store, epochs = place.folder / "store of the stalled", 20
    spark = ("--total-executor-cores", "4", "--executor-cores", "2", "--conf", "spark.speculation=true")
    spark += ("--conf", "spark.speculation.interval=100ms")
    spark += ("--conf", "spark.speculation.task.duration.threshold=25s")
    options = ("--mode", "asynchronous", "--epochs", str(epochs))
    with place.start("stalled", *spark, *train(place.folder / "corpus", store), *options) as job:
        job.wait_for(lambda: epochs_of(store) >= 2, "two epochs")
        originals = place.cluster.training_workers(job)
        assert len(originals) == 2, job.said()
        stalled = next(iter(originals))
        os.kill(stalled, signal.SIGSTOP)
        try:
            job.wait_for(
                lambda: set(place.cluster.training_workers(job)) - set(originals), "a speculative copy"
            )
        finally:
            os.kill(stalled, signal.SIGCONT)
        finish(job)

    training = training_of(store)
    expected = updates_expected(training, epochs)
    assert training["updates_of_rank"] == expected
    assert training["updates"] == sum(expected.values())
    assert training["stage_failures"] == 0

    attempts = place.attempts("stalled")
    assert len({attempt.stage for attempt in attempts}) == 1
    succeeded = [attempt for attempt in attempts if attempt.reason == "Success"]
    assert sorted(attempt.rank for attempt in succeeded) == [0, 1]
    assert all(attempt.is_speculative for attempt in succeeded)
    refused = [attempt for attempt in attempts if not attempt.is_speculative]
    assert sorted(attempt.rank for attempt in refused) == [0, 1]
    for attempt in refused:
        assert "RefusedError: another worker has this one's place" in attempt.text
    assert {(a.rank, a.host) for a in succeeded}.isdisjoint((a.rank, a.host) for a in refused)
    # No rank's last worker has done all of its work: what the first one did was not done again.
    for worker in training["workers"]:
        assert worker["images"] < epochs * training["rows"][worker["rank"]]


def test_evaluate_and_score_on_the_cluster_account_for_every_image(place: Place, store: Path) -> None:
    corpus, report, scores = (place.folder / name for name in ("corpus", "report", "scores"))
    model = ("--store", str(store))
    place.run(
        "evaluate", *ONE_CORE_EACH, "evaluate", "--corpus", str(corpus), *model, "--report", str(report)
    )
    matrix = read_json(report / "metrics.json")["confusion_matrix"]
    num_test = read_json(corpus / "manifest.json")["images_of_split"]["test"]
    assert sum(map(sum, matrix)) == num_test > 0

    images = place.folder / "new images"
    shutil.copytree(place.folder / "images", images)
    (images / synthetic.SPECIES[0] / "empty.png").write_bytes(b"")
    place.run("score", *ONE_CORE_EACH, "score", "--images", str(images), *model, "--output", str(scores))
    manifest = read_json(scores / "manifest.json")
    assert (manifest["listed"], manifest["scored"], manifest["rejected"]) == (NUM_IMAGES + 1, NUM_IMAGES, 1)
    assert manifest["rejected_by_reason"] == {"empty": 1}
    assert sum(manifest["images_of_species"].values()) == NUM_IMAGES


def test_the_doctor_finds_nothing_in_the_way(place: Place) -> None:
    with place.start("doctor", *ONE_CORE_EACH, "doctor", "--output", str(place.folder / "work")) as job:
        finish(job)
    said = job.said()
    assert "FAIL" not in said and "authenticated and encrypted" in said
    assert re.search(r"^ok +executors seen +2 tasks", said, re.MULTILINE), said


def test_workers_for_whom_no_core_was_asked_are_refused_at_once(place: Place) -> None:
    refused = place.folder / "refused"
    command = (*ONE_CORE_EACH, *train(place.folder / "corpus", refused), "--num-workers", "3")
    with place.start("refused", *command) as job:
        assert job.wait() == 1
    assert re.search(r"ClusterError: \d free slots? .*2 asked for\) for 3 workers\.", job.said()), job.said()
    assert " after " not in job.said()  # nobody has waited
    assert not refused.exists()


def test_executors_that_do_not_come_are_waited_for_as_long_as_was_said(place: Place) -> None:
    """Twelve cores are asked for, of the four that the cluster has."""
    late = place.folder / "late"
    cores = ("--total-executor-cores", "12", "--conf", "spark.scheduler.minRegisteredResourcesRatio=0")
    command = (*cores, *train(place.folder / "corpus", late), "--num-workers", "12", "--wait-executors", "6")
    with place.start("late", *command) as job:
        assert job.wait() == 1
    assert "4 free slots after 6 s" in job.said() and "12 asked for" in job.said(), job.said()


@pytest.fixture(scope="module")
def undisturbed(spark: SparkSession, place: Place) -> Path:
    """A store with a version of as many epochs as the killed ones get, trained on one machine."""
    made = place.folder / "undisturbed store"
    run_here(spark, *train(place.folder / "corpus", made), *LONGER)
    return made


@pytest.mark.parametrize("seed", range(NUM_KILLED))
def test_executors_killed_at_any_instant_change_no_bit(place: Place, undisturbed: Path, seed: int) -> None:
    generator = random.Random(seed)
    store = place.folder / f"store of kills {seed}"
    size = ("--min-workers", "1") if seed % 2 == 0 else ()  # of which it goes on with one for a while
    command = (*ONE_CORE_EACH, *train(place.folder / "corpus", store), *LONGER, *size)
    with place.start(f"kills-{seed}", *command) as job:
        for epoch in sorted(generator.sample(range(10), KILLS)):  # also a quick machine is not done meanwhile
            job.wait_for(lambda epoch=epoch: epochs_of(store) >= epoch, f"epoch {epoch}")
            job.wait_for(place.cluster.executors, "an executor to be killed")
            time.sleep(generator.uniform(0, 0.5 if epoch else 8))
            victims = place.cluster.executors()
            assert victims and job.is_running(), job.said()
            os.kill(generator.choice(victims), signal.SIGKILL)
        finish(job)
    check_undisturbed(store, undisturbed)


def check_undisturbed(store: Path, undisturbed: Path) -> None:
    """The same bits, and the same numbers of every epoch."""
    assert weights(store) == weights(undisturbed)
    histories = [read_json(version_of(each) / "manifest.json")["history"] for each in (store, undisturbed)]
    assert histories[0] == histories[1]


@with_all
def test_executors_that_are_allocated_dynamically_train_the_same_bits_and_may_be_lost(
    place: Place, undisturbed: Path
) -> None:
    """Nobody has said how many executors there are to be: there are none before there are tasks."""
    store = place.folder / "store of the dynamic"
    spark = (
        "--executor-cores",
        "1",
        "--executor-memory",
        "512m",
        "--conf",
        "spark.dynamicAllocation.enabled=true",
    )
    size = ("--num-workers", "1-2", "--shards", "2")
    with place.start("dynamic", *spark, *train(place.folder / "corpus", store), *LONGER, *size) as job:
        job.wait_for(lambda: epochs_of(store) >= 3, "three epochs")
        assert len(place.cluster.training_workers(job)) == 2, job.said()
        os.kill(next(iter(place.cluster.training_workers(job))), signal.SIGKILL)
        finish(job)
    assert training_of(store)["stage_failures"] == 1
    check_undisturbed(store, undisturbed)


@pytest.mark.parametrize("seed", range(-(-NUM_KILLED // 2)))
def test_tasks_that_raise_after_some_pushes_are_tried_again(place: Place, seed: int) -> None:
    generator = random.Random(seed)
    pushes = [str(generator.randrange(1, 40)) for _ in range(2)]
    calm = place.record(f"calm-{seed}", RAISING, "synchronous", str(place.folder))
    records = {}
    for mode in ("synchronous", "asynchronous"):
        folder = place.folder / f"raised-{mode}-{seed}"
        folder.mkdir()
        records[mode] = place.record(folder.name, RAISING, mode, str(folder), *pushes)
        assert {file.name for file in folder.iterdir()} == {"rank 0", "rank 1"}
        raised = [each for each in place.attempts(folder.name) if each.reason == "ExceptionFailure"]
        assert all("pushes" in attempt.text for attempt in raised)
        assert sorted(attempt.rank for attempt in raised) == [0, 1]

    together, alone = records["synchronous"], records["asynchronous"]
    assert together["stage_failures"] == 2
    assert (together["bits"], together["history"]) == (calm["bits"], calm["history"])
    assert alone["stage_failures"] == 0
    expected = {
        str(rank): raising.EPOCHS * -(-rows // raising.BATCH_SIZE) for rank, rows in enumerate(alone["rows"])
    }
    assert alone["updates_of_rank"] == expected and alone["updates"] == sum(expected.values())


def test_a_worker_that_is_stopped_for_good_changes_no_bit(place: Place, undisturbed: Path) -> None:
    """Its silence is noticed after a minute; then Spark ends its task, and with it the process."""
    store = place.folder / "store of the stopped"
    with place.start("stopped", *ONE_CORE_EACH, *train(place.folder / "corpus", store), *LONGER) as job:
        job.wait_for(lambda: epochs_of(store) >= 3, "three epochs")
        stopped = next(iter(place.cluster.training_workers(job)))
        os.kill(stopped, signal.SIGSTOP)
        finish(job)
    assert stopped not in place.cluster.processes()
    assert training_of(store)["stage_failures"] == 1
    check_undisturbed(store, undisturbed)


def test_a_killed_driver_goes_on_where_it_was(place: Place, undisturbed: Path) -> None:
    store = place.folder / "store of the killed driver"
    command = (*ONE_CORE_EACH, *train(place.folder / "corpus", store), *LONGER)
    with place.start("killed-driver", *command) as job:
        job.wait_for(lambda: epochs_of(store) >= 3, "three epochs")
        kill_all(job.members)
    assert not version_of(store).exists()
    place.run("started-again", *command)
    check_undisturbed(store, undisturbed)
    attempts = read_json(store.parent / f"run of {store.name}" / "run.json")["attempts"]
    assert [attempt["exit_code"] for attempt in attempts] == [None, 0]


def test_executors_use_the_packages_that_travel_along(place: Place, store: Path) -> None:
    """Nothing that the executors' Python has loaded lies in the project, or in the environment that runs this test."""
    archive = ROOT / "dist" / "environment.tar.gz"
    if not archive.exists():
        subprocess.run([SCRIPT, "pack"], env=clean_environment(), check=True)
    packed = place.folder / "store of the packed"
    command = ("--archives", f"{archive}#environment", *ONE_CORE_EACH)
    loaded: set[str] = set()
    with place.start_as_stranger(
        "packed", *command, *train(place.folder / "corpus", packed), "--epochs", "2"
    ) as job:
        while job.is_running():
            for pid in place.cluster.processes():
                if b"pyspark.daemon" in command_line(pid):
                    loaded |= mapped(pid)
                    assert b"PYTHONPATH=" + bytes(ROOT) not in environment_of(pid)
            time.sleep(0.5)
        finish(job)
    assert any(path.endswith("_pywrap_tensorflow_internal.so") for path in loaded)
    for folder in (ROOT, Path(sys.prefix)):
        assert {path for path in loaded if path.startswith(f"{folder}/")} == set()
    assert weights(packed) == weights(store)


def mapped(pid: int) -> set[str]:
    """The files that a process has mapped into its memory: its programs and libraries."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {
        line.split(maxsplit=5)[5] for line in lines if line.count(" /") and len(line.split(maxsplit=5)) == 6
    }


def test_the_documented_commands_do_what_they_say(place: Place) -> None:
    shared = place.folder / "nfs"
    shutil.copytree(place.folder / "corpus", shared / "corpus")
    instead = {
        "=...": f"={place.cluster.secret}",
        "spark://HOST:7077": place.cluster.url,
        "-cores 8": "-cores 2",
        "-workers 8": "-workers 2",
        "/nfs": str(shared),
    }
    block = docs.command("docs/clusters.md", "On a standalone cluster", instead)
    command = ["bash", "-euc", block]
    with Session(command, place.cluster.environment(), ROOT, place.folder / "docs.log") as shell:
        finish(shell)
    assert "FAIL" not in shell.said()
    assert version_of(shared / "store").exists()
    assert read_json(shared / "runs" / "7" / "run.json")["version"] == "v0001"


def test_no_secret_is_left_behind(place: Place, store: Path) -> None:
    """In event logs, logs of all processes, run folders, checkpoints, manifests and what Spark keeps on disk."""
    secrets = (place.cluster.secret.encode(), PRIVATE_KEY)
    looked_at = 0
    for folder, folders, names in os.walk(place.folder):
        if Path(folder) == place.cluster.settings:  # the administrator's own
            continue
        folders[:] = [name for name in folders if name != "environment"]
        for name in names:
            content = (Path(folder) / name).read_bytes()
            looked_at += 1
            assert not any(secret in content for secret in secrets), Path(folder) / name
    assert looked_at > NUM_IMAGES
    logs = list((place.folder / "events").glob("*/app-*"))
    assert logs and all(b"spark.authenticate.secret" in log.read_bytes() for log in logs)  # struck out
