"""Synchronous training held against plain Keras, which sees the same global batches."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from seedlings_spark.errors import CorpusError, OptionError, TrainingError
from seedlings_spark.models import networks
from seedlings_spark.training import curriculum
from seedlings_spark.training.epochs import rounds_of_epoch, steps_of_epoch
from seedlings_spark.training.shard import batch_edges, epoch_order
from tests.keras.training import Rows, train


@pytest.fixture(autouse=True)
def _float32_afterwards() -> Any:
    yield
    keras.config.set_floatx("float32")


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.02, 3, 0.7)),
}


def _network(dtype: str = "float64", outputs: int = 3, activation: str = "softmax") -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((5,), dtype=dtype),
            keras.layers.Dense(
                7, activation="tanh", dtype=dtype, kernel_regularizer=keras.regularizers.L2(0.01)
            ),
            keras.layers.Dense(outputs, activation=activation, dtype=dtype),
        ]
    )


def _rows(sizes: Sequence[int], classes: int = 3, seed: int = 0) -> list[Rows]:
    rng = np.random.default_rng(seed)
    return [
        Rows(rng.normal(size=(size, 5)), rng.integers(0, classes, size), rng.uniform(0.5, 2, size))
        for size in sizes
    ]


def _global_batches(
    rows: Sequence[Rows],
    epoch: int,
    batch_size: int,
    row_bytes: int,
    seed: int = 0,
    curriculum_epochs: int = 0,
) -> Any:
    """The global batch of each step of an epoch: features, labels, sample weights."""
    steps = steps_of_epoch([len(one.labels) for one in rows], batch_size)
    orders = [
        epoch_order(seed, epoch, rank, len(one.labels), row_bytes)
        if one.levels is None
        else curriculum.order(seed, epoch, rank, one.levels, row_bytes, curriculum_epochs)
        for rank, one in enumerate(rows)
    ]
    for step in range(steps):
        parts = []
        for one, order in zip(rows, orders, strict=True):
            edges = batch_edges(len(one.labels), steps)
            chosen = order[edges[step] : edges[step + 1]]
            weights = np.ones(len(one.labels)) if one.weights is None else one.weights
            parts.append((one.features[chosen], one.labels[chosen], weights[chosen]))
        yield tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _plain_keras(
    network: Any,
    rows: Sequence[Rows],
    optimizer: Any,
    epochs: int,
    batch_size: int,
    curriculum_epochs: int = 0,
) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        network.save(f"{folder}/network.keras")
        reference = keras.models.load_model(f"{folder}/network.keras", compile=False)
    width = 4 if network.inputs[0].dtype == "float32" else 8
    keras.config.set_floatx(network.outputs[0].dtype)
    reference.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    # Keras' own build is symbolic, and loses what an optimizer copies from the weights (ScheduleFreeAdamW).
    reference.optimizer.build(reference.trainable_variables)
    for epoch in range(epochs):
        batches = _global_batches(rows, epoch, batch_size, 5 * width, curriculum_epochs=curriculum_epochs)
        for features, labels, weights in batches:
            reference.train_on_batch(features, labels, sample_weight=weights)
    return reference


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("sizes", [(13, 10), (9, 4, 11), (7,), (10, 0)], ids=str)
def test_batch_frequency_is_sgd_with_the_global_batch(optimizer: str, sizes: tuple[int, ...]) -> None:
    network, rows = _network(), _rows(sizes)
    num_workers = (
        1 if len(sizes) > 2 else len(sizes)
    )  # one for all: it accumulates the gradients of a larger batch
    outcome = train(network, rows, optimizer=OPTIMIZERS[optimizer](), epochs=3, num_workers=num_workers)
    reference = _plain_keras(network, rows, OPTIMIZERS[optimizer](), 3, 4)
    for ours, theirs in zip(outcome.master.network.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_with_a_curriculum_a_step_is_one_of_sgd_with_the_easy_rows_of_all_shards() -> None:
    network, draw = _network(), np.random.default_rng(5)
    rows = [replace(one, levels=draw.integers(0, 4, len(one.labels))) for one in _rows([13, 10])]

    def trained(rows: Sequence[Rows], **given: Any) -> Any:
        return train(network, rows, optimizer=keras.optimizers.Adam(0.01), curriculum_epochs=3, **given)

    def weights(rows: Sequence[Rows], **given: Any) -> Any:
        return trained(rows, **given).master.network.get_weights()

    outcomes = [trained(rows, epochs=5, num_workers=number) for number in (1, 2)]
    one, two = (outcome.master.network.get_weights() for outcome in outcomes)
    reference = _plain_keras(network, rows, keras.optimizers.Adam(0.01), 5, 4, curriculum_epochs=3)
    for ours, same, theirs in zip(one, two, reference.get_weights(), strict=True):
        assert ours.tobytes() == same.tobytes()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)

    of_level = [replace(each, labels=each.levels) for each in rows]
    seen = [
        np.bincount(np.concatenate([labels for _, labels, _ in batches]), minlength=4).tolist()
        for epoch in range(5)
        for batches in [_global_batches(of_level, epoch, 4, 40, curriculum_epochs=3)]
    ]
    assert [sum(count > 0 for count in counts) for counts in seen] == [1, 2, 3, 4, 4]
    assert [outcome.record.rows_of_quarter for outcome in outcomes] == [seen, seen]

    # Of hard rows nothing is seen before it is their turn.
    blank = [
        replace(each, features=np.where((each.levels == 0)[:, None], each.features, np.nan)) for each in rows
    ]
    for ours, theirs in zip(weights(rows, epochs=1), weights(blank, epochs=1), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    with pytest.raises(TrainingError):
        weights(blank, epochs=4)


def test_one_step_in_float32_equals_plain_keras() -> None:
    network, rows = _network("float32"), _rows([4, 3])
    outcome = train(network, rows, optimizer=keras.optimizers.Adam(0.01), epochs=1)
    reference = _plain_keras(network, rows, keras.optimizers.Adam(0.01), 1, 4)
    assert outcome.master.iterations == 1
    for ours, theirs in zip(outcome.master.network.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frequency", ["epoch", 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_local_steps_are_averaged_with_their_slots(frequency: str | int, optimizer: str) -> None:
    keras.config.set_floatx("float64")  # of the optimizers' learning rates
    network, rows, epochs = _network(), _rows([13, 10]), 2
    outcome = train(network, rows, optimizer=OPTIMIZERS[optimizer](), frequency=frequency, epochs=epochs)

    # By hand: one Keras model a worker; after each round the mean, weighted by samples, of weights and slots.
    models = []
    for _ in rows:
        models.append(keras.models.clone_model(network))
        models[-1].set_weights(network.get_weights())
        models[-1].compile(optimizer=OPTIMIZERS[optimizer](), loss="sparse_categorical_crossentropy")
        models[-1].optimizer.build(models[-1].trainable_variables)
    steps = steps_of_epoch([13, 10], 4)
    for epoch in range(epochs):
        for first, last in rounds_of_epoch(steps, frequency):
            counts = []
            for rank, (model, one) in enumerate(zip(models, rows, strict=True)):
                order = epoch_order(0, epoch, rank, len(one.labels), 40)
                edges = batch_edges(len(one.labels), steps)
                for step in range(first, last):
                    chosen = order[edges[step] : edges[step + 1]]
                    model.train_on_batch(
                        one.features[chosen], one.labels[chosen], sample_weight=one.weights[chosen]
                    )
                counts.append(edges[last] - edges[first])
            states = [[v.numpy() for v in model.weights + _slots(model.optimizer)] for model in models]
            means = [np.average(column, axis=0, weights=counts) for column in zip(*states, strict=True)]
            for model in models:
                for variable, value in zip(model.weights + _slots(model.optimizer), means, strict=True):
                    variable.assign(value)
    for ours, theirs in zip(outcome.master.network.get_weights(), models[0].get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    assert outcome.master.iterations == epochs * steps


def _slots(optimizer: Any) -> list[Any]:
    return [v for v in optimizer.variables if v.path.split("/")[-1] not in ("iteration", "learning_rate")]


def test_loss_and_metrics_are_those_of_all_workers_together() -> None:
    network, rows = _network(outputs=1, activation="sigmoid"), _rows([30, 17], classes=2)
    held = [Rows(one.features, one.labels, None, np.arange(len(one.labels)) % 3 == 0) for one in rows]
    metrics = ["accuracy", keras.metrics.AUC(name="auc"), keras.metrics.Precision(name="precision")]
    outcome = train(
        network,
        held,
        optimizer=keras.optimizers.SGD(0.05),
        loss="binary_crossentropy",
        metrics=metrics,
        labels="number",
    )
    final = outcome.master.network
    features = np.concatenate([one.features[one.held_out] for one in held])
    labels = np.concatenate([one.labels[one.held_out] for one in held]).reshape(-1, 1)
    expected = final.evaluate(features, labels, batch_size=len(labels), verbose=0, return_dict=True)
    assert set(expected) == {"loss", "accuracy", "auc", "precision"}
    for name, value in expected.items():
        assert outcome.history[f"val_{name}"][-1] == pytest.approx(value, abs=1e-6)
        assert len(outcome.history[name]) == 3


def test_one_hot_labels_train_as_class_numbers_do() -> None:
    network, rows = _network(), _rows([9, 8])
    ours = train(network, rows, optimizer=keras.optimizers.SGD(0.1))
    theirs = train(
        network, rows, optimizer=keras.optimizers.SGD(0.1), loss="categorical_crossentropy", labels="one_hot"
    )
    for one, other in zip(
        ours.master.network.get_weights(), theirs.master.network.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)


def test_class_weights_are_sample_weights_of_the_classes() -> None:
    network, rows = _network(), _rows([9, 8])
    plain = [Rows(one.features, one.labels) for one in rows]
    weight = {0: 0.5, 1: 2.0, 2: 1.25}
    weighted = [
        Rows(one.features, one.labels, np.array([weight[label] for label in one.labels])) for one in rows
    ]
    by_class = train(
        network,
        plain,
        optimizer=keras.optimizers.SGD(0.1),
        class_weight={str(k): v for k, v in weight.items()},
    )
    by_sample = train(network, weighted, optimizer=keras.optimizers.SGD(0.1))
    assert (by_class.master.weights() == by_sample.master.weights()).all()


def _noisy_network() -> Any:
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("frequency", ["batch", "epoch"])
def test_the_same_run_gives_the_same_bits_and_another_seed_others(frequency: str) -> None:
    rows = _rows([13, 10])
    runs = [
        train(_noisy_network(), rows, optimizer=keras.optimizers.Adam(0.01), frequency=frequency, seed=seed)
        for seed in (1, 1, 2)
    ]
    first, second, other = (run.master.weights().tobytes() for run in runs)
    assert first == second
    assert first != other


def test_moving_statistics_are_averaged_by_samples() -> None:
    keras.utils.set_random_seed(5)
    network = keras.Sequential(
        [
            keras.Input((5,), dtype="float64"),
            keras.layers.BatchNormalization(momentum=0.0, dtype="float64"),
            keras.layers.Dense(3, activation="softmax", dtype="float64"),
        ]
    )
    rows = _rows([4, 2])
    outcome = train(network, rows, optimizer=keras.optimizers.SGD(0.0), epochs=1)
    means = [one.features.mean(axis=0) for one in rows]
    moving_mean = outcome.master.network.layers[0].moving_mean.numpy()
    np.testing.assert_allclose(moving_mean, (4 * means[0] + 2 * means[1]) / 6, atol=1e-12)


def test_callbacks_see_the_master_model_and_may_stop_the_run() -> None:
    network, rows = _network(), _rows([13, 10])
    rows = [Rows(one.features, one.labels, None, np.arange(len(one.labels)) < 4) for one in rows]
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append((epoch, sorted(logs), self.model.get_weights()[0].sum()))

    stop = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=100.0, restore_best_weights=True)
    outcome = train(network, rows, optimizer=keras.optimizers.SGD(0.1), epochs=9, callbacks=[Watch(), stop])
    assert [epoch for epoch, _, _ in seen] == [0, 1]
    assert seen[0][1] == ["loss", "val_loss"]
    assert len(outcome.history["loss"]) == 2
    # The best epoch was the first: its weights are back.
    assert outcome.master.network.get_weights()[0].sum() == seen[0][2] != seen[1][2]


def test_a_learning_rate_set_by_a_callback_is_used_by_workers_too() -> None:
    network, rows = _network(), _rows([8, 8])
    freeze = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 0 else 0.0)
    for frequency in ("batch", "epoch"):
        one = train(
            network,
            rows,
            optimizer=keras.optimizers.SGD(0.5),
            epochs=1,
            frequency=frequency,
            callbacks=[freeze],
        )
        three = train(
            network,
            rows,
            optimizer=keras.optimizers.SGD(0.5),
            epochs=3,
            frequency=frequency,
            callbacks=[freeze],
        )
        np.testing.assert_allclose(one.master.weights(), three.master.weights(), atol=1e-12)


@pytest.mark.parametrize("frequency", ["batch", 2])
def test_a_loss_that_is_not_finite_names_epoch_and_step(frequency: str | int) -> None:
    rows = _rows([12, 12])
    rows[1].features[7] = np.nan
    with pytest.raises(TrainingError, match=r"not finite, in epoch 1, step \d, shard 1"):
        train(_network(), rows, optimizer=keras.optimizers.SGD(0.1), frequency=frequency)


def test_a_workers_exception_arrives_in_its_own_words_and_is_not_tried_again() -> None:
    calls = []

    @keras.saving.register_keras_serializable(package="tests")
    class Breaks(keras.layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                calls.append(1)
                raise RuntimeError("this layer does not train on Tuesdays")
            return inputs

    network = keras.Sequential([keras.Input((5,)), Breaks(), keras.layers.Dense(3, activation="softmax")])
    with pytest.raises(TrainingError, match="does not train on Tuesdays"):
        train(network, _rows([8]), optimizer=keras.optimizers.SGD(0.1), custom_objects={"Breaks": Breaks})
    assert len(calls) == 1


def test_every_row_is_trained_on_in_every_epoch() -> None:
    outcome = train(
        _network(), _rows([13, 3, 0]), optimizer=keras.optimizers.SGD(0.1), epochs=4, batch_size=5
    )
    assert [summary["images"] for summary in outcome.record.workers] == [4 * 13, 4 * 3, 0]


def test_a_label_outside_of_the_classes_is_refused() -> None:
    rows = _rows([8, 8])
    rows[0].labels[3] = 3
    with pytest.raises(CorpusError, match=r"worker 0: labels from 0 to 3"):
        train(_network(), rows, optimizer=keras.optimizers.SGD(0.1))


# --- Frozen layers


def _partly_frozen(name: str) -> Any:
    keras.utils.set_random_seed(5)
    network = keras.Sequential(
        [
            keras.Input((5,), dtype="float64"),
            keras.layers.Dense(7, activation="tanh", dtype="float64", name="first"),
            keras.layers.BatchNormalization(dtype="float64", name="normalization"),
            keras.layers.Dense(6, activation="tanh", dtype="float64", name="second"),
            keras.layers.Dense(3, activation="softmax", dtype="float64", name="probabilities"),
        ]
    )
    network.get_layer("normalization").set_weights([np.full(7, value) for value in (2.0, 0.1, 0.2, 0.9)])
    networks.freeze(network, name)
    return network


@pytest.mark.parametrize(
    ("trained", "numbers"),
    [("head", 21), ("1", 21 + 48), ("2", 21 + 48 + 28 + 42), ("all", 139), ("staged", 111)],
)
def test_what_is_frozen_neither_changes_nor_travels(trained: str, numbers: int) -> None:
    network = _partly_frozen(trained)
    rows = _rows([9, 8])
    outcome = train(network, rows, optimizer=keras.optimizers.SGD(0.1))
    assert outcome.master.model_layout.size == numbers
    for ours, first in zip(outcome.network.layers, network.layers, strict=True):
        for weight, before in zip(ours.get_weights(), first.get_weights(), strict=True):
            assert np.array_equal(weight, before) != ours.trainable, ours.name
    if (
        trained == "head"
    ):  # the normalisation does not look at its batch, so that plain Keras has the same bits
        reference = _plain_keras(network, rows, keras.optimizers.SGD(0.1), 3, 4)
        for ours, theirs in zip(outcome.network.get_weights(), reference.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_a_separable_convolution_is_one_layer_to_fine_tune_and_more_than_there_are_is_refused() -> None:
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(2, 3, name="stem"),
            keras.layers.SeparableConv2D(2, 3, name="separable"),
            keras.layers.BatchNormalization(name="normalization"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="probabilities"),
        ]
    )
    networks.freeze(network, "1")
    trained = [layer.name for layer in network.layers if layer.weights and layer.trainable]
    assert trained == ["separable", "normalization", "probabilities"]
    with pytest.raises(OptionError, match="at most its 2 convolutions and dense layers"):
        networks.freeze(network, "3")


def test_layers_of_a_network_in_a_network_are_fine_tuned_from_its_end() -> None:
    backbone = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            *(keras.layers.Conv2D(2, 3, name=f"convolution{number}") for number in range(3)),
            keras.layers.GlobalAveragePooling2D(),
        ],
        name="backbone",
    )
    head = keras.layers.Dense(3, name="probabilities")
    network = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), backbone, head])

    def trained(chosen: str) -> list[str]:
        networks.freeze(network, chosen)
        return [weight.path.split("/")[-2] for weight in network.trainable_weights[::2]]

    names = ["convolution0", "convolution1", "convolution2", "probabilities"]
    assert [trained(chosen) for chosen in ("all", "3", "2", "1", "head")] == [
        names[first:] for first in (0, 0, 1, 2, 3)
    ]
    assert networks.features_of(network).output_shape == (None, 2)
    whole = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), network], name="whole")
    with pytest.raises(OptionError, match="whole, which ends with the network '"):
        networks.features_of(whole)
