"""The forward pass of a task: rows in any company, the cache, bad rows."""

import dataclasses
import itertools
import pickle

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from keras import layers

from seedlings_spark import schema
from seedlings_spark.corpus import tables
from seedlings_spark.errors import ClusterError, CorpusError, NetworkError, OptionError
from seedlings_spark.models import networks, prediction
from seedlings_spark.models.prediction import ForwardTask
from seedlings_spark.scoring import tasks
from seedlings_spark.training import network as carried

IMAGES = np.random.default_rng(3).integers(0, 256, (37, 32, 32, 3), dtype=np.uint8)


def image_network(seed=0):
    keras.utils.set_random_seed(seed)
    network = networks.residual((32, 32), 5)
    return networks.fold_standardization(network, np.full(3, 120.0), np.full(3, 60.0))


def vector_network(outputs=3, activation="softmax"):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((130,)),
            layers.Dense(67, activation="tanh"),
            layers.Dense(outputs, activation=activation),
        ]
    )


def task_of(network, batch_size=16, precision="float32"):
    return ForwardTask(networks.to_bytes(network), precision, batch_size, threads=1)


@pytest.fixture(scope="module")
def content():
    return networks.to_bytes(image_network())


def rows_of(images):
    return [image.tobytes() for image in images]


# --- Bad input


def test_no_rows_give_no_predictions():
    task = task_of(vector_network())
    outputs = prediction.forward(task).predict(np.zeros((0, 130)))
    assert outputs.shape == (0, 3)
    assert outputs.dtype == np.float32
    assert list(prediction.predict_rows(task, iter([]))) == []
    (part,) = prediction.predict_rows(task, iter([pd.Series([], dtype=object)]))
    assert len(part) == 0


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([b"\0" * 3072, b"\0" * 3071], "a row of 3,071 values"),
        ([b"\0" * 3071, b"\0" * 3073], "a row of 3,071 values"),  # together as many as expected
        ([b"\0" * 3072, b""], "a row of 0 values"),
        ([b"\0" * 3072, None], "a row without features"),
        ([None], "a row without features"),
        ([[0.5] * 3072, [0.5]], "a row of 1 values"),
    ],
)
def test_a_row_of_another_size_is_said_to_be_so(content, rows, found):
    task = ForwardTask(content, "float32", 4, 1)
    with pytest.raises(CorpusError, match=found) as caught:
        list(prediction.predict_rows(task, iter([pd.Series(rows, dtype=object)])))
    assert "3,072 values, as the network takes (32, 32, 3)" in caught.value.expected


def test_bytes_that_are_no_network_are_said_to_be_so(content):
    with pytest.raises(NetworkError, match=r"network\.keras"):
        prediction.forward(ForwardTask(content[:1000], "float32", 4, 1))


def test_another_number_of_threads_in_a_process_that_has_started_is_refused(content):
    with pytest.raises(ClusterError, match="already started"):
        prediction.forward(ForwardTask(content, "float32", 4, threads=3))


# --- Predictions


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_a_prediction_does_not_depend_on_company_or_order(content, batch_size, precision):
    network = prediction.forward(ForwardTask(content, precision, batch_size, 1))
    together = network.predict(IMAGES)
    order = np.random.default_rng(0).permutation(len(IMAGES))
    assert np.array_equal(network.predict(IMAGES[order]), together[order])
    assert np.array_equal(np.concatenate([network.predict(IMAGES[i : i + 1]) for i in range(37)]), together)
    assert np.array_equal(
        np.concatenate([network.predict(IMAGES[:13]), network.predict(IMAGES[13:])]), together
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_rows_of_vectors_do_not_depend_on_company_or_order(batch_size):
    rows = np.random.default_rng(0).normal(size=(50, 130))
    network = prediction.forward(task_of(vector_network(), batch_size))
    together = network.predict(rows)
    assert np.array_equal(network.predict(rows[::-1]), together[::-1])
    assert np.array_equal(np.concatenate([network.predict(rows[i : i + 1]) for i in range(50)]), together)


def test_predictions_are_those_of_keras(content):
    expected = image_network().predict(IMAGES.astype("float32"), verbose=0)
    outputs = prediction.forward(ForwardTask(content, "float32", 16, 1)).predict(IMAGES)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_rows_of_bytes_and_of_numbers_give_the_same_in_every_cut(content):
    task = ForwardTask(content, "float32", 16, 1)
    expected = prediction.forward(task).predict(IMAGES).astype(np.float64)
    rows = pd.Series(rows_of(IMAGES), dtype=object)
    for parts in ([rows], [rows[:5], rows[:0], rows[5:]], [rows[i : i + 1] for i in range(37)]):
        outputs = pd.concat(prediction.predict_rows(task, iter(parts)))
        assert np.array_equal(np.stack(outputs.to_list()), expected)
    numbers = pd.Series([image.ravel().astype(float) for image in IMAGES[:4]], dtype=object)
    (outputs,) = prediction.predict_rows(task, iter([numbers]))
    assert np.array_equal(np.stack(outputs.to_list()), expected[:4])


def test_a_network_of_one_output_gives_rows_of_one_value():
    task = task_of(vector_network(1, "sigmoid"))
    (outputs,) = prediction.predict_rows(task, iter([pd.Series([np.ones(130), np.zeros(130)], dtype=object)]))
    assert [len(output) for output in outputs] == [1, 1]


def test_in_mixed_precision_the_answers_are_near_and_their_sums_are_one(content):
    exact = prediction.forward(ForwardTask(content, "float32", 16, 1)).predict(IMAGES)
    mixed = prediction.forward(ForwardTask(content, "mixed_bfloat16", 16, 1)).predict(IMAGES)
    assert 0 < np.abs(mixed.astype(np.float64) - exact).max() < 0.05
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)


def test_nothing_is_traced_twice_however_many_rows_there_are():
    network = prediction.forward(task_of(vector_network(), 8))
    for count in (3, 8, 1, 20, 0, 16):
        assert len(network.predict(np.ones((count, 130)))) == count
    assert network.engine.call.experimental_get_tracing_count() == 1


# --- The cache


def test_a_network_is_loaded_once_for_equal_content(content, monkeypatch):
    loaded = []
    real = carried.from_bytes
    monkeypatch.setattr(carried, "from_bytes", lambda *given: loaded.append(1) or real(*given))
    task = ForwardTask(content, "float32", 5, 1)
    first = prediction.forward(task)
    copied = ForwardTask(bytes(bytearray(content)), "float32", 5, 1)
    assert prediction.forward(copied) is first
    assert prediction.forward(pickle.loads(pickle.dumps(task))) is first
    assert len(loaded) == 1


@pytest.mark.parametrize("change", [{"batch_size": 6}, {"precision": "mixed_bfloat16"}])
def test_other_settings_are_another_network(content, change):
    task = ForwardTask(content, "float32", 5, 1)
    first = prediction.forward(task)
    assert prediction.forward(dataclasses.replace(task, **change)) is not first


def test_other_content_is_another_network(content):
    task = ForwardTask(content, "float32", 5, 1)
    other = ForwardTask(networks.to_bytes(image_network(seed=9)), "float32", 5, 1)
    assert not np.array_equal(
        prediction.forward(task).predict(IMAGES), prediction.forward(other).predict(IMAGES)
    )


def test_two_networks_are_kept_and_the_least_recently_used_one_goes():
    first, second, third = (task_of(vector_network(outputs)) for outputs in (2, 3, 4))
    kept_first, kept_second = prediction.forward(first), prediction.forward(second)
    for _ in range(3):
        assert prediction.forward(first) is kept_first
    assert prediction.forward(second) is kept_second
    assert prediction.forward(first) is kept_first
    kept_third = prediction.forward(third)
    assert prediction.forward(first) is kept_first
    assert prediction.forward(third) is kept_third
    assert prediction.forward(second) is not kept_second


# --- The task of a scoring run


def decoded(places, images):
    """A batch as reading leaves it; of every fourth file there are no pixels."""
    rows = [
        {
            schema.PATH: f"file:///{place}",
            schema.SPECIES: None,
            schema.CONTENT_HASH: f"hash {place}",
            schema.IMAGE: None if place % 4 == 2 else images[place].tobytes(),
            schema.REASON: "corrupt" if place % 4 == 2 else None,
            schema.STAGE: "decode" if place % 4 == 2 else None,
            schema.DETAIL: None,
        }
        for place in places
    ]
    return pa.RecordBatch.from_pylist(rows, tables.arrow_schema(schema.DECODED))


@pytest.mark.parametrize("cuts", [[0, 17], [0, 3, 3, 14, 17], list(range(18))], ids=len)
def test_a_scoring_task_gives_each_row_its_own_prediction_in_batches_of_the_forward_pass(content, cuts):
    task = ForwardTask(content, "float32", 5, 1)
    batches = [decoded(range(start, end), IMAGES) for start, end in itertools.pairwise(cuts)]
    scored = list(tasks.score_decoded(task, iter(batches)))
    assert [batch.num_rows for batch in scored] == [5, 5, 5, 2]
    layout = tables.arrow_schema(tasks.SCORED)
    assert [batch.schema.names for batch in scored] == [layout.names] * 4
    assert [str(batch.schema.field(schema.PROBABILITIES).type.value_type) for batch in scored] == [
        "float"
    ] * 4
    expected = prediction.forward(task).predict(IMAGES)
    for place, row in enumerate(each for batch in scored for each in batch.to_pylist()):
        assert row[schema.PATH] == f"file:///{place}"
        assert row[schema.CONTENT_HASH] == f"hash {place}"
        if place % 4 == 2:
            assert (row[schema.PROBABILITIES], row[schema.REASON]) == (None, "corrupt")
        else:
            assert row[schema.REASON] is None
            assert np.array_equal(np.array(row[schema.PROBABILITIES], "float32"), expected[place])


def test_a_scoring_task_without_a_single_image_gives_its_rejects(content):
    task = ForwardTask(content, "float32", 5, 1)
    (scored,) = tasks.score_decoded(task, iter([decoded([2, 6], IMAGES)]))
    assert scored.column(schema.PROBABILITIES).to_pylist() == [None, None]
    assert list(tasks.score_decoded(task, iter([]))) == []


# --- Views


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_outputs_are_the_mean_over_symmetries_of_the_image(content, count):
    """Those of NumPy, each once: with 8 of them a turned image gets what the image gets."""
    network = carried.from_bytes(content)
    symmetries = [lambda image: image, np.fliplr, np.flipud, lambda image: np.rot90(image, 2)]
    symmetries += [lambda image: np.rot90(image, 1), lambda image: np.rot90(image, 3)]
    symmetries += [lambda image: np.fliplr(np.rot90(image, 1)), lambda image: np.fliplr(np.rot90(image, 3))]
    expected = np.mean(
        [
            np.asarray(network(np.stack([np.ascontiguousarray(turn(image)) for image in IMAGES])))
            for turn in symmetries[:count]
        ],
        axis=0,
    )
    found = prediction.forward(ForwardTask(content, "float32", 16, 1, views=count)).predict(IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    plain = prediction.forward(ForwardTask(content, "float32", 16, 1)).predict(IMAGES)
    assert np.abs(found - plain).max() > 1e-3


def test_logits_of_a_mean_are_those_of_its_probabilities(content):
    task = ForwardTask(content, "float32", 16, 1, logits="softmax", views=4)
    (found,) = prediction.predict_rows(task, iter([rows_of(IMAGES)]))
    probabilities, logits = np.split(np.stack(list(found)), 2, axis=1)
    np.testing.assert_allclose(np.exp(logits), probabilities, rtol=1e-6)


@pytest.mark.parametrize(("count", "shape"), [(3, (8, 8, 3)), (8, (8, 9, 3)), (2, (5,))])
def test_views_that_there_are_not_are_refused(count, shape):
    with pytest.raises(OptionError, match=f"tta={count}"):
        prediction.check_views(count, shape)
