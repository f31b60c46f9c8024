"""One writer for one folder: a lock file that expires when its owner is dead.

It works on any file system that refuses to create a file that exists. The owner renews it; an owner that has lost it is
told so when it asks, which it does right before it publishes. On an object store, where nothing is renamed at once, two
that take over a dead lock in the same instant may both go on until they ask.

A dead owner's lock is taken over: at once if its process was one that can be looked up from here, or an earlier attempt
at the same YARN application, which YARN repeats only when the one before is over. Of all others it is watched whether
they still renew it, for some minutes of one's own clock: clocks of two machines are never compared, and neither are the
numbers of processes in two containers, whatever these call themselves.
"""

import contextlib
import json
import logging
import os
import platform
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from seedlings_spark import display, files
from seedlings_spark.errors import OutputInUseError
from seedlings_spark.progress import Repeated

_log = logging.getLogger(__name__)
NAME = ".lock"
# Held by whoever takes a dead owner's lock away, for an instant.
_TAKING_OVER = ".lock-taking-over"
_RENEW_SECONDS = 10.0
# An owner that is watched for so long without a sign of life is taken for dead.
_EXPIRE_SECONDS = 180.0
# The same for whoever only wants to know; the owner of a lock that an older release wrote renews it every 20 s.
_STATUS_SECONDS = 45.0
_LOOK_SECONDS = 1.0
# YARN's name of the container that a process runs in.
_CONTAINER, _CONTAINER_ID = "CONTAINER_ID", re.compile(r"container_(?:e\d+_)?(\d+_\d+)_(\d+)_\d+")


class Lock:
    """A lock on a folder; a context manager.

    Args:
        folder: Any path; made if it is not there.
        owner: Who holds it, for the message that another one gets.
        name: Of its file.

    Raises:
        OutputInUseError: Upon entry: another one holds it.
    """

    def __init__(self, folder: str, owner: str, name: str = NAME) -> None:
        self._folder, self._name, self._path = folder, name, files.join(folder, name)
        self._content = {
            "id": uuid.uuid4().hex,
            "owner": owner,
            "host": platform.node(),
            "boot": _boot(),
            "namespaces": _namespaces(),
            "process": os.getpid(),
            "started": _process(os.getpid()),
            **_attempt(),
        }
        self._signs = 0
        self._renewals = Repeated(self._renew, _RENEW_SECONDS, "seedlings-lock")

    def __enter__(self) -> "Lock":
        files.make_directory(self._folder)
        while not self._take():
            held = _read(self._path)
            if held is None:
                continue  # given back in this instant
            lives, why = _verdict(held.content, self._content)
            if lives is None:
                _log.info(
                    "watching for up to %.0f s whether %s on %s, who has the lock of %s, still gives signs of life",
                    _EXPIRE_SECONDS,
                    display.shown(str(held.content.get("owner", "an unknown run"))),
                    display.shown(str(held.content.get("host", "an unknown machine"))),
                    self._folder,
                )
                lives = _changes(self._path, held, _EXPIRE_SECONDS)
                why = f"which has not been renewed for {_EXPIRE_SECONDS:.0f} s"
            if lives:
                now = _read(self._path)
                if now is None or now.content.get("id") != held.content.get("id"):
                    continue  # another one's by now
                raise self._in_use(now.content)
            _log.warning(
                "taking over the lock of %s, %s",
                display.shown(str(held.content.get("owner", "an unknown run"))),
                why,
            )
            self._remove(held)
        self._renewals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._renewals.__exit__(kind, error, trace)
        held = _read(self._path)
        if held is not None and held.content.get("id") == self._content["id"]:
            files.delete(self._path)

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises:
            OutputInUseError: Another run has taken it, since this one gave no sign of life.
        """
        held = _read(self._path)
        if held is None or held.content.get("id") != self._content["id"]:
            raise self._in_use(held.content if held else {})

    def _take(self) -> bool:
        try:
            files.create(self._path, self._text())
        except FileExistsError:
            return False
        return True

    def _remove(self, dead: "_Held") -> None:
        """Take an expired lock away, but not one that has come in its place or was renewed meanwhile.

        One at a time: of two, the slower one would find the lock that the other has taken by then, and while it puts
        that back a third could take it, too.
        """
        if self._name == _TAKING_OVER:
            self._put_away(dead)
            return
        try:
            with Lock(self._folder, self._content["owner"], _TAKING_OVER):
                self._put_away(dead)
        except OutputInUseError:
            time.sleep(_LOOK_SECONDS)  # another one does

    def _put_away(self, dead: "_Held") -> None:
        now = _read(self._path)
        if now is None or now.text != dead.text:
            return
        aside = files.join(self._folder, f"{NAME}-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # somebody else was faster
            files.rename(self._path, aside)
            moved = _read(aside)
            if moved is not None and moved.text != dead.text:
                with contextlib.suppress(FileExistsError):
                    files.rename(aside, self._path)
            files.delete(aside)

    def _renew(self) -> bool:
        try:
            self.check()
            files.write_bytes(self._path, self._text())
        except OutputInUseError:
            return False  # `check` tells the owner when it matters
        except OSError as error:
            _log.warning("the lock on %s could not be renewed (%s)", self._folder, error)
        return True

    def _text(self) -> bytes:
        # Whoever watches compares nothing but whether this changes; the time is for a person.
        self._signs += 1
        return (json.dumps({**self._content, "signs": self._signs, "renewed": time.time()}) + "\n").encode()

    def _in_use(self, held: Mapping[str, Any]) -> OutputInUseError:
        return OutputInUseError(
            f"{self._folder}, to which {held.get('owner', 'another run')} on {held.get('host', 'another machine')}"
            " is writing",
            "one run at a time",
            "Wait until it has ended; the lock of a run that died is taken over, from another machine after"
            f" {_EXPIRE_SECONDS / 60:.0f} minutes without a sign of life",
        )


def is_held(folder: str) -> bool:
    """Whether somebody who gives signs of life holds the lock of a folder; some seconds where it has to be watched."""
    path = files.join(folder, NAME)
    held = _read(path)
    if held is None:
        return False
    lives, _ = _verdict(held.content, {})
    return _changes(path, held, _STATUS_SECONDS) if lives is None else lives


@dataclass(frozen=True)
class _Held:
    """A lock that somebody has, as it was found."""

    text: str
    content: Mapping[str, Any]


def _read(path: str) -> _Held | None:
    try:
        text = files.read_bytes(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    return _Held(text, found if isinstance(found, dict) else {})


def _changes(path: str, held: _Held, seconds: float) -> bool:
    """Whether a lock changes or goes within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK_SECONDS, seconds))
        now = _read(path)
        if now is None or now.text != held.text:
            return True
    return False


def _verdict(held: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether the owner of a lock lives, None where only watching it tells; and how a dead one is known to be dead."""
    if held.get("application") and held["application"] == own.get("application"):
        attempt = held.get("attempt")
        if isinstance(attempt, int) and attempt < own["attempt"]:
            return False, f"attempt {attempt} at this application, which YARN has given up"
    here = {"boot": _boot(), "namespaces": _namespaces()}
    process = held.get("process")
    if all(value and held.get(name) == value for name, value in here.items()) and isinstance(process, int):
        started = _process(process)
        return None if started is None else started == held.get("started"), "whose process has ended"
    return None, ""


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


def _namespaces() -> str:
    """Tells apart the containers of one machine, in each of which processes are numbered and timed anew; "" if unknown.

    A number of a process means something to those only who share both of its namespaces.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - that /proc is another namespace's
            return ""
        return " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "time"))  # noqa: PTH115
    except OSError:
        return ""


def _process(process: int) -> str | None:
    """When a process started: a number alone may by now be another process'. "" if there is none, None if unknown."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None if _exists(process) else ""
    state, *fields = status.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _exists(process: int) -> bool:
    """Whether there is a process, be it one of another user that /proc does not show."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
