"""TrainState on disk: everything of a run that its next epoch depends on.

Orders, batches, dropout and augmentation follow from seed, epoch, step and rank, so there is no generator whose
position had to be kept. A checkpoint is one file, NumPy's zip of arrays with a SHA-256 of all of it behind, written
beside and renamed; the newest one that can be read counts, and one older is kept in case that it cannot.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import files, fingerprint
from seedlings_spark.errors import OptionError
from seedlings_spark.training.weights import Vector

_log = logging.getLogger(__name__)
# 1 had no hash behind it; it is still read.
FORMAT = 2
_KEPT = 2
_HASH_MARK = b"sha256"
# Characters of an option that a checkpoint keeps as it is, and that a message shows.
_MOST_SHOWN, _MOST_WORDS = 1000, 40
# What Keras' own callbacks count and compare from epoch to epoch. They have no interface for it. All else that they
# hold is what the user set, which may have changed since, or follows from it.
_STATE_OF_KERAS: dict[str, tuple[str, ...]] = {
    "EarlyStopping": ("wait", "best", "best_epoch", "best_weights"),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "ModelCheckpoint": ("best", "epochs_since_last_save"),
    "LearningRateScheduler": (),
    "TerminateOnNaN": (),
    "CSVLogger": (),
    "TensorBoard": (),
    "LambdaCallback": (),
    "History": (),
}
_NAME = re.compile(r"epoch-(\d{6})\.npz")


@dataclass(frozen=True)
class TrainState:
    """A run between two epochs.

    Args:
        epoch: Epochs that are done.
        identity: Identity of network and options: another run's checkpoint is never taken.
        iterations: Steps that the master's optimizer counts.
        learning_rate: In force, or None where a schedule gives it.
        stopped: Whether a callback has ended the run.
        history: As Keras' `History` has it.
        callbacks: For each callback the plain values that it holds, such as how long it has waited.
        next_updates: For each rank the next update, in asynchronous modes; else empty.
        state: Weights and optimizer slots.
        arrays: Further arrays by name: what callbacks hold, such as the best weights.
        data: What is known when the workers are there, by name: the fingerprint of their rows, and their precision.
            Earlier releases wrote none.
        parts: What the identity is of, by name: short texts as they are, of long ones the hash. Earlier releases wrote
            none.
        versions: Versions of packages that results depend on, by name. The same holds.
    """

    epoch: int
    identity: str
    iterations: int
    learning_rate: float | None
    stopped: bool
    history: Mapping[str, Sequence[float]]
    callbacks: Sequence[Mapping[str, Any]]
    next_updates: Sequence[int]
    state: Vector
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint must agree in with the run that takes it up; the number of epochs may grow.

    Args:
        parts: Texts by name. Their order counts.
        weights: That the run starts from, where they do not follow from its seed.
    """

    parts: Mapping[str, str]

    weights: Vector | None = None

    def text(self) -> str:
        """What a checkpoint must hold to be taken up."""
        content = "\n".join(map(_without_counts, self.parts.values()))
        found = fingerprint.content_hash(content.encode())
        return found if self.weights is None else found + fingerprint.content_hash(self.weights.tobytes())

    def shown(self) -> dict[str, str]:
        """The parts as a checkpoint keeps them beside, to name the one that differs."""
        texts = {name: _without_counts(text) for name, text in self.parts.items()}
        found = {
            name: text if len(text) <= _MOST_SHOWN else fingerprint.content_hash(text.encode())
            for name, text in texts.items()
        }
        if self.weights is not None:
            found["initial weights"] = fingerprint.content_hash(self.weights.tobytes())
        return found


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: On any file system.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, and remove those that are no longer needed."""
        plain = {name: value for name, value in asdict(state).items() if name not in ("state", "arrays")}
        text = json.dumps({"format": FORMAT, **plain})
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"array {name}": value for name, value in state.arrays.items()}
        np.savez(buffer, meta=np.frombuffer(text.encode(), np.uint8), state=state.state, **arrays)
        with buffer.getbuffer() as content:
            digest = hashlib.sha256(content).digest()
        buffer.write(_HASH_MARK + digest)
        files.write_bytes(self._path(state.epoch), buffer.getvalue())
        for epoch in self._epochs()[:-_KEPT]:
            files.delete(self._path(epoch))

    def latest(self, identity: str, parts: Mapping[str, str] | None = None) -> TrainState | None:
        """The newest checkpoint that can be read, or None.

        Args:
            identity: Identity of the run.
            parts: Parts of the identity, as `RunIdentity.shown` gives them, to name what differs.

        Raises:
            OptionError: It is that of a run with other options.
        """
        for epoch in reversed(self._epochs()):
            try:
                state = _read(files.read_bytes(self._path(epoch)))
            except Exception as error:  # a damaged zip lets NumPy and Python raise nearly anything
                _log.warning(
                    "%s cannot be read (%s: %s); taking the one before",
                    self._path(epoch),
                    type(error).__name__,
                    error,
                )
                continue
            if state.identity != identity:
                raise OptionError(
                    f"checkpoints in {self.directory} of a run with {_differing(state.parts, parts or {})}",
                    "those of the same run",
                    "Give a folder of its own, or the options that the run was started with",
                )
            return state
        return None

    def superfluous(self, *, has_published: bool) -> list[str]:
        """The files that no attempt at the run would read, while none is under way.

        Args:
            has_published: Whether the run has ended with a version. Else the last but one stays too, which counts
                should the last be damaged.
        """
        epochs = self._epochs()[: -1 if has_published else -_KEPT]
        return [self._path(epoch) for epoch in epochs] + files.left_behind(self.directory)

    def _path(self, epoch: int) -> str:
        return files.join(self.directory, f"epoch-{epoch:06d}.npz")

    def _epochs(self) -> list[int]:
        names = files.list_names(self.directory) if files.exists(self.directory) else []
        return sorted(int(match.group(1)) for name in names if (match := _NAME.fullmatch(name)))


def _without_counts(text: str) -> str:
    """Without the numbers that Keras gives to things without a name: they count what was made before."""
    return re.sub(r'_\d+(?=")', "", text)


def _differing(kept: Mapping[str, str], asked: Mapping[str, str]) -> str:
    """In which options two runs differ."""
    kept = {
        "shards" if name == "num_workers" else name: text for name, text in kept.items()
    }  # as it was called
    names = [name for name in {**asked, **kept} if kept.get(name) != asked.get(name)]
    if not kept or not names:  # of an earlier release
        return "other options, network or features"
    said = []
    for name in names:
        before, now = kept.get(name, ""), asked.get(name, "")
        is_short = max(len(before), len(now)) <= _MOST_WORDS
        said.append(f"{name} {before or 'none'} instead of {now or 'none'}" if is_short else name)
    return f"other options: {', '.join(said)}"


def declared_state(callback: Any) -> tuple[str, ...] | None:
    """The attributes of a callback that are part of a run; None where that is not known.

    One's own callback says so by a class attribute `checkpointed`, a tuple of the names of attributes that hold a plain
    value (number, text, bool, None) or a list of arrays; `()` if there are none.
    """
    names: list[str] = []
    is_known = False
    for kind in type(callback).__mro__:
        declared = vars(kind).get("checkpointed")
        if declared is None and kind.__module__.split(".")[0] == "keras":
            declared = _STATE_OF_KERAS.get(kind.__name__)
        if declared is not None:
            is_known = True
            names.extend(name for name in declared if name not in names)
    return tuple(names) if is_known else None


def callback_state(callbacks: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """What callbacks declare to be part of the run: plain values, and lists of arrays (such as the best weights)."""
    values: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for place, callback in enumerate(callbacks):
        found: dict[str, Any] = {"class": type(callback).__name__}
        for name in declared_state(callback) or ():
            value = getattr(callback, name, None)
            if isinstance(value, np.number):
                found[name] = value.item()
            elif _is_plain(value):
                found[name] = value
            elif isinstance(value, list) and value and all(isinstance(one, np.ndarray) for one in value):
                found[f"{name} in arrays"] = len(value)
                arrays.update({f"{place} {name} {number}": one for number, one in enumerate(value)})
        values.append(found)
    return values, arrays


def restore_callbacks(callbacks: Sequence[Any], state: TrainState) -> None:
    """Give callbacks back what they declare to be part of the run; to be called after `on_train_begin`.

    Whatever else stands in the checkpoint is not looked at: what the user sets now counts, and a file that somebody
    else has written changes no other attribute.
    """
    names = [type(callback).__name__ for callback in callbacks]
    kept = [values.get("class") for values in state.callbacks]
    if names != kept:
        _log.warning(
            "callbacks %s instead of %s: they begin anew", ", ".join(names), ", ".join(map(str, kept))
        )
        return
    for place, (callback, values) in enumerate(zip(callbacks, state.callbacks, strict=True)):
        declared = declared_state(callback)
        if declared is None:
            _log.warning(
                "the callback %s begins anew: it does not say what of it is part of the run, by a class attribute"
                " checkpointed = ('name', ...)",
                type(callback).__name__,
            )
        for name in declared or ():
            if f"{name} in arrays" in values:
                count = int(values[f"{name} in arrays"])
                setattr(callback, name, [state.arrays[f"{place} {name} {number}"] for number in range(count)])
            elif name in values and _is_plain(values[name]):
                setattr(callback, name, values[name])


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _read(content: bytes) -> TrainState:
    """A checkpoint of this format or of an earlier one.

    Raises:
        Exception: One of any kind: it is damaged, or of a later format.
    """
    body, mark, digest = content[:-38], content[-38:-32], content[-32:]
    is_whole = mark == _HASH_MARK and hashlib.sha256(body).digest() == digest
    if mark == _HASH_MARK and not is_whole:
        raise ValueError("its content is not that of its hash")
    with np.load(io.BytesIO(body if is_whole else content), allow_pickle=False) as stored:
        meta = json.loads(stored["meta"].tobytes())
        found = meta.pop("format")
        if found not in (1, FORMAT):
            raise ValueError("a format that this version does not know")
        if found == FORMAT and not is_whole:
            raise ValueError("it has no hash")
        arrays = {
            name.removeprefix("array "): stored[name] for name in stored.files if name.startswith("array ")
        }
        return TrainState(**meta, state=stored["state"], arrays=arrays)
