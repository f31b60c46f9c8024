"""The folder of a training run: what ran, how far it is, how it ended.

RUN/run.json        options, corpus, versions, and the attempts: each with where it ran and its exit code
RUN/metrics.jsonl   one line an epoch
RUN/events/         the same for TensorBoard, with pictures
RUN/augmentation.png    what training may make of images, where that was asked for
RUN/checkpoints/    where the next attempt goes on
RUN/folds/K/        the same of each network of a cross-validation, and in the end its confusion
RUN/train.log       of a run in the background
"""

import contextlib
import datetime
import json
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from seedlings_spark import display, errors, files, lock, reproducibility
from seedlings_spark.errors import InputError, OptionError

METRICS, CHECKPOINTS, LOG, EVENTS = "metrics.jsonl", "checkpoints", "train.log", "events"
AUGMENTATION = "augmentation.png"
FOLDS, CONFUSION = "folds", "confusion.json"
_RECORD = "run.json"
# Options that change no bit of a result.
_OF_CLUSTER = ("server_port", "worker_port", "exchange", "encrypt", "wait_executors", "memory_budget_mb")
RUNNING, DONE, FAILED, GONE = "running", "done", "failed", "gone"


def begin(run: str, about: Mapping[str, Any], application: str = "") -> str | None:
    """Write down what is about to run, or find that it has begun or ended before.

    Args:
        run: The run's folder.
        about: What the run depends on.
        application: Spark's id of the application that runs it.

    Returns:
        The version that the run has published, if it has already ended; a run that was cut short goes on.

    Raises:
        OptionError: The folder is that of a run with other options or another corpus.
    """
    record: dict[str, Any] = {}
    if files.exists(_path(run)):
        record = _read(run)
        changed = _changed(record, about)
        if changed:
            raise OptionError(
                f"--run {run}, where a run with other options has been recorded ({', '.join(changed)})",
                "a new folder, or the options that the run was started with",
                "Give another --run",
            )
        if record.get("version"):
            return str(record["version"])
    attempt = {
        "application": application,
        "host": platform.node(),
        "pid": os.getpid(),
        "started": _now(),
        "versions": reproducibility.package_versions(),
        "cpu": reproducibility.cpu_model(),
        "cpu_features": list(reproducibility.cpu_features()),
    }
    before = [_closed(each) for each in record.get("attempts", ())]
    started = record.get("started", attempt["started"])
    _write(run, {**about, **record, "started": started, "attempts": [*before, attempt]})
    return None


def end(run: str, version: str) -> None:
    """Write down that a run has published a version: started again, it does nothing."""
    record = _ended(_read(run), 0, "")
    _write(run, {**record, "finished": _now(), "version": version})


def fail(run: str, exit_code: int, error: str) -> None:
    """Write down that this process' attempt has ended without a version; another one's is not touched.

    Args:
        run: The run's folder.
        exit_code: Exit code of the job.
        error: In one line.
    """
    if not files.exists(_path(run)):
        return
    record = _read(run)
    last = (record.get("attempts") or [{}])[-1]
    if (last.get("host"), last.get("pid")) == (platform.node(), os.getpid()):
        _write(run, _ended(record, exit_code, error))


def note(run: str, key: str, value: object) -> None:
    """Write something into a run's record, where a later attempt finds it."""
    _write(run, {**_read(run), key: value})


@contextlib.contextmanager
def recorded(run: str) -> Iterator[None]:
    """Let what ends the work inside be written down: the exit code of its job, and the error in one line."""
    try:
        yield
    except BaseException as error:
        code, text = errors.INTERRUPTED, "interrupted"
        if isinstance(error, Exception) and not errors.is_interruption(error):
            known = errors.for_user(error)
            code, text = known.exit_code, display.one_line(known)
        with contextlib.suppress(Exception):  # the first error is the one to tell
            fail(run, code, text)
        raise


def state(record: Mapping[str, Any], *, is_held: bool) -> str:
    """Of a run: `RUNNING`, `DONE`, `FAILED`, or `GONE` where its process has ended without a word.

    Args:
        record: Its `run.json`.
        is_held: Whether somebody holds the lock of its folder.
    """
    if record.get("version"):
        return DONE
    last = (record.get("attempts") or [{}])[-1]
    if "exit_code" in last:
        return FAILED
    return RUNNING if is_held else GONE


def record(run: str) -> dict[str, Any]:
    """What is written down of a run: its options, its corpus, its attempts, and the version that it has published.

    Raises:
        InputError: It is no folder of a run.
    """
    return _read(run)


def has_published(run: str) -> bool:
    """Whether a run has ended with a version.

    Raises:
        InputError: It is no folder of a run.
    """
    return bool(_read(run).get("version"))


def seconds(run: str) -> int:
    """How long a run has been at work: its attempts together, the one that has not ended up to now."""
    attempts = _read(run).get("attempts") or []
    spans = [_time(each.get("ended") or _now()) - _time(each["started"]) for each in attempts[-1:]]
    spans += [_time(each["ended"]) - _time(each["started"]) for each in attempts[:-1] if "ended" in each]
    return round(sum(each.total_seconds() for each in spans))


def status(run: str, now: datetime.datetime | None = None) -> list[tuple[str, object]]:
    """How far a run is, as rows of a table.

    Args:
        run: The run's folder.
        now: By default the present time, UTC.

    Raises:
        InputError: It is no folder of a run.
    """
    record = _read(run)
    attempts = record.get("attempts") or [{}]
    last, found = attempts[-1], state(record, is_held=lock.is_held(run))
    total, num_folds = (record.get("options", {}).get(name) for name in ("epochs", "folds"))
    rows: list[tuple[str, object]] = [("run", display.Whole(run)), ("state", _in_words(found, last))]
    place, to_come = run, 0
    if num_folds:
        scores = _folds(run, num_folds)
        to_come = num_folds - len(scores)
        rows += [(f"fold {number}", score) for number, score in enumerate(scores, 1)]
        if to_come:
            place = files.join(run, FOLDS, str(len(scores)))
            rows.append(("at fold", f"{len(scores) + 1} of {num_folds}"))
    epochs = _epochs(place)
    rows.append(("epochs", f"{len(epochs)} of {total}" if total else len(epochs)))
    if epochs:
        numbers = {name: value for name, value in epochs[-1].items() if isinstance(value, float)}
        rows.append(("last epoch", ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())))
    left = _seconds_left(epochs, last, total, to_come, now or datetime.datetime.now(datetime.UTC))
    if found == RUNNING and left is not None:
        rows.append(("time left", f"about {datetime.timedelta(seconds=round(left))}"))
    rows.append(("started", record.get("started", "unknown")))
    rows.append(("attempts", len(attempts)))
    rows.append(("application", f"{last.get('application') or 'unknown'} on {last.get('host', 'unknown')}"))
    if record.get("version"):
        rows.append(("version", record["version"]))
    if files.exists(files.join(run, LOG)):
        rows.append(("log", display.Whole(files.join(run, LOG))))
    return rows


def _in_words(found: str, last: Mapping[str, Any]) -> str:
    if found == FAILED:
        return f"failed with exit code {last['exit_code']}: {last.get('error', '')}".rstrip(": ")
    if found == GONE:
        who = f"process {last.get('pid')} on {last.get('host')}"
        return f"gone: {who} has ended without a word; the same command goes on"
    return found


def _seconds_left(
    epochs: list[dict[str, Any]], last: Mapping[str, Any], total: Any, to_come: int, now: datetime.datetime
) -> float | None:
    """From the epochs of the last attempt, for these and as many again to come; None before its second one."""
    times = [datetime.datetime.fromisoformat(each["time"]) for each in epochs]
    own = [time for time in times if last.get("started") and time >= _time(last["started"])]
    if not isinstance(total, int) or len(own) < 2:
        return None
    each = (own[-1] - own[0]).total_seconds() / (len(own) - 1)
    return max(0.0, (total * (1 + to_come) - len(epochs)) * each - (now - own[-1]).total_seconds())


def _folds(run: str, num_folds: int) -> list[str]:
    """What the networks of the folds that have ended are worth, in words."""
    found = []
    for fold in range(num_folds):
        path = files.join(run, FOLDS, str(fold), CONFUSION)
        if not files.exists(path):
            break
        matrix = json.loads(files.read_text(path))
        right, number = sum(row[place] for place, row in enumerate(matrix)), sum(map(sum, matrix))
        found.append(f"accuracy {right / number:.4f} of {number:,} images")
    return found


def _epochs(run: str) -> list[dict[str, Any]]:
    path = files.join(run, METRICS)
    if not files.exists(path):
        return []
    return [json.loads(line) for line in files.read_text(path).splitlines()]


def _changed(record: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """In what a recorded run differs from another one."""
    options, other = (_computed(each.get("options") or {}) for each in (record, about))
    changed = {name for name in {**options, **other} if options.get(name) != other.get(name)}
    if record.get("corpus", {}).get("fingerprint") != about.get("corpus", {}).get("fingerprint"):
        changed.add("corpus")
    return sorted(changed)


def _computed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a result depends on: workers that meet may be others, as long as the shards are the same.

    What belongs to a cluster may be that of another one.
    """
    found = {**options, "shards": options.get("shards") or options.get("num_workers")}
    for name in ("drop_slow", "mlflow", "show_augmentation", *_OF_CLUSTER):
        found.pop(name, None)
    if options.get("mode") == "synchronous":
        for name in ("num_workers", "min_workers"):
            found.pop(name, None)
    return found


def _ended(record: dict[str, Any], exit_code: int, error: str) -> dict[str, Any]:
    *before, last = record.get("attempts") or [{}]
    closed = {**last, "ended": _now(), "exit_code": exit_code, **({"error": error} if error else {})}
    return {**record, "attempts": [*before, closed]}


def _closed(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """An attempt that the next one follows: what has no exit code was killed."""
    return {"exit_code": None, **attempt}


def _path(run: str) -> str:
    return files.join(run, _RECORD)


def _read(run: str) -> dict[str, Any]:
    try:
        content = json.loads(files.read_text(_path(run)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{_path(run)}, which cannot be read ({getattr(error, 'strerror', None) or error})",
            "the folder of a run of train, as --run or the end of its log names it",
            "Check the path",
        ) from None
    if not isinstance(content, dict):
        raise InputError(
            f"{_path(run)}, which holds no record", "the folder of a run of train", "Check the path"
        )
    return content


def _write(run: str, record: Mapping[str, Any]) -> None:
    files.write_text(_path(run), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
