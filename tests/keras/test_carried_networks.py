"""What a network holds beside its JSON and weights arrives at the workers and in the trained network."""

import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from pyspark import cloudpickle

from seedlings_spark.errors import NetworkError
from seedlings_spark.training import network as carried
from tests.conftest import HANG_SECONDS
from tests.keras.test_synchronous import _plain_keras, _rows
from tests.keras.training import Rows, train

layers = keras.layers


def _features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 3, (24, 5)).round(1)


def _adapted(kind: str) -> Any:
    keras.utils.set_random_seed(2)
    integers = kind == "IntegerLookup"
    inputs = keras.Input((5,), dtype="int64" if integers else "float32")
    features = _features().round().astype("int64") if integers else _features()
    layer = {
        "Normalization": lambda: layers.Normalization(),
        "Discretization": lambda: layers.Discretization(num_bins=4),
        "IntegerLookup": lambda: layers.IntegerLookup(max_tokens=20),
    }[kind]()
    layer.adapt(features)
    x = layer(inputs)
    if kind != "Normalization":
        x = layers.Flatten()(layers.Embedding(20, 3)(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize("kind", ["Normalization", "Discretization", "IntegerLookup"])
def test_what_a_layer_has_adapted_is_trained_with(kind: str) -> None:
    network = _adapted(kind)
    rows = [
        Rows(
            (_features(rank).round() if kind == "IntegerLookup" else _features(rank))[:11],
            one.labels,
            one.weights,
        )
        for rank, one in enumerate(_rows([11, 11]))
    ]
    outcome = train(network, rows, optimizer=keras.optimizers.SGD(0.1))
    reference = carried.from_bytes(carried.to_bytes(network))
    assert np.array_equal(reference(rows[0].features), network(rows[0].features))
    reference = _plain_keras(network, rows, keras.optimizers.SGD(0.1), 3, 4)
    trained = carried.from_bytes(carried.to_bytes(outcome.master.network))
    for ours, theirs in zip(trained.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
    np.testing.assert_allclose(trained(rows[0].features), reference(rows[0].features), rtol=0, atol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
class Counting(layers.Layer):
    """Scales by a table that only `save_own_variables` keeps, and counts its training steps."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = np.ones(5, "float32")

    def build(self, shape: Any) -> None:
        self.steps = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="steps"
        )

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.steps.assign(self.steps + 1)
        return inputs * self.table

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["table"] = self.table

    def load_own_variables(self, store: Any) -> None:
        self.table = np.array(store["table"])
        self.steps.assign(store["0"])


@pytest.mark.parametrize("frequency", ["batch", "epoch"])
def test_what_a_layer_saves_by_itself_and_what_it_counts_is_kept(frequency: str) -> None:
    keras.utils.set_random_seed(2)
    counting = Counting()
    network = keras.Sequential([keras.Input((5,)), counting, layers.Dense(3, activation="softmax")])
    counting.table = np.array([1, 2, 3, 0, 5], "float32")
    outcome = train(
        network,
        _rows([8, 8]),
        optimizer=keras.optimizers.SGD(0.1),
        epochs=2,
        batch_size=4,
        frequency=frequency,
    )
    trained = outcome.master.network.layers[0]
    assert trained.table.tolist() == [1, 2, 3, 0, 5]
    assert int(trained.steps.value) == 4  # 2 steps an epoch
    # The fourth feature is never seen, so its weights are as they were.
    assert np.array_equal(outcome.master.network.get_weights()[1][3], network.get_weights()[1][3])


def test_json_of_a_network_that_has_adapted_is_refused() -> None:
    network = _adapted("Normalization")
    with pytest.raises(NetworkError, match="has not adapted"):
        carried.check_adapted(carried.from_json(network.to_json()))
    fixed = keras.Sequential([keras.Input((2,)), layers.Normalization(mean=[1.0, 2], variance=[1.0, 4])])
    carried.check_adapted(carried.from_json(fixed.to_json()))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


def _called() -> Any:
    network = Subclassed()
    network(np.zeros((1, 5), "float32"))
    return network


def _of_two() -> Any:
    inputs = [keras.Input((2,)), keras.Input((2,))]
    return keras.Model(inputs, layers.Add()(inputs))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Subclassed, "does not know the shape"),
        (_called, "class Subclassed"),
        (_of_two, "2 inputs"),
        (lambda: keras.Sequential([keras.Input((None, 3)), layers.LSTM(2)]), r"takes \(None, None, 3\)"),
        (lambda: keras.Sequential([keras.Input((1,), dtype="string"), layers.Hashing(3)]), "takes strings"),
        (lambda: layers.Dense(3), "holds a Dense"),
    ],
    ids=["not built", "subclassed", "two inputs", "unknown length", "strings", "a layer"],
)
def test_a_network_that_a_table_cannot_be_fed_to_is_refused(make: Any, reason: str) -> None:
    with pytest.raises(NetworkError, match=reason):
        carried.checked(make(), "it")


def test_registered_layers_travel_to_a_process_that_does_not_know_them() -> None:
    network = keras.Sequential([keras.Input((5,)), Counting(), layers.Dense(3)])
    content = carried.to_bytes(network)
    found = carried.registered_in(carried.to_json(content))
    assert found == {"tests>Counting": Counting}
    import tests.keras.test_carried_networks as module

    cloudpickle.register_pickle_by_value(module)
    try:
        packed = cloudpickle.dumps((content, found))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    program = (
        "import sys; from seedlings_spark.cluster import runtime; runtime.start(1); from pyspark import cloudpickle\n"
        "from seedlings_spark.training import network\n"
        "print(network.from_bytes(*cloudpickle.loads(sys.stdin.buffer.read())).count_params())"
    )
    made = subprocess.run(
        [sys.executable, "-c", program], input=packed, capture_output=True, timeout=HANG_SECONDS
    )
    assert made.stdout.split() == [b"19"], made.stderr[-2000:]
