"""File systems that are asked for something, and may fall silent."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

from seedlings_spark.errors import ClusterError

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
SCHEME_AND_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?=/)(?://[^/]*)?")
# How long a file system may take to say whether it is there. Hadoop's own clients try for up to an hour.
ANSWER_SECONDS = 60.0
# File systems that are asked at once.
_AT_ONCE = 64


def by_system(folders: Iterable[str]) -> dict[str, list[str]]:
    """File system -> those of these folders that are on it."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        found.setdefault(system_of(folder), []).append(folder)
    return found


def system_of(path: str) -> str:
    """The file system of a full URI: its scheme and authority."""
    root = SCHEME_AND_AUTHORITY.match(path + "/")
    return root.group() if root else path


def answers_of(
    questions: Mapping[str, Callable[[Callable[[], None]], _T]],
) -> tuple[dict[str, _T], dict[str, str]]:
    """`asked`, with the causes in words, which are told."""
    answers, errors = asked(questions)
    words = {system: in_words(error) for system, error in errors.items()}
    for system, error in words.items():
        _log.warning("%s cannot be used: %s", system, error)
    return answers, words


def asked(
    questions: Mapping[str, Callable[[Callable[[], None]], _T]], silence_seconds: float | None = None
) -> tuple[dict[str, _T], dict[str, OSError | ValueError]]:
    """What file systems answer, each in a thread of its own; one that falls silent does not hold up the others.

    Hadoop's own clients try for up to an hour, and some for ever. The thread of a question that is not answered is
    left to them.

    Args:
        questions: File system -> what to ask it. It is given a function to call whenever an answer has come.
        silence_seconds: Without an answer after which the file system is given up; by default `ANSWER_SECONDS`.

    Returns:
        The answers, and of the other file systems the causes: `TimeoutError` of one that was given up.
    """
    limit = ANSWER_SECONDS if silence_seconds is None else silence_seconds
    answers: dict[str, _T] = {}
    errors: dict[str, OSError | ValueError] = {}
    heard: dict[str, float] = {}

    def ask(system: str, answer: "Future[_T]") -> None:
        def answered() -> None:
            heard[system] = time.monotonic()

        try:
            answer.set_result(questions[system](answered))
        except BaseException as cause:
            answer.set_exception(cause)

    names = list(questions)
    for start in range(0, len(names), _AT_ONCE):
        waiting = {system: Future[_T]() for system in names[start : start + _AT_ONCE]}
        for system, answer in waiting.items():
            heard[system] = time.monotonic()
            threading.Thread(target=ask, args=(system, answer), daemon=True).start()
        while waiting:
            wait(waiting.values(), min(1.0, limit), FIRST_COMPLETED)
            for system, answer in list(waiting.items()):
                if answer.done():
                    try:
                        answers[system] = answer.result()
                    except (OSError, ValueError) as cause:
                        errors[system] = cause
                    except ClusterError as cause:  # one path of a table is not to end the job
                        errors[system] = OSError(str(cause))
                elif time.monotonic() - heard[system] > limit:
                    errors[system] = TimeoutError(f"{system} does not answer within {limit:.0f} s")
                else:
                    continue
                del waiting[system]
    return answers, errors


def in_words(cause: BaseException) -> str:
    """What an exception says, which is never nothing."""
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
