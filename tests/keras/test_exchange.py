"""Workers that average among themselves: the bits that the driver would have made, whoever is lost on the way."""

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from seedlings_spark.errors import ClusterError
from seedlings_spark.training import peers, synchronous, wire
from seedlings_spark.training.capacity import ExchangeChoice
from seedlings_spark.training.peers import Owner, Peers
from tests.conftest import with_all
from tests.keras.test_synchronous import _noisy_network
from tests.keras.training import Outcome, Rows, launcher, train

SHARDS = [9, 5, 7, 6, 8, 4, 1, 6]


def _rows() -> list[Rows]:
    rng = np.random.default_rng(1)
    return [
        Rows(
            rng.normal(size=(size, 5)),
            rng.integers(0, 3, size),
            rng.uniform(0.5, 2, size),
            np.arange(size) % 4 == 3,
        )
        for size in SHARDS
    ]


class Halve(keras.callbacks.Callback):
    """Halves the learning rate, and moves the weights, after the first epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.model.optimizer.learning_rate = 0.01
            self.model.set_weights([weight * 0.5 for weight in self.model.get_weights()])


def _run(exchange: str, num_workers: int, optimizer: Any = None, **given: Any) -> Outcome:
    return train(
        _noisy_network(),
        _rows(),
        optimizer=optimizer or keras.optimizers.Adam(0.02),
        epochs=3,
        num_workers=num_workers,
        exchange=exchange,
        metrics=["accuracy"],
        callbacks=[Halve()],
        batch_size=2,
        **given,
    )


def _bits(outcome: Outcome) -> tuple[bytes, Any]:
    return outcome.master.state().tobytes(), outcome.record.history


@pytest.fixture(scope="module")
def by_the_driver() -> Outcome:
    return _run("driver", 2)


@pytest.mark.parametrize(
    "num_workers", [3, 8, *(pytest.param(each, marks=with_all) for each in (1, 2, 4, 5, 6, 7))]
)
def test_averages_among_workers_have_the_bits_of_the_drivers(
    num_workers: int, by_the_driver: Outcome
) -> None:
    assert _bits(_run("workers", num_workers)) == _bits(by_the_driver)


def test_workers_killed_in_the_midst_of_a_mean_change_no_bit(
    by_the_driver: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, calls, hand_in = launcher(_rows()), itertools.count(), Owner.hand_in

    def kill_now_and_then(owner: Owner, *given: Any) -> Any:
        rank = {20: 1, 60: 0}.get(next(calls))  # of nine calls a step
        if rank is not None:
            workers.kill(rank)
        return hand_in(owner, *given)

    monkeypatch.setattr(Owner, "hand_in", kill_now_and_then)
    killed = _run("workers", 3, launch=workers)
    assert killed.record.stage_failures == 2
    assert _bits(killed) == _bits(by_the_driver)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "norm of all, average of weights": lambda: keras.optimizers.AdamW(
        0.02, global_clipnorm=0.1, use_ema=True
    ),
    "norm of each layer": lambda: keras.optimizers.Lamb(0.02),
    "scale of the loss": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.02, momentum=0.9)
    ),
    "schedule": lambda: keras.optimizers.Lion(keras.optimizers.schedules.ExponentialDecay(0.002, 3, 0.7)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_worker_makes_the_steps_that_the_driver_makes(name: str) -> None:
    callbacks: dict[str, Any] = {"epochs": 2}
    found = [
        train(
            _noisy_network(),
            _rows()[:3],
            optimizer=OPTIMIZERS[name](),
            num_workers=2,
            exchange=exchange,
            **callbacks,
        )
        for exchange in ("driver", "workers")
    ]
    assert _bits(found[0]) == _bits(found[1])
    assert np.isfinite(found[0].master.state()).all()


@keras.saving.register_keras_serializable("tests")
class Visits(keras.layers.Layer):
    """Counts its training steps, in many numbers."""

    def build(self, shape: Any) -> None:
        self.counts = self.add_weight(
            shape=(100,), dtype="int32", initializer="zeros", trainable=False, name="counts"
        )

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.counts.assign_add(keras.ops.arange(100, dtype="int32"))
        return inputs


def test_what_layers_count_is_handed_in_once_however_many_steps_a_piece_of_work_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All 40 steps of an epoch at once: each with its counts they are 30 kB.
    monkeypatch.setattr(synchronous._Pace, "__init__", lambda pace: setattr(pace, "steps", 100))
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 16_000)
    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((5,)), Visits(), keras.layers.Dense(3, activation="softmax")])
    given: dict[str, Any] = {"epochs": 2, "batch_size": 1, "exchange": "workers"}
    rows = [Rows(one.features[:1].repeat(40, 0), one.labels[:1].repeat(40)) for one in _rows()[:2]]
    outcome = train(network, rows, optimizer=keras.optimizers.SGD(0.1), **given)
    counted = outcome.master.network.layers[0].counts.numpy().tolist()
    assert counted == [2 * 40 * number for number in range(100)]
    assert outcome.record.stage_failures == 0


def test_where_workers_never_reach_each_other_the_driver_averages_if_it_may(
    by_the_driver: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Peers.__init__

    def behind_a_firewall(one: Peers, *given: Any) -> None:
        make(one, *given)
        one.address = one.address[0], 1

    monkeypatch.setattr(Peers, "__init__", behind_a_firewall)
    monkeypatch.setattr(peers, "_COME_SECONDS", 0.5)
    monkeypatch.setattr(ExchangeChoice, "round", lambda *_: True)
    auto = _run("auto", 3)
    assert auto.record.stage_failures == 1 and _bits(auto) == _bits(by_the_driver)
    workers = launcher(_rows())
    with pytest.raises(ClusterError, match=r"cannot reach each other .* Open --worker-port"):
        _run("workers", 3, launch=workers)
    assert workers._current is not None and workers._current._task.generation == 1
