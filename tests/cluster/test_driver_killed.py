"""A training job whose driver is killed, and which is started again with the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seedlings_spark import synthetic

ROOT = Path(__file__).parents[2]
EPOCHS = 6


def _command(*arguments: str) -> list[str]:
    return [str(ROOT / "spark-submit.sh"), "--master", "local[2]", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "SEEDLINGS_PYTHON": sys.executable}


def _train(corpus: Path, store: Path, run: Path) -> list[str]:
    options = ("--epochs", str(EPOCHS), "--batch-size", "8", "--augment", "flip", "zoom", "--patience", "5")
    return _command("train", "--corpus", str(corpus), "--store", str(store), "--run", str(run), *options)


def _weights(store: Path) -> bytes:
    from seedlings_spark import networks

    content = (store / "seedlings" / "v0001" / "network.keras").read_bytes()
    return b"".join(weight.tobytes() for weight in networks.from_bytes(content).get_weights())


@pytest.mark.timeout(900)
def test_a_killed_training_job_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    images, corpus = tmp_path / "images", tmp_path / "corpus"
    synthetic.write_corpus(images, images_per_species=10, size=40)
    prepare = ("prepare", "--images", str(images), "--corpus", str(corpus), "--image-size", "32")
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    steps = (
        _command(*prepare, "--split-policy", "stratified"),
        _train(corpus, calm, tmp_path / "run of calm"),
    )
    for step in steps:
        subprocess.run(step, env=_environment(), check=True, timeout=300, stdout=subprocess.DEVNULL)

    run = tmp_path / "run of killed"
    job = subprocess.Popen(
        _train(corpus, killed, run), env=_environment(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(30)
    assert not (killed / "seedlings" / "v0001").exists()

    subprocess.run(
        _train(corpus, killed, run), env=_environment(), check=True, timeout=300, stdout=subprocess.DEVNULL
    )
    assert _weights(killed) == _weights(calm)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    expected = [
        json.loads(line) for line in (tmp_path / "run of calm" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [{**line, "time": None} for line in lines] == [{**line, "time": None} for line in expected]

    # Finished: started once more, it does nothing; with other options it is refused.
    again = subprocess.run(
        _train(corpus, killed, run), env=_environment(), check=True, timeout=120, capture_output=True
    )
    assert b"nothing to do" in again.stdout and not (killed / "seedlings" / "v0002").exists()
    other = subprocess.run(
        [*_train(corpus, killed, run), "--seed", "1"], env=_environment(), timeout=120, capture_output=True
    )
    assert other.returncode == 2 and b"other options has been recorded (seed)" in other.stderr
