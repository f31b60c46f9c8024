"""The folder of a training run: what it says of runs that go on, end, fail and vanish."""

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seedlings_spark import files
from seedlings_spark.errors import InputError, OptionError, OutputInUseError
from seedlings_spark.lock import Lock
from seedlings_spark.workflow import clean, runs

ABOUT = {"seed": 7, "options": {"epochs": 4}, "corpus": {"fingerprint": "f"}}


@pytest.fixture
def run(tmp_path: Path) -> str:
    return files.qualify(str(tmp_path / "a run"))


def record(run: str) -> Any:
    return json.loads(files.read_text(files.join(run, "run.json")))


def shown(run: str, now: datetime.datetime | None = None) -> dict[str, object]:
    return dict(runs.status(run, now))


def test_a_run_goes_on_with_its_own_options_only(run: str) -> None:
    assert runs.begin(run, ABOUT, "app-1") is None
    assert runs.begin(run, ABOUT, "app-2") is None
    before = record(run)
    assert before["seed"] == 7
    assert [each["application"] for each in before["attempts"]] == ["app-1", "app-2"]
    assert before["attempts"][0]["versions"]["python"]
    with pytest.raises(OptionError, match=r"other options has been recorded \(epochs\)") as caught:
        runs.begin(run, {**ABOUT, "options": {"epochs": 5}})
    with pytest.raises(OptionError, match=r"\(corpus\)"):
        runs.begin(run, {**ABOUT, "corpus": {"fingerprint": "another"}})
    assert caught.value.remedy == "Give another --run"
    assert record(run) == before
    runs.end(run, "v0003")
    assert runs.begin(run, ABOUT) == "v0003"
    assert record(run)["attempts"][-1]["exit_code"] == 0


def test_a_run_goes_on_with_other_workers_and_the_same_shards(run: str) -> None:
    def begin(**options: Any) -> None:
        runs.begin(run, {**ABOUT, "options": {"mode": "synchronous", **options}})

    begin(num_workers=4)  # as recorded before there were shards
    begin(num_workers=4, shards=0)
    begin(num_workers=2, shards=4)
    begin(num_workers=2, shards=4, server_port="4100-4110", exchange="workers")  # on another cluster
    with pytest.raises(OptionError, match=r"has been recorded \(shards\)"):
        begin(num_workers=2, shards=0)
    with pytest.raises(OptionError, match=r"has been recorded \(mode, num_workers\)"):
        begin(num_workers=2, shards=4, mode="asynchronous")


def test_it_is_told_what_a_run_is_doing(run: str) -> None:
    with Lock(run, "a driver"):
        runs.begin(run, ABOUT, "app-1")
        assert shown(run)["state"] == "running"
        assert shown(run)["epochs"] == "0 of 4"
        started = datetime.datetime.fromisoformat(record(run)["started"])
        lines = [
            {"epoch": 1, "time": (started + datetime.timedelta(seconds=60)).isoformat(), "loss": 2.0},
            {"epoch": 2, "time": (started + datetime.timedelta(seconds=90)).isoformat(), "loss": 1.5},
        ]
        files.write_text(files.join(run, runs.METRICS), "".join(json.dumps(line) + "\n" for line in lines))
        rows = shown(run, started + datetime.timedelta(seconds=100))
        assert rows["epochs"] == "2 of 4"
        assert rows["last epoch"] == "loss 1.5000"
        assert rows["time left"] == "about 0:00:50"  # two epochs of 30 s, less the 10 s since the last one


def test_it_is_told_which_fold_a_run_is_at_and_what_each_before_it_is_worth(run: str) -> None:
    def wrote(place: str, epochs: int) -> None:
        times = [started + datetime.timedelta(seconds=30 * number) for number in range(1, epochs + 1)]
        lines = [
            json.dumps({"epoch": number, "time": time.isoformat()}) for number, time in enumerate(times, 1)
        ]
        files.write_text(files.join(place, runs.METRICS), "\n".join(lines) + "\n")

    with Lock(run, "a driver"):
        runs.begin(run, {"options": {"epochs": 4, "folds": 3}})
        assert shown(run)["at fold"] == "1 of 3" and shown(run)["epochs"] == "0 of 4"
        started = datetime.datetime.fromisoformat(record(run)["started"])
        wrote(files.join(run, "folds/0"), 4)
        files.write_text(files.join(run, "folds/0", runs.CONFUSION), "[[30, 10, 0], [5, 40, 0], [0, 5, 10]]")
        wrote(files.join(run, "folds/1"), 2)
        rows = shown(run, started + datetime.timedelta(seconds=70))
        assert rows["fold 1"] == "accuracy 0.8000 of 100 images" and "fold 2" not in rows
        assert rows["at fold"] == "2 of 3" and rows["epochs"] == "2 of 4"
        # Two epochs of this fold, and four each of the third and of the network of all images: 30 s each, less 10 s.
        assert rows["time left"] == "about 0:04:50"
    for fold in ("1", "2"):
        files.write_text(files.join(run, "folds", fold, runs.CONFUSION), "[[1, 0], [0, 1]]")
    wrote(run, 3)
    runs.end(run, "v0001")
    rows = shown(run)
    assert rows["fold 3"] == "accuracy 1.0000 of 2 images" and "at fold" not in rows
    assert rows["epochs"] == "3 of 4" and rows["state"] == "done"


def test_a_failure_is_told_with_its_exit_code(run: str) -> None:
    runs.begin(run, ABOUT)
    runs.fail(run, 1, "TrainingError: the loss is not finite")
    assert shown(run)["state"] == "failed with exit code 1: TrainingError: the loss is not finite"
    runs.begin(run, ABOUT)
    assert shown(run)["attempts"] == 2
    runs.end(run, "v0001")
    assert shown(run)["state"] == "done" and shown(run)["version"] == "v0001"


def test_the_failure_of_an_attempt_that_another_has_followed_is_not_told(run: str) -> None:
    runs.begin(run, ABOUT)
    content = record(run)
    content["attempts"][-1]["host"] = "elsewhere"
    files.write_text(files.join(run, "run.json"), json.dumps(content))
    runs.fail(run, 73, "OutputInUseError: taken over")
    assert record(run) == content


def test_a_process_that_was_killed_is_missed(run: str) -> None:
    killed = (
        "import os, signal, sys; from seedlings_spark import lock; from seedlings_spark.workflow import runs;"
        "run = sys.argv[1];"
        "lock.Lock(run, 'a driver').__enter__(); runs.begin(run, {}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", killed, run], env=environment)
    assert process.wait() == -signal.SIGKILL
    assert str(shown(run)["state"]).startswith(f"gone: process {process.pid} on ")
    with Lock(run, "the next driver"):
        runs.begin(run, {})
        assert shown(run)["state"] == "running"
    first, second = record(run)["attempts"]
    assert first["exit_code"] is None and second["pid"] == os.getpid()


def test_the_log_of_a_run_in_the_background_is_named(run: str) -> None:
    runs.begin(run, ABOUT)
    assert "log" not in shown(run)
    files.write_text(files.join(run, runs.LOG), "")
    assert shown(run)["log"] == files.join(run, "train.log")


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_what_is_no_run_is_refused(run: str, content: str | None) -> None:
    if content is not None:
        files.write_text(files.join(run, "run.json"), content)
    with pytest.raises(InputError, match=r"run\.json"):
        runs.status(run)


def test_nothing_is_written_where_no_run_has_begun(run: str) -> None:
    runs.fail(run, 1, "too early")
    assert not files.exists(run)


def test_of_a_runs_checkpoints_the_last_stays_and_before_its_end_the_one_before(run: str) -> None:
    runs.begin(run, ABOUT, "app-1")
    for epoch in range(1, 5):
        files.write_text(files.join(run, "checkpoints", f"epoch-{epoch:06d}.npz"), "x" * epoch)
    files.write_text(files.join(run, "checkpoints", ".tmp-of-the-dead"), "half")
    now = datetime.timedelta(0)
    found = clean.clean_run(run, now, dry=True)
    assert [(files.name(each.path), each.num_bytes) for each in found] == [
        ("epoch-000001.npz", 1),
        ("epoch-000002.npz", 2),
        (".tmp-of-the-dead", 4),
    ]
    with Lock(run, "an attempt"):
        assert clean.clean_run(run, now, dry=True) == []
    assert clean.clean_run(run, datetime.timedelta(days=1), dry=False) == []
    assert clean.clean_run(run, now, dry=False) == found
    runs.end(run, "v0001")
    clean.clean_run(run, now, dry=False)
    assert files.list_names(files.join(run, "checkpoints")) == ["epoch-000004.npz"]
    with Lock(run, "another"), pytest.raises(OutputInUseError):
        clean.clean_run(run, now, dry=False)
    with pytest.raises(InputError):
        clean.clean_run(f"{run} that is none", now, dry=False)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OutputInUseError("this", "that", "Wait"), 73, "OutputInUseError: this. Expected that. Wait."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_how_work_ends_is_written_down(run: str, error: BaseException, code: int, text: str) -> None:
    runs.begin(run, ABOUT)
    with pytest.raises(type(error)), runs.recorded(run):
        raise error
    last = record(run)["attempts"][-1]
    assert (last["exit_code"], last["error"]) == (code, text)


def test_work_that_ends_well_is_not_written_down_and_a_failed_record_hides_nothing(run: str) -> None:
    runs.begin(run, ABOUT)
    with runs.recorded(run):
        pass
    assert "exit_code" not in record(run)["attempts"][-1]
    files.write_text(files.join(run, "run.json"), "broken")
    with pytest.raises(OutputInUseError), runs.recorded(run):
        raise OutputInUseError("this", "that", "Wait")
