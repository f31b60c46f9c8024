"""How long synchronous training stands still after a kill: `python -m tests.cluster.going_on`.

A standalone cluster of two hosts on this machine trains the network `plain` on drawn images. Now and then one of the
two training workers is killed, or the executor of one. What is printed is how long after the kill the interrupted epoch
ended, with the rest of that epoch's work; and where a run goes on with one worker, how long the epoch took in which it
got the second one again.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seedlings_spark.corpus import synthetic
from tests.cluster.standalone import Session, StandaloneCluster
from tests.cluster.test_standalone import ONE_CORE_EACH, Place, epochs_of, prepare, train

KILLS, EPOCHS_BETWEEN = 5, 4
# What the log says.
FAILED, GROWN = "the workers' stage failed", "training with 2 of at most 2 workers"


def main() -> None:
    print("import of TensorFlow: " + _told([_import_of_tensorflow() for _ in range(3)]), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_corpus(folder / "images", images_per_species=20, size=40)
        with StandaloneCluster(folder / "cluster") as cluster:
            place = Place(cluster, folder)
            place.run("prepare", *ONE_CORE_EACH, *prepare(folder / "corpus"))
            for workers, victim in (("2", "worker"), ("2", "executor"), ("1-2", "executor")):
                gone_on, grown = measure(place, workers, victim)
                print(f"--num-workers {workers}, {victim} killed: {_told(gone_on)}", flush=True)
                if grown:
                    print(f"  with the second worker again: {_told(grown)}", flush=True)


def measure(place: Place, workers: str, victim: str) -> tuple[list[float], list[float]]:
    """Seconds from each kill to the end of the interrupted epoch, and of epochs in which a second worker came.

    Args:
        place: With a corpus.
        workers: As `--num-workers`.
        victim: "worker", a Python process, or "executor", the JVM that has started it.
    """
    store = place.folder / f"{workers}-{victim}"
    # More epochs than it will ever train: it is ended after the last kill.
    command = (*train(place.folder / "corpus", store), "--shards", "2", "--num-workers", workers)
    gone_on, grown = list[float](), list[float]()
    with place.start(store.name, *ONE_CORE_EACH, *command, "--epochs", "100000") as job:

        def hear(text: str, times: int) -> float:
            """Wait until the log has said something so many times; when it had."""
            job.wait_for(lambda: job.said().count(text) >= times, text)
            return time.monotonic()

        def after_epochs(further: int) -> float:
            count = epochs_of(store) + further
            job.wait_for(lambda: epochs_of(store) >= count, f"epoch {count}")
            return time.monotonic()

        for number in range(1, KILLS + 1):
            job.wait_for(lambda: len(place.cluster.training_workers(job)) == 2, "two workers")
            after_epochs(EPOCHS_BETWEEN)
            os.kill(_victim(place, job, victim), signal.SIGKILL)
            killed = time.monotonic()
            hear(FAILED, number)
            gone_on.append(after_epochs(1) - killed)
            if workers != "2":
                came = hear(GROWN, number + 1)  # it has said so in the beginning, too
                grown.append(after_epochs(1) - came)
    return gone_on, grown


def _victim(place: Place, job: Session, victim: str) -> int:
    found = place.cluster.executors() if victim == "executor" else list(place.cluster.training_workers(job))
    return found[0]


def _import_of_tensorflow() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tensorflow"], check=True, capture_output=True)
    return time.monotonic() - started


def _told(seconds: list[float]) -> str:
    shown = ", ".join(f"{each:.1f}" for each in sorted(seconds))
    return f"median {statistics.median(seconds):.1f} s of {shown}"


if __name__ == "__main__":
    main()
