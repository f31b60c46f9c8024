"""Which kind of problem it is, and probabilities of outputs, beside SciPy and plain Keras."""

import functools
import json
import pickle
import re

import keras
import numpy as np
import pytest
import scipy.special
from keras import layers, losses

from seedlings_spark import problems
from seedlings_spark.errors import NetworkError, OptionError
from seedlings_spark.models import export, networks, prediction
from seedlings_spark.problems import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION


def network(outputs=4, activation="softmax"):
    keras.utils.set_random_seed(5)
    return keras.Sequential([keras.Input((6,)), layers.Dense(outputs, activation=activation)])


def decided(loss, outputs, activation, label="number", problem="", **more):
    found = problems.decide(
        problems.resolve_loss(loss), network(outputs, activation), label=label, problem=problem, **more
    )
    return found.kind, found.labels, found.num_classes, found.head


def own(labels, outputs):
    return keras.ops.mean(keras.ops.square(labels - outputs), axis=-1)


def own_sparse_crossentropy(labels, outputs):  # a name that says nothing
    return own(labels, outputs)


def as_config(loss):
    return losses.serialize(loss)


SPARSE = losses.SparseCategoricalCrossentropy
TWO_SIDED = losses.BinaryCrossentropy


def without_addresses(value):
    """An id of a case that is the same in every process of the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("sparse_categorical_crossentropy", 4, "softmax"), (CLASSIFICATION, "index", 4, ())),
        (("SparseCategoricalCrossentropy", 4, "softmax"), (CLASSIFICATION, "index", 4, ())),
        ((losses.sparse_categorical_crossentropy, 4, "softmax"), (CLASSIFICATION, "index", 4, ())),
        ((SPARSE(from_logits=True), 4, None), (CLASSIFICATION, "index", 4, ("softmax",))),
        ((as_config(SPARSE(from_logits=True)), 4, None), (CLASSIFICATION, "index", 4, ("softmax",))),
        (
            ({"class_name": "CategoricalCrossentropy", "config": {"from_logits": True}}, 4, None),
            (CLASSIFICATION, "one_hot", 4, ("softmax",)),
        ),
        (
            (
                functools.partial(losses.sparse_categorical_crossentropy, from_logits=True),
                4,
                None,
            ),
            (CLASSIFICATION, "index", 4, ("softmax",)),
        ),
        # Keras takes the softmax's own logits there: the outputs are probabilities all the same.
        ((SPARSE(from_logits=True), 4, "softmax"), (CLASSIFICATION, "index", 4, ())),
        (("categorical_crossentropy", 4, "softmax"), (CLASSIFICATION, "one_hot", 4, ())),
        (("categorical_crossentropy", 4, "softmax", "vector"), (CLASSIFICATION, "vector", 4, ())),
        (("categorical_focal_crossentropy", 4, "softmax"), (CLASSIFICATION, "one_hot", 4, ())),
        (("categorical_hinge", 4, None), (CLASSIFICATION, "one_hot", 4, ("softmax",))),
        (("bce", 1, "sigmoid"), (BINARY, "number", 2, ())),
        ((TWO_SIDED(from_logits=True), 1, None), (BINARY, "number", 2, ("sigmoid",))),
        (("binary_focal_crossentropy", 1, "sigmoid"), (BINARY, "number", 2, ())),
        (("binary_crossentropy", 4, "sigmoid", "vector"), (MULTILABEL, "vector", 0, ())),
        ((TWO_SIDED(from_logits=True), 4, None, "vector"), (MULTILABEL, "vector", 0, ("sigmoid",))),
        (
            ("binary_crossentropy", 4, "sigmoid", "number", CLASSIFICATION),
            (CLASSIFICATION, "one_hot", 4, ("share",)),
        ),
        (
            (TWO_SIDED(from_logits=True), 4, None, "number", CLASSIFICATION),
            (CLASSIFICATION, "one_hot", 4, ("sigmoid", "share")),
        ),
        (("hinge", 1, "tanh"), (BINARY, "number", 2, ("sigmoid",))),
        (("squared_hinge", 1, None), (BINARY, "number", 2, ("sigmoid",))),
        *[
            ((alias, 1, None), (REGRESSION, "number", 0, ()))
            for alias in ("mse", "MSE", "MeanSquaredError", "mae", "mape", "msle", "huber", "log_cosh")
        ],
        (("poisson", 1, "exponential"), (REGRESSION, "number", 0, ())),
        (("cosine_similarity", 4, None, "vector"), (REGRESSION, "vector", 0, ())),
        (("mse", 4, None, "vector"), (REGRESSION, "vector", 0, ())),
        (("mse", 4, "softmax", "number", CLASSIFICATION), (CLASSIFICATION, "one_hot", 4, ())),
        (("kld", 4, "softmax", "number", CLASSIFICATION), (CLASSIFICATION, "one_hot", 4, ())),
        ((own, 4, "softmax", "number", CLASSIFICATION), (CLASSIFICATION, "index", 4, ())),
        ((own, 4, None, "number", CLASSIFICATION), (CLASSIFICATION, "index", 4, ("softmax",))),
        ((own, 1, "sigmoid", "number", BINARY), (BINARY, "number", 2, ())),
        ((own, 2, None, "number", REGRESSION), (REGRESSION, "number", 0, ())),
    ],
    ids=without_addresses,
)
def test_loss_label_and_outputs_tell_the_kind(given, expected):
    assert decided(*given) == expected


@pytest.mark.parametrize(
    ("given", "more", "words"),
    [
        (("mean_squared_error", 12, "softmax"), {}, "set problem to 'classification'"),
        (("mse", 1, None), {"has_names": True}, "which numbers classes"),
        (("mse", 4, None, "number", REGRESSION), {}, "would be compared with all of them"),
        ((own, 4, "softmax"), {}, "set problem to 'classification' or 'regression'"),
        ((own_sparse_crossentropy, 4, "softmax"), {}, "set problem to"),
        (("binary_crossentropy", 4, "sigmoid"), {}, "set problem to 'classification'"),
        (("kl_divergence", 4, "softmax"), {}, "set problem to 'classification'"),
        (("sparse_categorical_crossentropy", 1, "sigmoid"), {}, "an output for each class"),
        (("sparse_categorical_crossentropy", 4, "softmax", "vector"), {}, "class numbers, which this loss"),
        (("sparse_categorical_crossentropy", 4, "softmax", "number", REGRESSION), {}, "problem='regression'"),
        (("binary_crossentropy", 4, "sigmoid", "number", BINARY), {}, "one output and one label"),
        (("binary_crossentropy", 4, "sigmoid", "number", MULTILABEL), {}, "a vector of 0 and 1"),
        (("mse", 1, None, "number", "regresion"), {}, "problem='regresion'"),
        (("mean_square", 1, None), {}, "loss='mean_square'"),
    ],
    ids=without_addresses,
)
def test_what_does_not_tell_is_asked_for(given, more, words):
    with pytest.raises(OptionError, match=words):
        decided(*given, **more)


def test_probabilities_for_a_loss_of_probabilities_and_a_network_of_none_are_refused():
    with pytest.raises(NetworkError, match="ends without softmax or sigmoid"):
        decided("sparse_categorical_crossentropy", 4, None)
    dense = keras.Sequential([keras.Input((4, 6)), layers.Dense(3, activation="softmax")])
    with pytest.raises(NetworkError, match=r"gives \(4, 3\) for each row"):
        problems.decide(losses.get("categorical_crossentropy"), dense, label="number")


@pytest.mark.parametrize("loss", ["mse", "binary_crossentropy", "hinge", "kld", "poisson", "nonsense"])
def test_a_loss_that_does_not_fit_species_is_refused(loss):
    with pytest.raises(OptionError, match="loss"):
        problems.check_loss(loss)


def test_a_loss_that_fails_without_a_word_is_refused():
    class Silent(keras.losses.Loss):
        def __init__(self) -> None:
            raise ValueError

    with pytest.raises(OptionError, match=r"\(ValueError\)"):
        problems.resolve_loss("silent", {"silent": Silent})


@pytest.mark.parametrize("loss", ["mse", "MeanAbsoluteError", "huber", "log_cosh"])
def test_a_loss_of_numbers_is_that_of_standardised_ones_and_travels(loss):
    problems.check_loss(loss, REGRESSION)
    config = losses.serialize(problems.InDeviations(loss, 50.0))
    travelled = pickle.loads(pickle.dumps(problems.resolve_loss(json.loads(json.dumps(config)))))
    true, predicted = np.array([[900.0], [1000.0], [1100.0]]), np.array([[1000.0], [1010.0], [1090.0]])
    expected = losses.get(loss)((true - 1000) / 50, (predicted - 1000) / 50)
    assert float(travelled(true, predicted)) == pytest.approx(float(np.mean(expected)), rel=1e-5)
    assert problems.described(travelled) == problems.described(problems.InDeviations(loss, 50.0))
    with pytest.raises(OptionError, match="a loss for numbers"):
        problems.check_loss("poisson", REGRESSION)


def test_losses_for_species_are_taken():
    for loss in ("sparse_categorical_crossentropy", "categorical_focal_crossentropy", "CategoricalHinge"):
        problems.check_loss(loss)


@pytest.mark.parametrize(
    ("loss", "outputs", "expected"),
    [
        (SPARSE(from_logits=True), 4, scipy.special.softmax),
        (TWO_SIDED(from_logits=True), 1, lambda logits, axis: scipy.special.expit(logits)),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_network_of_logits_is_kept_as_one_of_probabilities(loss, outputs, expected, precision):
    trained = network(outputs, None)
    trained.layers[-1].kernel.assign(40.0 * trained.layers[-1].kernel)  # saturated: float32 gives 0 and 1
    head = problems.decide(loss, trained, label="number").head
    kept = networks.to_bytes(problems.with_head(trained, head))
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    logits = trained.predict(rows, verbose=0)
    tolerance = 2e-6 if precision == "float32" else 0.02
    np.testing.assert_allclose(networks.from_bytes(kept)(rows), expected(logits, axis=1), atol=2e-6)
    np.testing.assert_allclose(problems.without_head(networks.from_bytes(kept))(rows), logits, atol=1e-5)
    task = prediction.ForwardTask(kept, precision, 8, threads=1, logits="softmax")
    found = prediction.forward(task).predict(rows)
    np.testing.assert_allclose(found[:, :outputs], expected(logits, axis=1), atol=tolerance)
    # The logits themselves, with the order that probabilities of 1 have lost.
    np.testing.assert_allclose(found[:, outputs:], logits, atol=1e-4)


@pytest.mark.parametrize("activation", ["sigmoid", None])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_outputs_that_know_nothing_of_each_other_are_kept_as_shares_of_their_sum(activation, precision):
    trained = network(4, activation)
    loss = TWO_SIDED(from_logits=activation is None)
    head = problems.decide(loss, trained, label="number", problem=CLASSIFICATION).head
    kept = networks.to_bytes(problems.with_head(trained, head))
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    outputs = trained.predict(rows, verbose=0)
    each = outputs if activation else scipy.special.expit(outputs)
    shares = each / each.sum(axis=1, keepdims=True)
    tolerance = 2e-6 if precision == "float32" else 0.02
    found = prediction.forward(prediction.ForwardTask(kept, precision, 8, threads=1)).predict(rows)
    np.testing.assert_allclose(found, shares, atol=tolerance)
    np.testing.assert_allclose(problems.without_head(networks.from_bytes(kept))(rows), outputs, atol=1e-6)
    exported, _ = export.to_onnx(kept, rows)
    by_onnx = prediction.ForwardTask(exported, "float32", 8, threads=1, engine="onnxruntime")
    np.testing.assert_allclose(prediction.forward(by_onnx).predict(rows), shares, atol=1e-5)


def test_logits_of_a_network_of_probabilities_give_them_back():
    trained = network(4, "softmax")
    rows = [list(row) for row in np.random.default_rng(0).normal(size=(10, 6)) * 100]
    task = prediction.ForwardTask(networks.to_bytes(trained), "float32", 8, threads=1, logits="softmax")
    import pandas as pd

    (found,) = prediction.predict_rows(task, iter([pd.Series(rows, dtype=object)]))
    found = np.stack(found)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(scipy.special.softmax(found[:, 4:], axis=1), found[:, :4], atol=1e-6)


def test_a_loss_is_described_alike_in_every_process():
    assert problems.described("mse") == "mse"
    assert problems.described(own) == f"{__name__}.own"
    assert "0x" not in problems.described(SPARSE(from_logits=True))
    assert problems.described(SPARSE(from_logits=True)) != problems.described(SPARSE())


def test_what_only_carries_values_on_is_looked_through():
    inputs = keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.Softmax()])
    outputs = layers.Activation("linear", dtype="float32")(layers.Dropout(0.1)(inner(inputs)))
    assert problems.last_activation(keras.Model(inputs, outputs)) == "softmax"
    assert problems.last_activation(network(3, None)) == "linear"
    assert problems.last_activation(keras.Model(inputs, keras.ops.softmax(layers.Dense(3)(inputs)))) == ""
