"""One writer for one folder: a lock file that expires when its owner is dead.

It works on any file system where a rename fails if the target exists (HDFS and local ones; not object stores). The
owner renews it; an owner that has lost it is told so when it asks, which it does right before it publishes.

A dead owner's lock is taken over: at once if it was a process of this machine, or an earlier attempt at the same YARN
application, which YARN repeats only when the one before is over; otherwise some minutes after its last sign of life.
"""

import contextlib
import json
import logging
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from seedlings_spark import files
from seedlings_spark.errors import OutputInUseError

_log = logging.getLogger(__name__)
NAME = ".lock"
_RENEW_SECONDS = 20.0
# Without a sign of life for so long the owner is taken for dead; clocks of the machines may differ by less.
_EXPIRE_SECONDS = 180.0
# YARN's name of the container that a process runs in.
_CONTAINER, _CONTAINER_ID = "CONTAINER_ID", re.compile(r"container_(?:e\d+_)?(\d+_\d+)_(\d+)_\d+")


class Lock:
    """A lock on a folder; a context manager.

    Args:
        folder: Any path; made if it is not there.
        owner: Who holds it, for the message that another one gets.

    Raises:
        OutputInUseError: Upon entry: another one holds it.
    """

    def __init__(self, folder: str, owner: str) -> None:
        self._folder, self._path = folder, files.join(folder, NAME)
        self._content = {
            "id": uuid.uuid4().hex,
            "owner": owner,
            "host": platform.node(),
            "boot": _boot(),
            "process": os.getpid(),
            "started": _ticks(os.getpid()),
            **_attempt(),
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="seedlings-lock", daemon=True)

    def __enter__(self) -> "Lock":
        files.make_directory(self._folder)
        while not self._take():
            held = _read(self._path)
            if held is None:
                continue  # given back in this instant
            why = _expired(held, self._content)
            if why is None:
                raise self._in_use(held)
            _log.warning("taking over the lock of %s, %s", held.get("owner", "an unknown run"), why)
            self._remove(held)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        held = _read(self._path)
        if held is not None and held.get("id") == self._content["id"]:
            files.delete(self._path)

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises:
            OutputInUseError: Another run has taken it, since this one gave no sign of life.
        """
        held = _read(self._path)
        if held is None or held.get("id") != self._content["id"]:
            raise self._in_use(held or {})

    def _take(self) -> bool:
        temporary = files.join(self._folder, f"{NAME}-{self._content['id']}")
        self._write(temporary)
        try:
            files.rename(temporary, self._path)
        except FileExistsError:
            files.delete(temporary)
            return False
        return True

    def _remove(self, dead: Mapping[str, Any]) -> None:
        """Take an expired lock away, but not one that has come in its place meanwhile."""
        aside = files.join(self._folder, f"{NAME}-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            files.rename(self._path, aside)
            moved = _read(aside)
            if moved is not None and moved.get("id") != dead.get("id"):
                with contextlib.suppress(FileExistsError):
                    files.rename(aside, self._path)
            files.delete(aside)

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_SECONDS):
            try:
                self.check()
                self._write(self._path)
            except OutputInUseError:
                return  # `check` tells the owner when it matters
            except OSError as error:
                _log.warning("the lock on %s could not be renewed (%s)", self._folder, error)

    def _write(self, path: str) -> None:
        files.write_text(path, json.dumps({**self._content, "renewed": time.time()}) + "\n")

    def _in_use(self, held: Mapping[str, Any]) -> OutputInUseError:
        return OutputInUseError(
            f"{self._folder}, to which {held.get('owner', 'another run')} on {held.get('host', 'another machine')}"
            " is writing",
            "one run at a time",
            "Wait until it has ended; the lock of a run that died expires by itself"
            f" ({_EXPIRE_SECONDS / 60:.0f} minutes after its last sign of life)",
        )


def is_held(folder: str) -> bool:
    """Whether somebody who gives signs of life holds the lock of a folder."""
    held = _read(files.join(folder, NAME))
    return held is not None and _expired(held, {}) is None


def _read(path: str) -> dict[str, Any] | None:
    try:
        found = json.loads(files.read_text(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _expired(held: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Why a lock counts no more; None while it does."""
    if held.get("application") and held["application"] == own.get("application"):
        attempt = held.get("attempt")
        if isinstance(attempt, int) and attempt < own["attempt"]:
            return f"attempt {attempt} at this application, which YARN has given up"
    process = held.get("process")
    is_here = held.get("host") == platform.node() and held.get("boot") == _boot()
    if is_here and isinstance(process, int) and _ticks(process) != held.get("started"):
        return "whose process has ended"
    renewed = held.get("renewed")
    silence = time.time() - (float(renewed) if isinstance(renewed, int | float) else 0.0)
    return f"which was last renewed {silence:.0f} s ago" if silence > _EXPIRE_SECONDS else None


def _attempt() -> dict[str, Any]:
    """The YARN application of this process, and which attempt at it this one is; nothing outside of a container."""
    found = _CONTAINER_ID.fullmatch(os.environ.get(_CONTAINER, ""))
    return {"application": found[1], "attempt": int(found[2])} if found else {}


def _boot() -> str:
    """Tells apart two runs of one machine, between which process numbers begin anew; "" where it is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _ticks(process: int) -> str:
    """When a process started, "" if there is none: a number alone may by now be another process'."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
