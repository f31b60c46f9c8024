"""One writer for one folder: who gets a lock, who loses it, and when a dead one's is taken over."""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seedlings_spark import files, lock
from seedlings_spark.errors import OutputInUseError
from tests.conftest import HANG_SECONDS


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


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes become a second."""
    _be_hasty(monkeypatch)


def _be_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_EXPIRE_SECONDS", 1.0)
    monkeypatch.setattr(lock, "_STATUS_SECONDS", 1.0)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.02)


# Of processes that cannot be looked up here: another machine's, an earlier start's, another container's, or unknown.
ELSEWHERE: list[dict[str, Any]] = [
    {"host": "elsewhere", "boot": "1", "namespaces": lock._namespaces()},
    {"boot": "an earlier one"},
    {"namespaces": "pid:[1] time:[1]"},
    {"namespaces": ""},
    {"namespaces": None, "boot": ""},
]
# What may stand in the file of a lock that nobody holds.
DAMAGED = ["", "{", "[]", '{"process": -1}', "\udcff"]


@pytest.fixture(scope="module")
def waited_for(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Future[None]]]:
    """The checks that wait, all of them side by side: name of the test -> their outcomes."""
    folder = tmp_path_factory.mktemp("waited for")
    checks: dict[str, list[Callable[[], None]]] = {
        "watched": [
            partial(
                _check_that_it_is_watched, folder / f"watched {number}", other, (-86_400, 86_400)[number % 2]
            )
            for number, other in enumerate(ELSEWHERE)
        ],
        "damaged": [
            partial(_check_that_it_is_taken, folder / f"damaged {number}", text)
            for number, text in enumerate(DAMAGED)
        ],
        "container": [
            partial(_check_that_it_is_kept_by_a_process_in_another_container, folder / "container")
        ],
        "of three": [partial(_check_that_one_gets_it, folder / f"of three {number}") for number in range(3)],
    }
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(sum(map(len, checks.values()))) as pool:
        _be_hasty(patch)
        return {name: [pool.submit(each) for each in those] for name, those in checks.items()}


def _none_has_failed(outcomes: Iterable[Future[None]]) -> None:
    for each in outcomes:
        each.result()


def test_a_lock_that_cannot_be_looked_up_is_watched_whatever_the_clocks_say(
    waited_for: dict[str, list[Future[None]]],
) -> None:
    _none_has_failed(waited_for["watched"])


def test_a_damaged_lock_does_not_stay_for_ever(waited_for: dict[str, list[Future[None]]]) -> None:
    _none_has_failed(waited_for["damaged"])


def test_of_three_that_find_a_dead_lock_one_gets_it(waited_for: dict[str, list[Future[None]]]) -> None:
    _none_has_failed(waited_for["of three"])


def test_a_process_in_another_container_of_this_machine_keeps_its_lock_while_it_lives(
    waited_for: dict[str, list[Future[None]]],
) -> None:
    _none_has_failed(waited_for["container"])


def _check_that_it_is_watched(tmp_path: Path, other: dict[str, Any], offset: float) -> None:
    tmp_path.mkdir()
    held = {
        **_locked(tmp_path)._content,
        "id": "1",
        "owner": "run x",
        "process": 999_999_999,
        "started": "1",
        **other,
    }
    path, stop = tmp_path / lock.NAME, threading.Event()

    def live() -> None:
        number = 0
        while not stop.wait(0.05):
            number += 1
            files.write_text(
                str(path), json.dumps({**held, "signs": number, "renewed": time.time() + offset})
            )

    files.write_text(str(path), json.dumps({**held, "renewed": time.time() + offset}))
    owner = threading.Thread(target=live)
    owner.start()
    try:
        assert lock.is_held(str(tmp_path))
        with pytest.raises(OutputInUseError, match="run x"), _locked(tmp_path):
            pass
    finally:
        stop.set()
        owner.join()
    assert not lock.is_held(str(tmp_path))
    with _locked(tmp_path) as taken:
        taken.check()


@pytest.mark.usefixtures("hasty")
def test_a_living_process_of_this_machine_is_known_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_changes", None)  # nothing is watched
    with _locked(tmp_path), pytest.raises(OutputInUseError), _locked(tmp_path):
        pass
    assert not lock.is_held(str(tmp_path))


@pytest.mark.usefixtures("hasty")
def test_a_process_that_proc_does_not_show_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _locked(tmp_path) as held:
        monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
        assert lock._process(os.getpid()) is None
        assert lock._process(999_999_999) == ""
        held.check()


@pytest.mark.usefixtures("hasty")
def test_a_lock_that_is_renewed_while_it_is_taken_over_goes_back(tmp_path: Path) -> None:
    files.write_text(str(tmp_path / lock.NAME), json.dumps({"id": "1", "signs": 2}))
    late = lock._Held(json.dumps({"id": "1", "signs": 1}), {"id": "1", "signs": 1})
    _locked(tmp_path)._remove(late)
    assert json.loads((tmp_path / lock.NAME).read_text()) == {"id": "1", "signs": 2}


def _check_that_it_is_taken(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / lock.NAME).write_bytes(os.fsencode(text))
    with _locked(folder) as taken:
        taken.check()


_HOLD = (
    "import sys, time; from seedlings_spark import lock; lock._RENEW_SECONDS = 0.1;"
    "lock.Lock(sys.argv[1], 'the other container').__enter__(); print('held', flush=True); time.sleep(600)"
)


def _check_that_it_is_kept_by_a_process_in_another_container(tmp_path: Path) -> None:
    tmp_path.mkdir()
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("no process namespace can be made here")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [*unshare, sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            held = json.loads((tmp_path / lock.NAME).read_text())
            assert (held["host"], held["boot"]) == (platform.node(), lock._boot())
            with pytest.raises(OutputInUseError, match="the other container"), _locked(tmp_path):
                pass
        finally:
            process.kill()
    with _locked(tmp_path) as taken:
        taken.check()


def test_a_lock_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RENEW_SECONDS", 0.05)
    with _locked(tmp_path) as held:
        before = (tmp_path / lock.NAME).read_text()
        deadline = time.monotonic() + HANG_SECONDS
        while (tmp_path / lock.NAME).read_text() == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held.check()


def _check_that_one_gets_it(folder: Path) -> None:
    folder.mkdir()
    (folder / lock.NAME).write_text(json.dumps({"id": "dead", "renewed": 0}))
    _let_three_ask(folder)


def _let_three_ask(folder: Path) -> None:
    got: list[bool] = []
    others, together = threading.Semaphore(0), threading.Barrier(3)

    def take() -> None:
        together.wait()
        try:
            with _locked(folder):
                got.append(True)
                # It is held until they have asked.
                assert all(others.acquire(timeout=HANG_SECONDS) for _ in range(2))
        except OutputInUseError:
            got.append(False)
            others.release()

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False, False, True]


@pytest.mark.usefixtures("hasty")
def test_who_takes_a_dead_lock_away_slowly_never_moves_the_one_that_has_come_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = json.dumps({"id": "dead", "renewed": 0})
    (tmp_path / lock.NAME).write_text(dead)
    moved: list[str] = []
    first, rename = threading.Lock(), files.rename

    def rename_slowly(path: str, target: str) -> None:
        if first.acquire(blocking=False):
            time.sleep(1)  # others, who found the lock dead at the same time, go on
        if path.endswith(lock.NAME):
            moved.append((tmp_path / lock.NAME).read_text())
        rename(path, target)

    monkeypatch.setattr(files, "rename", rename_slowly)
    _let_three_ask(tmp_path)
    assert moved == [dead]


def test_a_lock_of_an_earlier_attempt_at_a_yarn_application_is_taken_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_by(container: str) -> None:
        monkeypatch.setenv("CONTAINER_ID", container)
        held = lock.Lock(files.qualify(str(tmp_path)), "somebody")._content
        elsewhere = {**held, "host": "elsewhere", "boot": "another", "renewed": time.time()}
        (tmp_path / lock.NAME).write_text(json.dumps(elsewhere))

    def watched(*_: object) -> bool:
        raise TimeoutError

    monkeypatch.setattr(lock, "_changes", watched)
    own = "container_e17_1750000000000_0042_02_000001"
    for other in (own, own.replace("0042_02", "0042_03"), own.replace("_0042", "_0041"), ""):
        written_by(other)
        monkeypatch.setenv("CONTAINER_ID", own)
        with pytest.raises(TimeoutError), _locked(tmp_path):
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
