"""One writer for one folder: who gets a lock, who loses it, and when a dead one's is taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from seedlings_spark import files, lock
from seedlings_spark.errors import OutputInUseError


def _locked(folder: Path) -> lock.Lock:
    return lock.Lock(files.qualify(str(folder)), "somebody")


def test_a_lock_left_by_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal; from seedlings_spark.lock import Lock;"
        "Lock(sys.argv[1], 'the dead').__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert process.returncode == -9 and (tmp_path / lock.NAME).exists()
    with _locked(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_expires_some_minutes_after_its_last_sign_of_life(tmp_path: Path) -> None:
    held = {"id": "1", "owner": "run x", "host": "elsewhere", "boot": "1", "process": 1, "started": "1"}
    (tmp_path / lock.NAME).write_text(json.dumps({**held, "renewed": time.time() - 100}))
    with pytest.raises(OutputInUseError, match="run x on elsewhere"), _locked(tmp_path):
        pass
    (tmp_path / lock.NAME).write_text(json.dumps({**held, "renewed": time.time() - 300}))
    with _locked(tmp_path):
        pass


def test_a_lock_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEW_SECONDS", 0.05)
    with _locked(tmp_path) as held:
        before = json.loads((tmp_path / lock.NAME).read_text())["renewed"]
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / lock.NAME).read_text())["renewed"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held.check()


def test_of_two_that_find_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    for _ in range(5):
        (tmp_path / lock.NAME).write_text(json.dumps({"id": "dead", "renewed": 0}))
        got: list[bool] = []
        together = threading.Barrier(3)

        def take(got: list[bool] = got, together: threading.Barrier = together) -> None:
            together.wait()
            try:
                with _locked(tmp_path):
                    time.sleep(0.1)
                    got.append(True)
            except OutputInUseError:
                got.append(False)

        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False, False, True]


def test_a_lock_of_an_earlier_attempt_at_a_yarn_application_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_by(container: str) -> None:
        monkeypatch.setenv("CONTAINER_ID", container)
        held = lock.Lock(files.qualify(str(tmp_path)), "somebody")._content
        elsewhere = {**held, "host": "elsewhere", "renewed": time.time()}
        (tmp_path / lock.NAME).write_text(json.dumps(elsewhere))

    own = "container_e17_1750000000000_0042_02_000001"
    for other in (own, own.replace("0042_02", "0042_03"), own.replace("_0042", "_0041"), ""):
        written_by(other)
        monkeypatch.setenv("CONTAINER_ID", own)
        with pytest.raises(OutputInUseError), _locked(tmp_path):
            pass
    written_by(own.replace("0042_02", "0042_01"))
    monkeypatch.setenv("CONTAINER_ID", own)
    with _locked(tmp_path) as held:
        held.check()


def test_an_owner_whose_lock_was_taken_over_is_told(tmp_path: Path) -> None:
    with _locked(tmp_path) as held:
        (tmp_path / lock.NAME).write_text(json.dumps({"id": "another", "owner": "run y"}))
        with pytest.raises(OutputInUseError, match="run y"):
            held.check()
    assert (tmp_path / lock.NAME).exists()  # not its own to give back
