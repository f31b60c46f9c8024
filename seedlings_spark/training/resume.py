"""A run's checkpoints: one is taken up at its beginning, and each epoch that ends leaves one.

A checkpoint is written by another thread, while the next epoch is trained: what goes into it is copied before, so that
the bits are those of the epoch's end. The next one waits for it: there are never two on their way.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import keras
import numpy as np

from seedlings_spark import reproducibility
from seedlings_spark.errors import OptionError, in_brief
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training.checkpoint import (
    Checkpoints,
    RunIdentity,
    TrainState,
    callback_state,
    restore_callbacks,
)
from seedlings_spark.training.master import Master
from seedlings_spark.training.weights import Vector

_log = logging.getLogger(__name__)
# Whose version can change a trained weight.
_PACKAGES = ("keras", "tensorflow", "numpy")
# Among a checkpoint's arrays.
_COUNTERS = "optimizer counters"


class RunCheckpoints:
    """The checkpoints of a run that is under way; a context manager.

    Args:
        directory: On any file system; "" for none.
        identity: Identity of the run.
        master: Whose state is kept.
        network: That callbacks see.
        callbacks: A `keras.callbacks.CallbackList`.

    Raises:
        OptionError: The folder holds those of a run with other options.
    """

    def __init__(
        self, directory: str, identity: RunIdentity, master: Master, network: Any, callbacks: Any
    ) -> None:
        self._directory, self._identity = directory, (identity.text(), identity.shown())
        self._checkpoints = Checkpoints(directory) if directory else None
        self._master, self._network, self._optimizer = master, network, network.optimizer
        self._callbacks = callbacks
        self._data: Mapping[str, str] = {}
        self._writer = ThreadPoolExecutor(1, "seedlings-checkpoint")
        self._writing: Future[None] | None = None
        self._taken = self._checkpoints.latest(*self._identity) if self._checkpoints else None

    def take_up(self, *, with_slots: bool) -> None:
        """Go on where the latest checkpoint stands, if there is one; after `on_train_begin`, where callbacks forget.

        Args:
            with_slots: Whether the state that is saved holds optimizer slots.
        """
        state, master = self._taken, self._master
        if state is None:
            return
        (master.set_state if with_slots else master.set_weights)(state.state)
        master.show(self._network, state.state[: master.model_layout.size])
        if _COUNTERS in state.arrays:
            master.held.set_counters(state.arrays[_COUNTERS].tolist())
        else:
            master.held.set_steps(state.iterations)
        if state.learning_rate is not None:
            self._optimizer.learning_rate = state.learning_rate
        restore_callbacks(self._callbacks.callbacks, state)
        for callback in self._callbacks.callbacks:
            if isinstance(callback, keras.callbacks.History):
                callback.history = {name: list(values) for name, values in state.history.items()}
        here = _versions()
        others = [
            f"{name} {state.versions[name]} instead of {here.get(name)}"
            for name in state.versions
            if state.versions[name] != here.get(name)
        ]
        if others:
            _log.warning(
                "the checkpoint in %s was written with %s: what follows is no bit-for-bit repetition",
                self._directory,
                ", ".join(others),
            )
        _log.info("going on after epoch %d, from %s", state.epoch, self._directory)

    def check(self, rows: str, precision: str) -> None:
        """Refuse to go on from a checkpoint with other rows, or in another precision.

        Args:
            rows: Fingerprint of the rows of all workers, with labels, weights and what is held out.
            precision: That the workers train in.

        Raises:
            OptionError: The run that left the checkpoint had others.
        """
        found = {"rows": rows, "precision": precision}
        differing = [
            name
            for name, value in found.items()
            if self._taken is not None and self._taken.data.get(name, value) != value
        ]
        if differing:
            raise OptionError(
                f"checkpoints in {self._directory} of a run with other {' and '.join(differing)}",
                "the features, labels, weights and held-out rows that the run was started with",
                "Give a folder of its own for another training, or the same table",
            )
        self._data = found

    @property
    def next_updates(self) -> Sequence[int]:
        """Of each rank the next update, in asynchronous modes; empty at the beginning of a run."""
        return () if self._taken is None else self._taken.next_updates

    def first_epoch(self, num_epochs: int) -> int:
        """The first epoch to train; `num_epochs` when nothing is left to do."""
        if self._taken is None:
            return 0
        return num_epochs if self._taken.stopped else self._taken.epoch

    def save(self, epoch: int, state: Callable[[], Vector], next_updates: Sequence[int] = ()) -> None:
        """Begin to write a checkpoint of an epoch that has ended, while the next one is trained.

        Args:
            epoch: From 0.
            state: Gives a copy of the master's state.
            next_updates: Of each rank the next update, in asynchronous modes.

        Raises:
            Exception: The one before could not be written.
        """
        if self._checkpoints is None:
            return
        self.finish()
        values, arrays = callback_state(self._callbacks.callbacks)
        has_schedule = optimizers.has_schedule(self._optimizer)
        # What a callback holds it may change in its place.
        arrays = {name: np.array(value) for name, value in arrays.items()}
        arrays[_COUNTERS] = np.asarray(self._master.held.counters())
        self._writing = self._writer.submit(
            self._checkpoints.save,
            TrainState(
                epoch=epoch + 1,
                identity=self._identity[0],
                data=self._data,
                parts=self._identity[1],
                versions=_versions(),
                iterations=int(np.asarray(self._optimizer.iterations)),
                learning_rate=None if has_schedule else float(np.asarray(self._optimizer.learning_rate)),
                stopped=bool(self._network.stop_training),
                history=history(self._callbacks),
                callbacks=values,
                next_updates=list(next_updates),
                state=state(),
                arrays=arrays,
            ),
        )

    def finish(self) -> None:
        """Wait until the last checkpoint is there.

        Raises:
            Exception: It could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What a run leaves that has failed is the checkpoint of its last whole epoch, as of one that has ended."""
        try:
            self.finish()
        except Exception as failure:
            if error is None:
                raise
            _log.warning("the last checkpoint could not be written (%s)", in_brief(failure))
        finally:
            self._writer.shutdown()


def _versions() -> dict[str, str]:
    return {
        name: version for name, version in reproducibility.package_versions().items() if name in _PACKAGES
    }


def history(callbacks: Any) -> dict[str, list[Any]]:
    """For each metric its values, one an epoch; of one that gives several numbers lists of them."""
    for callback in callbacks.callbacks:
        if isinstance(callback, keras.callbacks.History):
            return {
                name: [np.asarray(value, np.float64).tolist() for value in values]
                for name, values in callback.history.items()
            }
    return {}
