"""Jobs as a user runs them, mistakes first.

Each runs once by `./spark-submit.sh JOB ...` in a process of its own, which starts Spark and TensorFlow; what else a
job is asked here, it is asked in this process.
"""

import contextlib
import io
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pyspark
import pytest
from pyspark.sql import SparkSession

from seedlings_spark import cli, images
from seedlings_spark.corpus import synthetic
from seedlings_spark.lock import Lock
from seedlings_spark.reports import drift
from seedlings_spark.workflow import reproduction, runs
from tests import docs, hostile
from tests.conftest import HANG_SECONDS, with_all

SCRIPT = Path(__file__).parents[2] / "spark-submit.sh"
SPARK = Path(pyspark.__file__).parent
IMAGES_PER_SPECIES = 6  # stratified: 4 to train on, 1 to validate, 1 to test
NUM_IMAGES = 12 * IMAGES_PER_SPECIES
THREE_PARTS = re.compile(r"\w+Error: .+\. Expected .+\. .+[.?]")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} .*")

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="elsewhere both streams are one")


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}}


# A Keras network as JSON; it knows its input's size in the first layer only.
TINY = {
    "module": "keras",
    "class_name": "Sequential",
    "config": {
        "name": "tiny",
        "layers": [
            layer("InputLayer", "pixels", batch_shape=[None, 32, 32, 3], dtype="float32"),
            layer("Conv2D", "leaves", filters=8, kernel_size=[3, 3], strides=[2, 2], activation="relu"),
            layer("GlobalAveragePooling2D", "mean"),
            layer("Dense", "species", units=12, activation="softmax"),
        ],
    },
}


# As cron has it: no PATH, no HOME, no locale. `SPARK_SUBMIT_OPTS` makes the tests fast.
NO_ENVIRONMENT = {"SEEDLINGS_PYTHON": sys.executable, "SPARK_SUBMIT_OPTS": os.environ["SPARK_SUBMIT_OPTS"]}
# Where nobody gives it a locale, the JVM reads `??cker`, and so on.
IMAGES, CORPUS, STORE, RUN = "Äcker", "Körper", "Läden ✓", "nächtliche Läufe"
REPORT, SCORES = "été", "ō"


def submit(directory: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env={**NO_ENVIRONMENT, **variables},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


def refused(directory: Path, code: int, *arguments: str) -> str:
    """The one line on stderr that a mistake is answered with, before Spark starts."""
    ran = submit(directory, *arguments)
    return _one_line(ran.returncode, ran.stdout, ran.stderr, code)


def done(directory: Path, *arguments: str, code: int = 0) -> str:
    """What a run prints; all else that it says are lines of the log."""
    ran = submit(directory, *arguments)
    return _printed(ran.returncode, ran.stdout, ran.stderr, code, arguments)


def _one_line(ended: int, out: str, err: str, code: int) -> str:
    lines = [line for line in err.splitlines() if not LOG_LINE.fullmatch(line)]
    assert ended == code, err
    assert out == ""
    assert len(lines) == 1 and THREE_PARTS.fullmatch(lines[0]), err
    return lines[0]


def _printed(ended: int, out: str, err: str, code: int, arguments: tuple[str, ...]) -> str:
    assert ended == code, err
    said = err.splitlines()
    assert [line for line in said if not LOG_LINE.fullmatch(line)] == []
    assert f" {next(a for a in arguments if a in JOBS)} on local[" in said[0]
    return out


@dataclass
class Here:
    """Runs jobs as the processes of `jobs/` do, in this one: in the folder of the jobs, on the session of the tests.

    Args:
        monkeypatch: That of the test.
        folder: The jobs' working directory.
    """

    monkeypatch: pytest.MonkeyPatch
    folder: Path

    def refused(self, code: int, *arguments: str) -> str:
        """As `refused`, by the driver."""
        return _one_line(*self._run(*arguments), code)

    def done(self, *arguments: str, code: int = 0) -> str:
        """As `done`."""
        return _printed(*self._run(*arguments), code, arguments)

    def _run(self, job: str, *arguments: str) -> tuple[int, str, str]:
        file = SCRIPT.parent / "jobs" / f"{job}.py"
        logger, interrupt = logging.getLogger("seedlings_spark"), signal.getsignal(signal.SIGINT)
        before = logger.handlers[:], logger.level, logger.propagate
        out, err = io.StringIO(), io.StringIO()
        try:
            with self.monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
                patch.chdir(self.folder)
                patch.setattr(sys, "argv", [str(file), *arguments])
                patch.setattr(cli, "_stop", lambda spark: None)
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    runpy.run_path(str(file), run_name="__main__")
        finally:
            signal.signal(signal.SIGINT, interrupt)
            logger.handlers[:], logger.level, logger.propagate = before
        return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture
def here(spark: SparkSession, place: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch, place)


# The README's calls of the five jobs.
README_JOBS = docs.jobs(docs.README, "The five jobs")


def of_readme(job: str) -> list[str]:
    """The README's call of a job, with the names that folders have here, and fewer epochs."""
    names = {"photos": IMAGES, "corpus": CORPUS, "store": STORE, "report": REPORT, "scores": SCORES}
    return [{**names, "100": "2"}.get(word, word) for word in README_JOBS[job]]


JOBS = (
    "quickstart",
    "prepare",
    "corpus",
    "train",
    "evaluate",
    "score",
    "feedback",
    "watch",
    "explore",
    "models",
    "clean",
    "status",
    "reproduce",
    "doctor",
)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn images of 12 species, an empty file and a text among them; later what jobs make."""
    folder = tmp_path_factory.mktemp("jobs") / "l'été 1"
    synthetic.write_corpus(folder / IMAGES, images_per_species=IMAGES_PER_SPECIES, size=40)
    species = folder / IMAGES / synthetic.SPECIES[0]
    (species / "empty.png").write_bytes(b"")
    (species / "notes.png").write_text("no picture")
    synthetic.write_corpus(folder / "10cker", images_per_species=1, size=40)  # as `??cker` would be found
    (folder / "tiny.json").write_text(json.dumps(TINY))
    (folder / "options.toml").write_text(
        '[train]\nepochs = 9\nbatch_size = 8\naugment = ["none"]\nprecision = "float32"\nnetwork = "tiny.json"\n'
    )
    return folder


@pytest.fixture(scope="module")
def corpus(place: Path) -> Path:
    """A corpus of which more was rejected than allowed: it is whole all the same."""
    small = ("--image-size", "32", "--split-policy", "stratified", "--max-reject-fraction", "0.02")
    ran = submit(place, *of_readme("prepare"), *small)
    assert ran.returncode == 3, ran.stderr
    assert "2 of 74 files were rejected, more than --max-reject-fraction 0.02" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert re.search(r"^listed +74$", ran.stdout, re.MULTILINE)
    return place / CORPUS


@pytest.fixture(scope="module")
def version(place: Path, corpus: Path) -> Path:
    """A model version, trained in the background with options from a file and from the command line."""
    options = ("--run", RUN, "--config", "options.toml", "--seed", "5", "--log", "json")
    ran = submit(place, "--master", "local[2]", "--detach", *of_readme("train"), *options)
    assert (ran.returncode, ran.stdout) == (0, f"{RUN}\n"), ran.stderr
    found = re.search(r"process (\d+), log", ran.stderr)
    assert found is not None
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while _is_running(int(found[1])):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        if _is_running(int(found[1])):
            os.kill(int(found[1]), signal.SIGTERM)
    said = (place / RUN / "train.log").read_text()
    assert re.search(r"^version +seedlings v0001 \(now current\)$", said, re.MULTILINE), said
    return place / STORE / "seedlings" / "v0001"


def _is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; one that nobody has waited for stays in the table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- mistakes


def test_a_folder_that_is_not_there_is_named_with_its_full_uri(tmp_path: Path) -> None:
    said = refused(tmp_path, 1, "prepare", "--images", "no such folder", "--corpus", "c")
    assert f"file://{tmp_path}/no such folder" in said
    assert not (tmp_path / "c").exists()


def test_a_folder_without_files_is_named(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images" / "Maize").mkdir(parents=True)
    said = Here(monkeypatch, tmp_path).refused(1, "prepare", "--images", "images", "--corpus", "c")
    assert f"file://{tmp_path}/images" in said
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_a_spark_without_a_locale_reads_no_other_folder(tmp_path: Path) -> None:
    """Called without the script, which gives it one."""
    (tmp_path / "feld-10").mkdir()
    job = SCRIPT.parent / "jobs" / "score.py"
    command = [str(SPARK / "bin" / "spark-submit"), "--master", "local[1]", str(job), "--images", "feld-ö"]
    ran = subprocess.run(
        [*command, "--store", "s", "--output", "o"],
        env={"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(SCRIPT.parent), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ran.returncode == 1, ran.stdout
    (said,) = re.findall(r"^ClusterError: .*", ran.stdout, re.MULTILINE)
    assert THREE_PARTS.fullmatch(said) and "'feld-??'" in said and "LC_ALL=C.UTF-8" in said


def test_each_line_of_a_json_log_is_json_whatever_the_images_are_and_also_after_ctrl_c(
    tmp_path: Path,
) -> None:
    hostile.write(tmp_path / "images")
    command = ("prepare", "--images", "images", "--corpus", "c", "--log", "json")
    # Without job control a shell lets what it starts in the background ignore it, and so would all that this starts.
    running = subprocess.Popen(
        [str(SCRIPT), *command],
        env=NO_ENVIRONMENT,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stdout is not None and running.stderr is not None
    try:
        lines = []
        for line in running.stderr:
            lines.append(json.loads(line))
            if lines[-1]["msg"].startswith("read and decoded"):  # all that the decoders have to say is said
                os.killpg(running.pid, signal.SIGINT)  # as a terminal does
                break
        lines += [json.loads(line) for line in running.stderr]
        assert running.wait(timeout=HANG_SECONDS) == 130 and running.stdout.read() == ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert [line["msg"].split()[0] for line in lines] == ["seedlings_spark", "listed", "read", "interrupted"]
    assert len({line["run"] for line in lines}) == 1 and lines[-1]["exit_code"] == 130


def test_wrong_arguments_end_with_2_before_anything_starts(tmp_path: Path) -> None:
    assert "--epohcs" in refused(tmp_path, 2, "train", "--epohcs", "3")
    assert "--schedule linear" in refused(
        tmp_path, 2, "train", "--corpus", "c", "--store", "s", "--schedule", "linear"
    )


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path, 1, "train", "--corpus", "no corpus", "--store", "s")
    assert f"file://{tmp_path}/no corpus" in said and "Run prepare" in said
    assert not (tmp_path / "s").exists()


def test_a_store_without_a_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    said = refused(tmp_path, 1, "score", "--images", ".", "--store", "store", "--output", "o")
    assert "seedlings" in said and f"file://{tmp_path}/store" in said
    assert not (tmp_path / "o").exists()


def test_fewer_cores_than_workers_and_images_than_shards_are_told_at_once_and_leave_nothing(
    place: Path, corpus: Path, here: Here
) -> None:
    folders = ("--corpus", CORPUS, "--store", "other store", "--run", "other run")
    said = here.refused(1, "train", *folders, "--num-workers", "3")
    assert "2 free slots (local[2], spark.task.cpus=1) for 3 workers" in said
    said = here.refused(1, "train", *folders, "--num-workers", "auto", "--shards", "49")
    assert f"48 images to train on in file://{corpus} for 49 shards" in said
    assert not (place / "other run").exists() and not (place / "other store").exists()


# --- the whole path


def test_what_prepare_leaves_adds_up(place: Path, corpus: Path) -> None:
    manifest = read_json(corpus / "manifest.json")
    assert (manifest["listed"], manifest["accepted"], manifest["rejected"]) == (74, NUM_IMAGES, 2)
    assert manifest["rejected_by_reason"] == {"empty": 1, "not_an_image": 1}
    assert manifest["image_size"] == [32, 32]
    assert manifest["images_of_split"] == {"train": 48, "validation": 12, "test": 12}
    assert sorted(manifest["images_of_species"]) == sorted(synthetic.SPECIES)
    assert sorted(path.name for path in corpus.iterdir()) == ["images", "manifest.json", "rejects"]
    assert {path.name for path in (corpus / "images").iterdir() if path.is_dir()} == {
        "split=train",
        "split=validation",
        "split=test",
    }
    rejects = pq.read_table(corpus / "rejects").to_pylist()
    assert sorted(Path(reject["path"]).name for reject in rejects) == ["empty.png", "notes.png"]
    assert all(reject["path"].startswith(f"file://{place}/{IMAGES}/") for reject in rejects)


def test_what_train_leaves_says_where_it_comes_from(place: Path, corpus: Path, version: Path) -> None:
    manifest = read_json(version / "manifest.json")
    names = {path.name for path in version.iterdir()}
    assert (manifest["onnx"]["compared_on"], manifest["onnx"]["compared_rows"]) == ("given", 12)
    assert {"model", "network.keras", "network.onnx", "profile.json", "manifest.json", "report"} <= names
    profile = drift.Profile.from_json(read_json(version / "profile.json"))
    assert sum(profile.species.values()) == 12  # the validation split
    assert {name: sum(counts) for name, counts in profile.histograms.items()} == {
        "confidence": 12,
        **dict.fromkeys(drift.STATISTICS, 60),
    }
    assert (version.parent / "current").read_text() == "v0001\n"
    assert manifest["classes"] == sorted(synthetic.SPECIES)
    assert manifest["image_size"] == [32, 32]
    assert manifest["seed"] == 5
    assert manifest["corpus"]["fingerprint"] == read_json(place / CORPUS / "manifest.json")["fingerprint"]
    options = manifest["options"]
    assert (options["epochs"], options["batch_size"], options["augment"]) == (2, 8, ["none"])
    assert options["store"] == f"file://{place}/{STORE}"
    assert {"tensorflow", "keras", "pyspark", "elephas"} <= set(manifest["versions"])
    epochs = [json.loads(line) for line in (place / RUN / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    kept = min(epochs, key=lambda epoch: epoch["val_loss"])
    assert manifest["kept"] == {"keep": "best", "epoch": kept["epoch"]}
    assert {name: kept[name] for name in manifest["metrics"]} == manifest["metrics"]
    rows = pq.read_table(corpus / "images" / "split=validation").to_pylist()
    pixels = np.stack([np.frombuffer(row["image"], np.uint8).reshape(32, 32, 3) for row in rows])
    labels = np.array([manifest["classes"].index(row["species"]) for row in rows])
    network = keras.saving.load_model(version / "network.keras", compile=False)
    network.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = network.evaluate(pixels.astype("float32"), labels, verbose=0)
    assert loss == pytest.approx(kept["val_loss"], rel=1e-4)
    assert accuracy == pytest.approx(kept["val_accuracy"])
    assert (place / RUN / "run.json").exists()
    assert not list(version.parent.glob(".building-*"))


def test_a_run_in_the_background_says_how_it_went_in_lines_of_json(
    place: Path, corpus: Path, version: Path
) -> None:
    log = (place / RUN / "train.log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert any(line["msg"].startswith("epoch 2/2") for line in lines), log
    (application,) = {line["run"] for line in lines}
    record = read_json(place / RUN / "run.json")
    (attempt,) = record["attempts"]
    assert (attempt["application"], attempt["exit_code"]) == (application, 0)
    assert record["corpus"]["fingerprint"] == read_json(corpus / "manifest.json")["fingerprint"]

    said = re.sub(r"\n  (?=\S)", " ", done(place, "status", RUN))  # a long path has a line of its own
    shown = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert (shown["state"], shown["epochs"], shown["version"]) == ("done", "2 of 2", "v0001")
    assert shown["log"] == f"file://{place}/{RUN}/train.log"


def test_evaluate_writes_numbers_and_plots_of_the_test_images(place: Path, version: Path) -> None:
    out = done(place, *of_readme("evaluate"))
    metrics = read_json(place / REPORT / "metrics.json")
    matrix = metrics["confusion_matrix"]
    assert sum(map(sum, matrix)) == 12
    assert metrics["accuracy"] == pytest.approx(sum(matrix[i][i] for i in range(12)) / 12)
    assert {"confusion_matrix.png", "learning_curves.png"} <= {
        path.name for path in (place / REPORT).iterdir()
    }
    assert all(name in out for name in synthetic.SPECIES)


def test_score_gives_every_file_a_prediction_or_a_reason(place: Path, version: Path) -> None:
    ran = submit(place, *of_readme("score"), PYTHONPROFILEIMPORTTIME="1")
    assert ran.returncode == 0, ran.stderr
    imports = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if "import time:" in line}
    assert "onnxruntime" in imports and not imports & {"tensorflow", "keras", "elephas"}  # driver and workers
    manifest = read_json(place / SCORES / "manifest.json")
    assert manifest["engine"]["name"] == "onnxruntime"
    assert (manifest["listed"], manifest["scored"], manifest["rejected"]) == (74, NUM_IMAGES, 2)
    assert (manifest["already_scored"], manifest["already_rejected"]) == (0, 0)
    assert manifest["model_version"] == "v0001"
    (run,) = (place / SCORES / "runs").iterdir()
    assert run.name == manifest["run"] and manifest == {**read_json(run / "manifest.json"), "num_runs": 1}
    assert manifest["drift"]["verdict"] in ("stable", "drifting", "shifted")
    assert sorted(path.name for path in (run / "review").iterdir()) == [
        "index.html",
        "least_confident.csv",
    ]
    predictions = pq.read_table(run / "predictions").to_pylist()
    rejects = pq.read_table(run / "rejects").to_pylist()
    files = {f"file://{path}" for path in (place / IMAGES).rglob("*.png")}
    assert sorted(row["path"] for row in [*predictions, *rejects]) == sorted(files)
    assert list(predictions[0]) == [
        "path",
        "content_hash",
        "predicted_species",
        "confidence",
        "probabilities",
        "model_version",
    ]
    assert list(rejects[0]) == ["path", "content_hash", "reason", "stage", "detail"]
    classes = read_json(version / "manifest.json")["classes"]
    for row in predictions:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == max(row["probabilities"])
        assert row["predicted_species"] == classes[row["probabilities"].index(row["confidence"])]


@with_all
def test_what_comes_after_scoring_has_exit_codes_of_its_own(place: Path, version: Path, here: Here) -> None:
    here.done(*of_readme("evaluate"))
    here.done(
        "score", "--images", IMAGES, "--store", STORE, "--output", "late/scores", "--max-reject-fraction", "1"
    )
    pictures = sorted((place / IMAGES).rglob("*.png"))
    rows = [f"../{picture.relative_to(place)},{picture.parent.name}" for picture in pictures]
    (place / "late" / "labels.csv").write_text("\n".join(["path,species", *rows]) + "\n")
    given = (
        "--scores",
        "late/scores",
        "--labels",
        "late/labels.csv",
        "--report",
        "late/feedback",
        "--store",
        STORE,
    )
    told = here.done("feedback", *given, "--min-accuracy", "1", code=4)
    metrics = read_json(place / "late" / "feedback" / "metrics.json")
    assert metrics["labels"]["unmatched"] == 2 and metrics["overall"]["num_images"] == 72
    evaluated = read_json(place / REPORT / "metrics.json")["accuracy"]
    assert metrics["test_split"]["seedlings v0001"]["accuracy"] == evaluated and f"{evaluated:.4f}" in told
    here.done("feedback", *given, "--min-accuracy", "0.001")
    assert "no run has left the corridor" in here.done(
        "watch", "--scores", "late/scores", "--report", "late/watch"
    )

    assert f"{evaluated:.4f}" in here.done("models", "list", "--store", STORE)
    card = here.done("models", "card", "--store", STORE)
    assert "# seedlings v0001" in card and all(f"| {name} |" in card for name in synthetic.SPECIES)
    assert f"| accuracy | {evaluated:.4f} (95 % interval" in card
    here.done("explore", "--corpus", CORPUS, "--report", "late/explore", "--store", STORE)
    # Of its own corpus a version doubts no label of a picture that it was trained on.
    suspects = read_json(place / "late" / "explore" / "metrics.json")["suspect_labels"]
    assert suspects["splits"] == ["validation", "test"] and suspects["looked_at"] == 24


def test_a_run_is_repeated_bit_for_bit(place: Path, version: Path, here: Here) -> None:
    told = here.done("reproduce", "--run", RUN, "--output", "again")
    assert re.search(r"the same bits: (\d+) of \1 arrays are equal", told), told
    network = "network.keras"
    assert len(list((place / "again" / "store").rglob(network))) == 1
    assert "--corpus" not in here.refused(1, "reproduce", "--run", IMAGES)
    record = runs.record(str(place / RUN))
    assert reproduction.environment(record) == "" and "as then" not in told
    record["attempts"][-1]["versions"] |= {"python": "3.10.1", "keras": "3.0.0"}
    assert reproduction.environment(record) == (
        "a virtual environment of Python 3.10.1, pip install keras==3.0.0 in it, SEEDLINGS_PYTHON=its Python"
    )


def test_the_documented_schedules_score_each_file_once(
    place: Path, version: Path, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line, by cron and by Airflow, one after the other."""
    shutil.copytree(place / IMAGES, tmp_path / "fields" / "2026-11")
    (tmp_path / "store").symlink_to(place / STORE)
    (tmp_path / "spark-submit.sh").symlink_to(SCRIPT)
    shutil.make_archive(str(tmp_path / "seedlings_spark"), "zip", SCRIPT.parent, "seedlings_spark")
    monkeypatch.setenv("SEEDLINGS_PYTHON", sys.executable)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    here = {"/fields": f"{tmp_path}/fields"}

    by_hand = docs.command("docs/scheduling.md", "By hand", here)
    by_cron = docs.command(
        "docs/scheduling.md", "With cron", {**here, "/srv/seedlings": str(tmp_path), r"\%": "%"}, "crontab"
    )
    assert by_cron.startswith("5 * * * * cd ")
    program, *arguments = shlex.split(by_hand)
    assert program == "./spark-submit.sh"
    here = Here(monkeypatch, tmp_path)
    here.done(*arguments)
    ran = subprocess.run(
        ["bash", "-euc", by_cron.removeprefix("5 * * * * ")], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    # Started a second time, a run with a name is not made again, and says the same.
    again = json.loads(here.done(*arguments, "--summary", "json"))
    numbers = tuple(again[name] for name in ("run", "listed", "scored", "rejected"))
    assert numbers == ("2026-11-21T06", NUM_IMAGES + 2, NUM_IMAGES, 2)
    assert again["path"] == f"file://{tmp_path}/scores/runs/2026-11-21T06"
    (line,) = (tmp_path / "scores.jsonl").read_text().splitlines()
    later = json.loads(line)
    assert (later["scored"], later["already_scored"], later["already_rejected"]) == (0, NUM_IMAGES, 2)

    on_hdfs = {f"hdfs:///{name}": f"{tmp_path}/{name}" for name in ("fields", "store", "scores")}
    zipped = {"/srv/seedlings/seedlings_spark.zip": f"{tmp_path}/seedlings_spark.zip"}
    application = {"/srv/seedlings/jobs": f"{SCRIPT.parent}/jobs", "{{ ts_nodash }}": "20261121T060000"}
    operator = docs.command(
        "docs/scheduling.md", "With Airflow", {**on_hdfs, **zipped, **application}, "python"
    )
    given: dict[str, Any] = {}
    exec(operator, {"SparkSubmitOperator": given.update})
    options = ["--py-files", given["py_files"]]
    for setting in given["conf"].items():
        options += ["--conf", "=".join(setting)]
    command_line = [
        str(SPARK / "bin" / "spark-submit"),
        *options,
        given["application"],
        *given["application_args"],
    ]
    ran = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "scores" / "runs" / "20261121T060000").is_dir()
    manifest = json.loads((tmp_path / "scores" / "manifest.json").read_text())
    assert manifest["num_runs"] == 3
    assert (manifest["listed"], manifest["already_scored"]) == (74, NUM_IMAGES)


def test_an_output_in_use_and_images_unlike_the_corpus_have_codes_of_their_own(
    place: Path, version: Path, here: Here
) -> None:
    command = ("score", "--images", "bright", "--store", STORE, "--output", "scores of bright")
    (place / "bright").mkdir()
    for number in range(40):
        pixels = np.full((40, 40, 3), 215 + number, np.uint8)
        (place / "bright" / f"{number}.png").write_bytes(images.encode_png(pixels))
    with Lock(f"file://{place}/scores of bright", "run of somebody"):
        assert "run of somebody" in here.refused(73, *command)
    with Lock(f"file://{place}/busy run", "another driver"):
        train = ("train", "--corpus", CORPUS, "--store", STORE, "--run", "busy run")
        assert "busy run, to which another driver on" in here.refused(73, *train)
    assert not (place / "busy run" / "run.json").exists()
    out = here.done(*command, "--max-drift", "0.25", code=3)
    assert "brightness" in out and "shifted" in out


def test_versions_are_imported_promoted_signed_and_rolled_back(
    place: Path, version: Path, here: Here
) -> None:
    """The network that is imported takes other images than the corpus has, which evaluate refuses."""
    with (
        zipfile.ZipFile(version / "network.keras") as trained,
        zipfile.ZipFile(place / "larger.keras", "w") as larger,
    ):
        for name in trained.namelist():
            content = trained.read(name)
            if name == "config.json":
                content = content.replace(b"32, 32, 3", b"48, 48, 3")
            larger.writestr(name, content)
    store, current = ("--store", STORE), version.parent / "current"
    classes = [f"class {number}" for number in range(12)]
    listed = done(
        place,
        *("models", "import", *store, "--network", "larger.keras", "--classes", *classes),
    )
    assert re.search(r"^\* +v0001 ", listed, re.MULTILINE) and re.search(r"^ +v0002 ", listed, re.MULTILINE)
    imported = read_json(version.parent / "v0002" / "manifest.json")
    assert (imported["classes"], imported["image_size"]) == (classes, [48, 48])

    promoted = here.done("models", "promote", *store, "--model-version", "v0002")
    assert re.search(r"^\* +v0002 ", promoted, re.MULTILINE)
    assert current.read_text() == "v0002\n"
    said = here.refused(1, "evaluate", "--corpus", CORPUS, *store, "--report", "no report")
    assert "32x32" in said and "48x48" in said and not (place / "no report").exists()

    names = {"photos": f"'{IMAGES}'", "store store": f"store '{STORE}'", "output scores": "output signed"}
    keys, *calls = docs.command("docs/jobs.md", "Signed versions", names).splitlines()
    subprocess.run(["bash", "-euc", keys], cwd=place, check=True, capture_output=True)
    for call in calls:
        here.done(*shlex.split(call)[1:])
    assert read_json(place / "signed" / "manifest.json")["model_version"] == "v0002"

    rolled_back = here.done("models", "rollback", *store)
    assert re.search(r"^\* +v0001 ", rolled_back, re.MULTILINE)
    assert current.read_text() == "v0001\n"
    assert here.done(*of_readme("models")) == rolled_back


def test_quickstart_goes_the_whole_way(place: Path) -> None:
    done(place, "--master", "local[2]", "quickstart")
    made = place / "quickstart"
    scored = read_json(made / "scores" / "manifest.json")
    assert scored["listed"] == scored["scored"] == len(list((made / "images").glob("*/*"))) == 480
    assert read_json(made / "report" / "metrics.json")["accuracy"] >= 0.9


@with_all
def test_quickstart_fine_tunes_images_of_ones_own_and_needs_no_locale_either(place: Path) -> None:
    for species in synthetic.SPECIES[1:3]:
        shutil.copytree(place / IMAGES / species, place / "Äckerchen" / species)
    done(place, "--master", "local[2]", "quickstart", "--images", "Äckerchen", "--output", "Schnell ✓")
    version = read_json(next((place / "Schnell ✓" / "store").glob("*/v0001/manifest.json")))
    assert version["options"]["weights"] == "imagenet" and len(version["history"]["val_loss"]) == 8
    scored = read_json(place / "Schnell ✓" / "scores" / "manifest.json")
    assert (scored["listed"], scored["scored"]) == (2 * IMAGES_PER_SPECIES, 2 * IMAGES_PER_SPECIES)
    assert f"file://{place}/Schnell ✓" in done(place, "doctor", "--num-workers", "1", "--output", "Schnell ✓")
