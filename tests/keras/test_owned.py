"""The optimizer's step on slices of the weights: the bits of a step on all of them, or not at all."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training.master import Master
from seedlings_spark.training.owned import OwnedStep, Slots
from seedlings_spark.training.peers import slice_of

OWNED: dict[str, Callable[[], Any]] = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda: keras.optimizers.Adam(0.02),
    "AdamW": lambda: keras.optimizers.AdamW(0.02, amsgrad=True, clipvalue=0.5),
    "Lion": lambda: keras.optimizers.Lion(keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.7)),
    "Adamax": lambda: keras.optimizers.Adamax(0.02),
}
WHOLE: dict[str, Callable[[], Any]] = {
    "norm of each weight": lambda: keras.optimizers.Adam(clipnorm=1.0),
    "norm of all": lambda: keras.optimizers.SGD(global_clipnorm=1.0),
    "averages": lambda: keras.optimizers.SGD(use_ema=True),
    "accumulation": lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
    "scale of the loss": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    "reciprocal roots": keras.optimizers.RMSprop,
    "Lamb": keras.optimizers.Lamb,
    "Adafactor": keras.optimizers.Adafactor,
    "Nadam": keras.optimizers.Nadam,
    "Ftrl": keras.optimizers.Ftrl,
    "another's own": lambda: Doubled(),
}


class Doubled(keras.optimizers.SGD):
    """Nobody knows what it does."""


def _master(optimizer: Any, constraint: str | None = None) -> Master:
    """Of 60 thousand weights, whose slices begin at odd places, and some that are not trained."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(151, kernel_constraint=constraint),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(7),
    ]
    network = keras.Sequential([keras.Input((401,)), *layers])
    network.compile(optimizer=optimizer, loss="mean_squared_error")
    return Master(network)


@pytest.mark.parametrize("name", OWNED)
def test_steps_on_slices_have_the_bits_of_a_step_on_all_weights(name: str) -> None:
    master, rng = _master(OWNED[name]()), np.random.default_rng(1)
    assert master.is_elementwise

    def mean() -> Any:
        return rng.standard_normal(master.model_layout.size, np.float32)

    master.apply_gradient(mean())  # from here on no slot is zero
    slots = Slots(master.vectors, master.optimizer)
    parts = [slice_of(rank, 3, master.model_layout.size) for rank in range(3)]
    config = optimizers.to_config(OWNED[name]())
    steps = [OwnedStep(slots, optimizers.from_config(config), part, tf) for part in parts]
    for step in steps:
        step.begin(master.state())
        step.held.set_rates(master.held.rates())
        step.held.set_counters(master.held.counters())
    for _ in range(3):
        found = mean()
        expected = master.apply_gradient(found.copy())
        for step in steps:
            step.make(found[step.part])
        assert found.tobytes() == expected.tobytes()
    handed_in = [step.handed_in(found[step.part]) for step in steps]
    assert [vector.size for vector in handed_in] == [slots.size_of(part) for part in parts]
    assert np.concatenate(list(slots.arrays(handed_in, parts))).tobytes() == master.state().tobytes()
    assert steps[0].held.counters() == master.held.counters()


@pytest.mark.parametrize("name", WHOLE)
def test_an_optimizer_that_looks_at_more_than_one_number_is_not_given_slices(name: str) -> None:
    assert not _master(WHOLE[name]()).is_elementwise


def test_weights_with_a_constraint_are_not_sliced() -> None:
    assert not _master(keras.optimizers.SGD(), "max_norm").is_elementwise
