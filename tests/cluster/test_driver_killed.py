"""A training job whose driver is killed, and which is started again with the same command."""

import json
from pathlib import Path

from seedlings_spark.corpus import synthetic
from tests.cluster.standalone import SCRIPT, Session, clean_environment, kill_all

EPOCHS = 6


def _start(folder: Path, name: str, *arguments: str) -> Session:
    command = [str(SCRIPT), "--master", "local[2]", *arguments]
    return Session(command, clean_environment(), folder, folder / f"{name}.log")


def _run(folder: Path, name: str, *arguments: str, code: int = 0) -> str:
    """Run a job to its end; what it has printed."""
    with _start(folder, name, *arguments) as job:
        assert job.wait() == code, job.said()
        return job.said()


def _train(corpus: Path, store: Path, run: Path) -> tuple[str, ...]:
    options = ("--epochs", str(EPOCHS), "--batch-size", "8", "--augment", "flip", "zoom", "--patience", "5")
    return ("train", "--corpus", str(corpus), "--store", str(store), "--run", str(run), *options)


def _weights(store: Path) -> bytes:
    from seedlings_spark.models import networks

    content = (store / "seedlings" / "v0001" / "network.keras").read_bytes()
    return b"".join(weight.tobytes() for weight in networks.from_bytes(content).get_weights())


def test_a_killed_training_job_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    images, corpus = tmp_path / "images", tmp_path / "corpus"
    synthetic.write_corpus(images, images_per_species=10, size=40)
    prepare = ("prepare", "--images", str(images), "--corpus", str(corpus), "--image-size", "32")
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    _run(tmp_path, "prepare", *prepare, "--split-policy", "stratified")
    _run(tmp_path, "calm", *_train(corpus, calm, tmp_path / "run of calm"))

    run = tmp_path / "run of killed"
    metrics = run / "metrics.jsonl"
    with _start(tmp_path, "killed", *_train(corpus, killed, run)) as job:
        job.wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, "two epochs")
        kill_all(job.members)
    assert not (killed / "seedlings" / "v0001").exists()

    _run(tmp_path, "again", *_train(corpus, killed, run))
    assert _weights(killed) == _weights(calm)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    expected = [
        json.loads(line) for line in (tmp_path / "run of calm" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [{**line, "time": None} for line in lines] == [{**line, "time": None} for line in expected]

    # Finished: started once more, it does nothing; with other options it is refused.
    said = _run(tmp_path, "once more", *_train(corpus, killed, run))
    assert "nothing to do" in said and not (killed / "seedlings" / "v0002").exists()
    said = _run(tmp_path, "other options", *_train(corpus, killed, run), "--seed", "1", code=2)
    assert "other options has been recorded (seed)" in said
