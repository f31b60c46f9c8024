"""TrainState on disk: everything of a run that its next epoch depends on.

Orders, batches, dropout and augmentation follow from seed, epoch, step and rank, so there is no generator whose
position had to be kept. A checkpoint is one file (NumPy's zip of arrays, which carries checksums), written beside
and renamed; the newest one that can be read counts, and one older is kept in case that it cannot.
"""

import io
import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import files
from seedlings_spark.errors import OptionError
from seedlings_spark.training.weights import Vector

_log = logging.getLogger(__name__)
FORMAT = 1
_KEPT = 2
# Keras' monitoring callbacks turn the sign of min_delta when they first look at a metric, also in a resumed run.
_NOT_STATE = ("min_delta",)
_NAME = re.compile(r"epoch-(\d{6})\.npz")


@dataclass(frozen=True)
class TrainState:
    """A run between two epochs.

    Args:
        epoch: Epochs that are done.
        identity: Of network, options and data: another run's checkpoint is never taken.
        iterations: Steps that the master's optimizer counts.
        learning_rate: In force, or None where a schedule gives it.
        stopped: Whether a callback has ended the run.
        history: Of Keras.
        callbacks: Of each callback the plain values that it holds, such as how long it has waited.
        next_updates: Of each rank the next update, in asynchronous modes; else empty.
        state: Weights and optimizer slots.
        arrays: Further arrays by name: what callbacks hold, such as the best weights.
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
        arrays = {f"array {name}": value for name, value in state.arrays.items()}
        np.savez(buffer, meta=np.frombuffer(text.encode(), np.uint8), state=state.state, **arrays)
        files.write_bytes(self._path(state.epoch), buffer.getvalue())
        for epoch in self._epochs()[:-_KEPT]:
            files.delete(self._path(epoch))

    def latest(self, identity: str) -> TrainState | None:
        """The newest checkpoint that can be read, or None.

        Raises:
            OptionError: It is that of a run with other options.
        """
        for epoch in reversed(self._epochs()):
            try:
                state = _read(files.read_bytes(self._path(epoch)))
            except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
                _log.warning("%s cannot be read (%s); taking the one before", self._path(epoch), error)
                continue
            if state.identity != identity:
                raise OptionError(
                    f"checkpoints in {self.directory} of a run with other options, network or features",
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


def callback_state(callbacks: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """The plain values and the weights that callbacks hold.

    Keras' callbacks have no interface for this; what they count and compare are attributes that are numbers, and
    `best_weights` is a list of arrays. What else one's own callback holds has to be kept by itself.
    """
    values: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for place, callback in enumerate(callbacks):
        found: dict[str, Any] = {"class": type(callback).__name__}
        for name, value in vars(callback).items():
            if name in _NOT_STATE:
                continue
            if isinstance(value, bool | int | float | str | np.number) or value is None:
                found[name] = value.item() if isinstance(value, np.number) else value
            elif isinstance(value, list) and value and all(isinstance(one, np.ndarray) for one in value):
                found[f"{name} in arrays"] = len(value)
                arrays.update({f"{place} {name} {number}": one for number, one in enumerate(value)})
        values.append(found)
    return values, arrays


def restore_callbacks(callbacks: Sequence[Any], state: TrainState) -> None:
    """Give callbacks back what they held; to be called after `on_train_begin`, which resets them."""
    names = [type(callback).__name__ for callback in callbacks]
    kept = [values.get("class") for values in state.callbacks]
    if names != kept:
        _log.warning(
            "callbacks %s instead of %s: they begin anew", ", ".join(names), ", ".join(map(str, kept))
        )
        return
    for place, (callback, values) in enumerate(zip(callbacks, state.callbacks, strict=True)):
        for name, value in values.items():
            if name.endswith(" in arrays"):
                attribute = name.removesuffix(" in arrays")
                setattr(
                    callback, attribute, [state.arrays[f"{place} {attribute} {n}"] for n in range(int(value))]
                )
            elif name != "class":
                setattr(callback, name, value)


def _read(content: bytes) -> TrainState:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        meta = json.loads(stored["meta"].tobytes())
        if meta.pop("format") != FORMAT:
            raise ValueError("a format that this version does not know")
        arrays = {
            name.removeprefix("array "): stored[name] for name in stored.files if name.startswith("array ")
        }
        return TrainState(**meta, state=stored["state"], arrays=arrays)
