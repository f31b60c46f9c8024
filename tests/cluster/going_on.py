"""How long synchronous training stands still after a kill: `python -m tests.cluster.going_on`.

A standalone cluster of two hosts on this machine trains the network `plain` on drawn images. Now and then one of the
two training workers is killed, or the executor of one. Each epoch that the run tells of is noted with its time: what is
printed is how long after a kill the first epoch ended that took much longer than the others. It holds the rest of that
epoch's work.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from seedlings_spark.corpus import synthetic
from tests.cluster.standalone import Session, StandaloneCluster
from tests.cluster.test_standalone import ONE_CORE_EACH, Place, epochs_of, prepare, train

KILLS, EPOCHS_BETWEEN = 5, 4
# An epoch that is so many times as long as the others, and so many seconds longer, has been interrupted.
FACTOR, SECONDS = 3.0, 1.0


def main() -> None:
    imports = [_import_of_tensorflow() for _ in range(3)]
    print(f"import of TensorFlow: {statistics.median(imports):.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_corpus(folder / "images", images_per_species=20, size=40)
        with StandaloneCluster(folder / "cluster") as cluster:
            place = Place(cluster, folder)
            place.run("prepare", *ONE_CORE_EACH, *prepare(folder / "corpus"))
            for workers in ("2", "1-2"):
                for victim in ("worker", "executor"):
                    seconds = measure(place, workers, victim)
                    told = f"median {statistics.median(seconds):.1f} s of " + ", ".join(
                        f"{each:.1f}" for each in sorted(seconds)
                    )
                    print(f"--num-workers {workers}, {victim} killed: {told}", flush=True)


def measure(place: Place, workers: str, victim: str) -> list[float]:
    """Seconds from each kill to the end of the epoch that it has interrupted.

    Args:
        place: With a corpus.
        workers: As `--num-workers`.
        victim: "worker", a Python process, or "executor", the JVM that has started it.
    """
    store = place.folder / f"{workers}-{victim}"
    # More epochs than it will ever train: it is ended after the last kill.
    command = (*train(place.folder / "corpus", store), "--shards", "2", "--num-workers", workers)
    generator, kills, epochs = random.Random(0), list[float](), list[float]()
    with place.start(store.name, *ONE_CORE_EACH, *command, "--epochs", "100000") as job:

        def has(count: int) -> bool:
            while len(epochs) < epochs_of(store):
                epochs.append(time.monotonic())
            return len(epochs) >= count

        def wait_for_more() -> None:
            count = len(epochs) + EPOCHS_BETWEEN
            job.wait_for(lambda: has(count), f"epoch {count}")

        for _ in range(KILLS):
            job.wait_for(lambda: len(place.cluster.training_workers(job)) == 2, "two workers")
            wait_for_more()
            time.sleep(generator.uniform(0, 0.5))
            os.kill(_victim(place, job, victim), signal.SIGKILL)
            kills.append(time.monotonic())
        wait_for_more()
        assert job.is_running(), job.said()
    usual = statistics.median(after - before for before, after in pairwise(epochs))
    return [_end_of_pause(epochs, kill, FACTOR * usual + SECONDS) - kill for kill in kills]


def _victim(place: Place, job: Session, victim: str) -> int:
    found = place.cluster.executors() if victim == "executor" else list(place.cluster.training_workers(job))
    return found[0]


def _end_of_pause(epochs: list[float], kill: float, long: float) -> float:
    """When the first epoch ended after a kill that had taken so long; without one, the first epoch after it."""
    later = [(before, after) for before, after in pairwise(epochs) if after > kill]
    return next((after for before, after in later if after - before > long), later[0][1])


def _import_of_tensorflow() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tensorflow"], check=True, capture_output=True)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
