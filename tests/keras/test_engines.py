"""What computes an ONNX file: the predictions of Keras, the same bits in any company, and no TensorFlow."""

import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
from keras import layers

from seedlings_spark import problems
from seedlings_spark.choices import ONNXRUNTIME, OPENVINO
from seedlings_spark.errors import ClusterError, NetworkError
from seedlings_spark.models import engines, export, networks, prediction
from seedlings_spark.models.prediction import ForwardTask

PIXELS = np.random.default_rng(3).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
NUMBERS = np.random.default_rng(3).normal(size=(70, 131)) * 10


def of_images(name):
    network = networks.BY_NAME[name]((32, 32), 5)
    return networks.fold_standardization(network, np.full(3, 120.0), np.full(3, 60.0))


def per_pixel():
    generator = np.random.default_rng(0)
    return networks.fold_standardization(
        networks.plain((32, 32), 5),
        generator.uniform(0, 255, (32, 32, 3)),
        generator.uniform(60, 90, (32, 32, 3)),
    )


def of_numbers():
    return keras.Sequential(
        [keras.Input((131,)), layers.Dense(67, activation="tanh"), layers.Dense(3, activation="softmax")]
    )


def of_logits():
    trained = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(4)]
    )
    return problems.with_head(trained, ("softmax",))


def of_gelu():
    stack = [
        layers.Rescaling(1 / 64, -2),
        layers.Conv2D(8, 3, activation="gelu"),
        layers.GlobalMaxPooling2D(),
    ]
    return keras.Sequential([keras.Input((32, 32, 3)), *stack, layers.Dense(3, activation="softmax")])


def normalising():
    adapted = layers.Normalization()
    adapted.adapt(NUMBERS)
    return keras.Sequential([keras.Input((131,)), adapted, layers.Dense(1, activation="sigmoid")])


NETWORKS = {
    "plain": (lambda: of_images("plain"), PIXELS),
    "residual": (lambda: of_images("residual"), PIXELS),
    "a mean for each pixel": (per_pixel, PIXELS),
    "logits": (of_logits, PIXELS),
    "an activation that tf2onnx lacks": (of_gelu, PIXELS),
    "numbers": (of_numbers, NUMBERS),
    "an adapted layer, one output": (normalising, NUMBERS),
}


@pytest.fixture(scope="module", params=NETWORKS)
def known(request):
    """A network, its rows, and its ONNX file."""
    make, rows = NETWORKS[request.param]
    keras.utils.set_random_seed(4)
    network = make()
    exported, about = export.to_onnx(networks.to_bytes(network), rows)
    assert about["compared_on"] == "given" and about["compared_rows"] == 70
    return network, rows, exported


of_each_engine = pytest.mark.parametrize("engine", [ONNXRUNTIME, OPENVINO])


def task_of(exported, engine=ONNXRUNTIME, batch_size=16, threads=1, precision="float32"):
    return ForwardTask(exported, precision, batch_size, threads, engine=engine)


@of_each_engine
def test_predictions_are_those_of_keras(known, engine):
    network, rows, exported = known
    expected = network.predict(rows.astype("float32"), verbose=0)
    found = prediction.forward(task_of(exported, engine)).predict(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(np.unique(found, axis=0)) > 60


@pytest.mark.parametrize(
    ("engine", "precision"),
    [(ONNXRUNTIME, "float32"), (OPENVINO, "float32"), (OPENVINO, "mixed_bfloat16")],
)
def test_the_bits_of_a_row_depend_neither_on_the_rows_beside_it_nor_on_batches_nor_on_threads(
    known, engine, precision
):
    _, rows, exported = known
    expected = prediction.forward(task_of(exported, engine, precision=precision)).predict(rows)
    for batch_size, threads in ((1, 1), (7, 1), (64, 1), (64, 2), (64, 3)):
        network = prediction.forward(task_of(exported, engine, batch_size, threads, precision))
        assert np.array_equal(network.predict(rows), expected)
        assert np.array_equal(network.predict(rows[::-1]), expected[::-1])
        cuts = [rows[:1], rows[1:6], rows[6:6], rows[6:39], rows[39:]]
        assert np.array_equal(np.concatenate([network.predict(cut) for cut in cuts]), expected)
    if engine == ONNXRUNTIME:
        # Also where it is not padded to the same number of rows: the kernels themselves compute alike.
        loaded = engines.OnnxRuntime(exported, 1)
        for size in (1, 2, 3, 5, 8, 13, 64):
            parts = [loaded.run(rows[start : start + size]) for start in range(0, 70, size)]
            assert np.array_equal(np.concatenate(parts), expected)


def test_in_bfloat16_the_answers_are_near_and_their_sums_are_one():
    keras.utils.set_random_seed(4)
    network = of_images("residual")
    exported, _ = export.to_onnx(networks.to_bytes(network), PIXELS)
    expected = network.predict(PIXELS.astype("float32"), verbose=0)
    found = prediction.forward(task_of(exported, OPENVINO, precision="mixed_bfloat16")).predict(PIXELS)
    np.testing.assert_allclose(found, expected, atol=0.05)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@of_each_engine
def test_a_quantised_network_answers_nearly_the_same_and_alike_in_any_company(engine):
    keras.utils.set_random_seed(4)
    network = of_images("residual")
    exported, _ = export.to_onnx(networks.to_bytes(network), PIXELS)
    quantised = export.to_int8(exported, PIXELS[:40])
    weights = {each.name: each.data_type for each in onnx.load_from_string(quantised).graph.initializer}
    assert list(weights.values()).count(onnx.TensorProto.INT8) >= 5 and len(quantised) < len(exported) / 2
    expected = network.predict(PIXELS.astype("float32"), verbose=0)
    found = prediction.forward(task_of(quantised, engine, precision="int8")).predict(PIXELS)
    assert 0 < np.abs(found - expected).max() < 0.1
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert len(np.unique(found, axis=0)) == 70  # more than 8 bits tell them apart
    for batch_size, threads in ((1, 1), (7, 2)):
        again = prediction.forward(task_of(quantised, engine, batch_size, threads, "int8"))
        assert np.array_equal(again.predict(PIXELS[::-1]), found[::-1])
        cuts = [PIXELS[:1], PIXELS[1:6], PIXELS[6:]]
        assert np.array_equal(np.concatenate([again.predict(cut) for cut in cuts]), found)


def test_what_cannot_be_quantised_is_said_to_be_so():
    with pytest.raises(NetworkError, match="cannot be quantised"):
        export.to_int8(b"no network", PIXELS)


@of_each_engine
def test_logits_come_behind_the_probabilities(engine):
    keras.utils.set_random_seed(4)
    network = of_logits()
    exported, _ = export.to_onnx(networks.to_bytes(network))
    task = ForwardTask(exported, "float32", 8, 1, logits="softmax", engine=engine)
    found = prediction.forward(task).predict(PIXELS)
    logits = problems.without_head(network).predict(PIXELS.astype("float32"), verbose=0)
    np.testing.assert_allclose(found[:, 4:], logits, atol=1e-5)
    assert prediction.forward(task).gives_logits
    assert prediction.forward(task).predict(PIXELS[:0]).shape == (0, 8)


def test_where_no_rows_are_given_some_are_drawn():
    _, about = export.to_onnx(networks.to_bytes(of_numbers()))
    assert about["compared_on"] == "drawn" and about["compared_rows"] > 0
    assert 0 <= about["largest_difference"] <= 1e-5


def test_a_network_that_onnx_has_no_operation_for_is_said_to_be_so():
    """By its layer, though others before it have layers within them, or several outputs."""
    inputs = keras.Input((6,))
    rows = layers.Reshape((3, 2))(inputs)
    attended = layers.MultiHeadAttention(1, 2)(rows, rows)
    states, *_ = layers.GRU(6, return_state=True, unroll=True)(attended)
    name = "discretization_of_states_into_three_bins_" + "long" * 30  # longer than what is said of an error
    binned = layers.Discretization(bin_boundaries=[0.0, 1.0], name=name)(states)
    outputs = layers.Dense(3, activation="softmax")(layers.Flatten()(layers.Embedding(5, 2)(binned)))
    network = keras.Model(inputs, outputs)
    with pytest.raises(
        NetworkError, match=r"form at its layer 'discretization.*' \(Discretization\): it uses Bucketize,"
    ):
        export.to_onnx(networks.to_bytes(network))
    with pytest.raises(NetworkError, match=r"no ONNX form: it gives \(32, 32, 3\) for each row"):
        export.to_onnx(networks.to_bytes(keras.Sequential([keras.Input((32, 32, 3)), layers.Softmax()])))


def test_a_network_that_predicts_otherwise_in_onnx_is_refused(monkeypatch):
    """Keras' own answer is the other one here: no exporter that is wrong is at hand."""
    other = export.to_onnx(networks.to_bytes(of_images("plain")))[0]
    monkeypatch.setattr(export, "_export", lambda *_: other)
    with pytest.raises(NetworkError, match=r"differ by .* from Keras'"):
        export.to_onnx(networks.to_bytes(of_images("residual")))


@of_each_engine
def test_what_cannot_be_computed_is_said_to_be_so(engine, monkeypatch):
    exported, _ = export.to_onnx(networks.to_bytes(of_images("plain")))
    for damaged in (exported[:1000], b"", b"\x00" * 100):
        with pytest.raises(NetworkError, match="does not load"):
            prediction.forward(task_of(damaged, engine))
    with pytest.raises(NetworkError, match="float64 for a network whose ONNX form takes pixels"):
        prediction.forward(task_of(exported, engine)).predict(PIXELS.astype("float64"))
    monkeypatch.setitem(sys.modules, engine, None)  # as in an archive of an earlier release
    with pytest.raises(ClusterError, match=f"no {engine} in this Python"):
        prediction.forward(task_of(exported, engine, threads=2))


@of_each_engine
def test_weights_that_lie_in_another_file_of_the_machine_are_not_read(engine, tmp_path):
    (tmp_path / "secret").write_bytes(np.arange(4, dtype="float32").tobytes())
    weights = onnx.TensorProto(name="weights", data_type=1, dims=[4], data_location=1)
    weights.external_data.add(key="location", value=str(tmp_path / "secret"))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["features", "weights"], ["probabilities"])],
        "hostile",
        [value("features", 1, [None, 4])],
        [value("probabilities", 1, [None, 4])],
        [weights],
    )
    hostile = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(NetworkError, match="does not load"):
        prediction.forward(task_of(hostile.SerializeToString(), engine))


@of_each_engine
def test_no_tensorflow_is_loaded_to_predict(tmp_path, engine):
    exported, _ = export.to_onnx(networks.to_bytes(of_images("plain")))
    (tmp_path / "task").write_bytes(pickle.dumps((task_of(exported, engine), PIXELS)))
    program = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from seedlings_spark.models import prediction\n"
        "task, rows = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "found = prediction.forward(task).predict(rows)\n"
        "assert not {'tensorflow', 'keras', 'tf2onnx', 'onnx'} & set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]\n"
        "assert 'libtensorflow' not in Path('/proc/self/maps').read_text()\n"
        "Path(sys.argv[2]).write_bytes(pickle.dumps(found))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "task"), str(tmp_path / "found")]
    subprocess.run(arguments, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    found = pickle.loads((tmp_path / "found").read_bytes())
    assert np.array_equal(found, prediction.forward(task_of(exported, engine)).predict(PIXELS))
