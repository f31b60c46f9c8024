"""Keras' optimizers and their common options, held against plain Keras with the same batches."""

import copy
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from seedlings_spark.errors import OptionError
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.workflow import pipeline
from tests.conftest import with_all
from tests.keras.test_synchronous import _global_batches, _network, _plain_keras, _rows
from tests.keras.training import Rows, train

K = keras.optimizers
EPOCHS, BATCH_SIZE = 3, 4


@pytest.fixture(autouse=True)
def _float64() -> Any:
    keras.config.dtype_policy()  # which Keras makes of the global type when it is first asked, and then keeps
    keras.config.set_floatx("float64")  # of the optimizers' learning rates
    yield
    keras.config.set_floatx("float32")


def _sparing() -> Any:
    optimizer = K.AdamW(0.02, weight_decay=0.3)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def _multi() -> Any:
    return K.MultiOptimizer(K.OptimizerMap(K.SGD(0.1), {".*/bias": K.Adam(0.02)}))


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: K.SGD(0.05, momentum=0.9, nesterov=True),
    "RMSprop": lambda: K.RMSprop(0.01, momentum=0.5, centered=True),
    "Adam": lambda: K.Adam(0.02, amsgrad=True),
    "AdamW": lambda: K.AdamW(0.02, weight_decay=0.1),
    "Adadelta": lambda: K.Adadelta(0.5),
    "Adagrad": lambda: K.Adagrad(0.05),
    "Adamax": lambda: K.Adamax(0.02),
    "Adafactor": lambda: K.Adafactor(0.05),
    "Nadam": lambda: K.Nadam(0.02),
    "Ftrl": lambda: K.Ftrl(0.05),
    "Lion": lambda: K.Lion(0.01),
    "Lamb": lambda: K.Lamb(0.02),
    "Muon": lambda: K.Muon(0.02),
    "ScheduleFreeAdamW": lambda: K.ScheduleFreeAdamW(0.02),
    "MultiOptimizer": _multi,
    "use_ema": lambda: K.Adam(0.05, use_ema=True, ema_momentum=0.7),
    "ema_overwrite": lambda: K.SGD(0.1, use_ema=True, ema_momentum=0.6, ema_overwrite_frequency=3),
    "weight_decay": lambda: K.SGD(0.1, weight_decay=0.2),
    "weight_decay but of biases": _sparing,
    "clipnorm": lambda: K.Adam(0.05, clipnorm=0.05),
    "clipvalue": lambda: K.SGD(0.3, clipvalue=0.02),
    "global_clipnorm": lambda: K.SGD(0.3, global_clipnorm=0.1),
    "loss_scale_factor": lambda: K.SGD(0.1, momentum=0.5, loss_scale_factor=1024.0),
    "gradient_accumulation": lambda: K.Adam(0.05, gradient_accumulation_steps=2),
    "accumulation and ema": lambda: K.SGD(0.1, gradient_accumulation_steps=3, use_ema=True),
    "schedule": lambda: K.Adam(K.schedules.PiecewiseConstantDecay([2, 5], [0.05, 0.02, 0.001])),
    "LossScaleOptimizer": lambda: K.LossScaleOptimizer(
        K.Adam(0.05, use_ema=True), initial_scale=64.0, dynamic_growth_steps=2
    ),
    "LossScaleOptimizer, schedule": lambda: K.LossScaleOptimizer(
        K.SGD(K.schedules.ExponentialDecay(0.2, 3, 0.7))
    ),
}


@pytest.mark.parametrize(
    ("sizes", "frequency"),
    [pytest.param((7, 6), "batch", marks=with_all, id="batch"), pytest.param((11,), 2, id="2")],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_ends_where_plain_keras_does(name: str, sizes: Any, frequency: Any) -> None:
    if not hasattr(K, name) and name[0].isupper() and name.isalnum():
        pytest.skip(f"this Keras has no {name}")
    network, rows = _network(), _rows(sizes)
    outcome = train(network, rows, optimizer=OPTIMIZERS[name](), frequency=frequency, epochs=EPOCHS)
    reference = _plain_keras(network, rows, OPTIMIZERS[name](), EPOCHS, BATCH_SIZE)
    reference.optimizer.finalize_variable_values(reference.trainable_weights)  # as Keras' fit ends
    for ours, theirs in zip(outcome.master.network.get_weights(), reference.get_weights(), strict=True):
        assert not np.array_equal(theirs, np.zeros_like(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    assert outcome.master.iterations == int(reference.optimizer.iterations)


@pytest.mark.parametrize(
    ("sizes", "given"),
    [((7, 6), {}), ((7, 6), {"exchange": "workers"}), ((11,), {"frequency": 2})],
    ids=["driver", "workers", "2"],
)
def test_layers_learn_at_rates_of_their_own_as_with_an_optimizer_for_each(sizes: Any, given: Any) -> None:
    keras.utils.set_random_seed(3)
    names = ["first", "second", "last"]
    dense = [keras.layers.Dense(4, "tanh", dtype="float64", name=name) for name in names]
    network, rows = keras.Sequential([keras.Input((5,), dtype="float64"), *dense]), _rows(sizes)
    network.layers[-1].activation = keras.activations.softmax

    def make(share: float = 1.0) -> Any:
        return K.AdamW(0.02 * share, weight_decay=0.1)

    outcome = train(network, rows, optimizer=make(), epochs=EPOCHS, layer_decay=0.25, **given)
    slower = {"first/.*": make(0.25), "second/.*": make(0.5)}
    optimizer = K.MultiOptimizer(K.OptimizerMap(make(), slower))
    reference = _plain_keras(network, rows, optimizer, EPOCHS, BATCH_SIZE)
    for ours, theirs in zip(outcome.master.network.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "share", "words"),
    [
        (lambda: K.Adam(use_ema=True), 0.5, "averages weights"),
        (lambda: K.ScheduleFreeAdamW(), 0.5, "ScheduleFreeAdamW"),
        (lambda: K.Adam(), 0.0, "layer_decay=0.0"),
    ],
)
def test_shares_of_steps_that_cannot_be_are_refused(make: Any, share: float, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        optimizers.check_layer_decay(make(), share)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_averaged_weights_are_those_of_the_last_epoch_and_the_best_ones_are_not_averaged(keep: str) -> None:
    """As in Keras, where the best epoch's weights are given back after the averages have been put in place."""
    network = _network()
    rows = [Rows(one.features, one.labels, None, np.arange(len(one.labels)) < 4) for one in _rows((11, 10))]
    rates = [0.05, 0.05, -0.5, -0.5]
    kept = pipeline.KeptWeights("val_loss", patience=9, restore_best_weights=keep == "best")
    turn = keras.callbacks.LearningRateScheduler(rates.__getitem__)

    def make() -> Any:
        return K.Adam(0.05, use_ema=True, ema_momentum=0.7)

    outcome = train(network, rows, optimizer=make(), epochs=4, callbacks=[kept, turn])

    trained = [Rows(one.features[4:], one.labels[4:]) for one in rows]
    reference = _plain_keras(network, trained, make(), 0, BATCH_SIZE)
    held_out = [np.concatenate([getattr(one, name)[:4] for one in rows]) for name in ("features", "labels")]
    losses, weights = [], []
    for epoch, rate in enumerate(rates):
        reference.optimizer.learning_rate = rate
        for features, labels, _ in _global_batches(trained, epoch, BATCH_SIZE, 40):
            reference.train_on_batch(features, labels)
        losses.append(reference.evaluate(*held_out, verbose=0))
        weights.append(reference.get_weights())
    best = int(np.argmin(losses))
    assert best < 3
    reference.optimizer.finalize_variable_values(reference.trainable_weights)
    expected = weights[best] if keep == "best" else reference.get_weights()
    for ours, theirs in zip(outcome.network.get_weights(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(outcome.history["val_loss"], losses, atol=1e-10)


@pytest.mark.parametrize("frequency", ["batch", "epoch"])
def test_gradients_that_overflow_in_float16_are_left_out_as_keras_does(frequency: str) -> None:
    keras.config.set_floatx("float32")
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(7, activation="tanh", dtype="mixed_float16"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )

    def make() -> Any:
        return K.LossScaleOptimizer(K.Adam(0.05), initial_scale=2.0**22, dynamic_growth_steps=3)

    rows = _rows([20])
    outcome = train(network, rows, optimizer=make(), frequency=frequency, epochs=2)
    reference = _plain_keras(network, rows, make(), 2, BATCH_SIZE)
    assert 0 < outcome.master.iterations == int(reference.optimizer.iterations) < 10
    assert float(outcome.master.optimizer.dynamic_scale.value) == float(
        reference.optimizer.dynamic_scale.value
    )
    for ours, theirs in zip(outcome.master.network.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    ["adam", "Adam", {"class_name": "Adam", "config": {"learning_rate": 0.02}}, K.serialize(_sparing())],
)
def test_a_configuration_is_not_changed_by_its_use(given: Any) -> None:
    before = copy.deepcopy(given)
    for _ in range(2):
        made = optimizers.from_config(given)
        kept = optimizers.to_config(given)["config"]
        assert {**kept, "name": ""} == {**K.serialize(made)["config"], "name": ""}
        assert given == before


def test_an_optimizer_is_not_built_by_its_use() -> None:
    given = _sparing()
    made = optimizers.from_config(given)
    made.build(_network().trainable_variables)
    assert made is not given
    assert not given.built


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("no such optimizer", "which Keras does not make"),
        ({"class_name": "SGD", "config": {"learning": 1}}, "which Keras does not make"),
        ({"config": {}}, "which Keras does not make"),
        (7, "of the type int"),
    ],
)
def test_what_is_no_optimizer_is_refused(given: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        optimizers.from_config(given)


def test_variables_that_are_spared_by_object_are_refused() -> None:
    given = K.AdamW(0.1)
    given.exclude_from_weight_decay(var_list=_network().trainable_variables[:1])
    with pytest.raises(OptionError, match="var_list"):
        optimizers.to_config(given)


@pytest.mark.parametrize(
    ("make", "is_local", "reason"),
    [
        (lambda: K.Adam(use_ema=True), True, "use_ema"),
        (lambda: K.LossScaleOptimizer(K.Adam()), False, "LossScaleOptimizer"),
    ],
)
def test_what_asynchronous_workers_cannot_share_is_refused(make: Any, is_local: bool, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        optimizers.check_exchange(make(), is_synchronous=False, is_local=is_local)
    optimizers.check_exchange(make(), is_synchronous=False, is_local=not is_local)
    optimizers.check_exchange(make(), is_synchronous=True, is_local=is_local)
