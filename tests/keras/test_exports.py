"""Exports: each gives Keras' probabilities in what will use it, or is not there."""

import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from keras import layers
from PIL import Image

from seedlings_spark import choices, exports, images
from seedlings_spark.cluster import runtime
from seedlings_spark.corpus import synthetic
from seedlings_spark.errors import ClusterError, NetworkError, StorageError
from seedlings_spark.exports import coreml, web
from seedlings_spark.models import export as onnx_form
from seedlings_spark.models import networks
from seedlings_spark.models.store import INT8, NETWORK, ONNX, ModelStore
from seedlings_spark.training import network as carried
from tests import browser, triton
from tests.conftest import HANG_SECONDS, with_all

# In a process without TensorFlow.
OPENVINO = """
import sys
import numpy as np, openvino
core = openvino.Core()
model = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = model({"pixels": np.load(sys.argv[2])})
(probabilities,) = [each for each in model.outputs if "probabilities" in each.get_names()]
np.save(sys.argv[3], found[probabilities])
assert "tensorflow" not in sys.modules
"""
# The pixels that the page makes of a file beside it.
FITTED = """
const [name, height, width, aspect] = arguments, { fit } = await import("/pixels.js");
return [...await fit(await (await fetch("/" + name)).blob(), height, width, aspect)];
"""
SIZE, CLASSES = (32, 48), ["Mäuse*klee", "<b>Vogelmiere</b>", "Rübe", "Weizen", "Mais"]


def published(folder, network, *, with_onnx=True):
    content = carried.to_bytes(network)

    def build(place):
        (folder / "network").write_bytes(content)
        shutil.move(folder / "network", f"{place.removeprefix('file://')}/{NETWORK}")
        if with_onnx:
            form, _ = onnx_form.to_onnx(content)
            (folder / "network").write_bytes(form)
            shutil.move(folder / "network", f"{place.removeprefix('file://')}/{ONNX}")

    manifest = {"classes": CLASSES[: network.output_shape[1]], "image_size": list(network.input_shape[1:3])}
    return ModelStore(str(folder / "store"), "fields").publish(build, manifest)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A version, its network, pictures as files, and Keras' probabilities for their pixels."""
    folder = tmp_path_factory.mktemp("exports")
    keras.utils.set_random_seed(1)
    network = networks.fold_standardization(networks.plain(SIZE, 5), np.full(3, 120.0), np.full(3, 60.0))
    synthetic.write_corpus(folder / "pictures", images_per_species=1, size=90)
    files = sorted((folder / "pictures").rglob("*.png"))
    pixels = np.stack([images.decode(file.read_bytes(), SIZE) for file in files])
    samples = exports.Samples(pixels, "12 drawn plants")
    return published(folder, network), files, samples, network.predict(pixels, verbose=0)


def exported(known, form, folder, **more):
    version, _, samples, _ = known
    return exports.export(version, form, str(folder), samples=samples, **more)


def rule_of(folder):
    spec = importlib.util.spec_from_file_location("preprocessing", folder / "preprocessing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pixels


def test_an_onnx_file_and_the_code_beside_it_are_all_that_is_needed(known, tmp_path):
    _, files, _, expected = known
    made = exported(known, "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "network.onnx")
    pixels = np.stack([rule_of(tmp_path / "out")(file) for file in files])
    (found,) = session.run(["probabilities"], {"features": pixels})
    assert np.abs(found - expected).max() < 1e-5 and made.difference < 1e-5
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    assert (tmp_path / "out" / "labels.txt").read_text("utf-8").splitlines() == CLASSES
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text("utf-8")
    assert "Mäuse\\*klee" in card and "12 drawn plants" in card and "<b>" not in card.replace("\\<b", "")


def quantised(known, folder):
    """The version once more, in int8 too."""
    version, _, samples, _ = known
    made = onnx_form.to_int8(Path(version.onnx_path.removeprefix("file://")).read_bytes(), samples.pixels)

    def build(place):
        place = Path(place.removeprefix("file://"))
        shutil.copytree(version.path.removeprefix("file://"), place, dirs_exist_ok=True)
        (place / "manifest.json").unlink()
        (place / INT8).write_bytes(made)

    about = {"classes": CLASSES, "image_size": list(SIZE)}
    return ModelStore(str(folder / "store"), "fields").publish(build, about)


def test_a_version_in_int8_is_exported_in_both(known, tmp_path):
    _, _, samples, expected = known
    exports.export(quantised(known, tmp_path), "onnx", str(tmp_path / "out"), samples=samples)
    for name, most in (("network.onnx", 1e-5), ("network.int8.onnx", 0.2)):
        (found,) = onnxruntime.InferenceSession(tmp_path / "out" / name).run(
            ["probabilities"], {"features": samples.pixels}
        )
        assert np.abs(found - expected).max() < most


def test_a_saved_model_takes_files_and_pixels_and_openvino_reads_it(known, tmp_path):
    _, files, samples, expected = known
    exported(known, "savedmodel", tmp_path / "out")
    place = tmp_path / "out" / "1"
    tf = runtime.start(1)
    loaded = tf.saved_model.load(str(place))
    found = loaded.signatures["image_bytes"](image_bytes=tf.constant([file.read_bytes() for file in files]))
    # Of pictures that are resized there, a few pixels differ by a level.
    assert np.abs(found["probabilities"].numpy() - expected).max() < 1e-2
    assert [name.decode() for name in found["classes"].numpy()[0]] == CLASSES
    np.save(tmp_path / "pixels.npy", samples.pixels)
    command = [sys.executable, "-c", OPENVINO, place, tmp_path / "pixels.npy", tmp_path / "found.npy"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() < 1e-4


def test_a_file_for_litert_holds_the_names_and_gives_the_probabilities(known, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    _, files, _, expected = known
    exported(known, "litert", tmp_path / "out")
    file, pixels = tmp_path / "out" / "network.tflite", rule_of(tmp_path / "out")
    network = interpreter.Interpreter(str(file)).get_signature_runner()
    found = [network(pixels=pixels(each)[None])["probabilities"][0] for each in files]
    assert np.abs(found - expected).max() < 1e-5
    assert zipfile.ZipFile(file).read("labels.txt").decode().splitlines() == CLASSES
    assert described(file) == ("fields", "v0001", "pixels", 2, 1, *SIZE, [0.0], [1.0], "labels.txt", 2)


def described(file):
    """What Android's libraries read in a file: places of fields are those of their `metadata_schema.fbs`."""
    flatbuffers = pytest.importorskip("flatbuffers")
    model = pytest.importorskip("ai_edge_litert.schema_py_generated").Model.GetRootAs(file.read_bytes())
    entries = {model.Metadata(place).Name(): model.Metadata(place) for place in range(model.MetadataLength())}
    content = model.Buffers(entries[b"TFLITE_METADATA"].Buffer()).DataAsNumpy().tobytes()
    assert content[4:8] == b"M001"

    def at(table, place):
        return table.Pos + table.Offset(4 + 2 * place)

    def inner(table, place, *, first_of_many=False):
        where = table.Vector(table.Offset(4 + 2 * place)) if first_of_many else at(table, place)
        return flatbuffers.table.Table(content, table.Indirect(where))

    def text(table, place):
        return table.String(at(table, place)).decode()

    def number(table, place, kind):
        return table.Get(kind, at(table, place))

    numbers = flatbuffers.number_types
    whole = flatbuffers.table.Table(content, int.from_bytes(content[:4], "little"))
    subgraph = inner(whole, 3, first_of_many=True)
    picture, answer = (inner(subgraph, place, first_of_many=True) for place in (2, 3))
    image = inner(inner(picture, 3), 1)
    unit = inner(picture, 4, first_of_many=True)
    assert number(unit, 0, numbers.Uint8Flags) == 1
    labels = inner(answer, 6, first_of_many=True)
    options = inner(unit, 1)
    mean, std = (
        options.GetVectorAsNumpy(numbers.Float32Flags, options.Offset(4 + 2 * place)).tolist()
        for place in (0, 1)
    )
    return (
        text(whole, 0),
        text(whole, 2),
        text(picture, 0),
        number(inner(picture, 3), 0, numbers.Uint8Flags),
        number(image, 0, numbers.Int8Flags),
        *(number(inner(image, 1), place, numbers.Uint32Flags) for place in (1, 0)),
        mean,
        std,
        text(labels, 0),
        number(labels, 2, numbers.Int8Flags),
    )


def test_a_version_in_int8_is_so_for_litert_too_if_it_is_as_often_right(known, tmp_path, monkeypatch, caplog):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    version, (_, _, samples, expected) = quantised(known, tmp_path), known
    samples = exports.Samples(samples.pixels, samples.told, expected.argmax(1), samples.pixels)
    monkeypatch.setattr(onnx_form, "MOST_LOST", 1.0)
    exports.export(version, "litert", str(tmp_path / "out"), samples=samples)
    file = tmp_path / "out" / "network.int8.tflite"
    assert file.stat().st_size < (tmp_path / "out" / "network.tflite").stat().st_size / 2
    loaded = interpreter.Interpreter(str(file))
    loaded.allocate_tensors()
    kinds = [each["dtype"] for each in loaded.get_tensor_details()]
    assert kinds.count(np.int8) > len(kinds) / 2
    network = loaded.get_signature_runner()
    found = np.stack([network(pixels=each[None])["probabilities"][0] for each in samples.pixels])
    assert 1e-5 < np.abs(found - expected).max() < 0.1
    assert zipfile.ZipFile(file).read("labels.txt").decode().splitlines() == CLASSES
    monkeypatch.setattr(onnx_form, "MOST_LOST", -1.0)
    exports.export(version, "litert", str(tmp_path / "less"), samples=samples)
    assert not (tmp_path / "less" / "network.int8.tflite").exists()
    assert "network.int8.tflite is left out: on 12 drawn plants the accuracy falls from 1.0000" in caplog.text


def test_the_files_for_openvino_give_the_probabilities(known, tmp_path):
    pytest.importorskip("openvino")
    made = exported(known, "openvino", tmp_path / "out")
    assert made.difference < 1e-5
    assert {"network.xml", "network.bin", "MODEL_CARD.md"} <= {
        each.name for each in (tmp_path / "out").iterdir()
    }


def weights_of(package):
    """The arrays of float32 in a package for Core ML, by the layout of its file: blocks of 64 bytes."""
    content = (package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").read_bytes()
    place, found = 64, []
    while place + 64 <= len(content):
        sentinel, kind, size, offset = struct.unpack_from("<IIQQ", content, place)
        assert (sentinel, kind) == (0xDEADBEEF, 2)
        found.append(np.frombuffer(content, np.float32, size // 4, offset))
        place = -(-(offset + size) // 64) * 64
    return found


@pytest.mark.parametrize("form", ["plain", "residual"])
def test_a_package_for_core_ml_holds_the_weights_and_the_names(known, tmp_path, form):
    coremltools = pytest.importorskip("coremltools")
    keras.utils.set_random_seed(1)
    network = getattr(networks, form)(SIZE, 5)
    network = networks.fold_standardization(network, np.full(3, 120.0), np.full(3, 60.0))
    drawn = np.random.default_rng(0)
    network.set_weights([each + drawn.uniform(-0.1, 0.1, each.shape) for each in network.get_weights()])
    version, samples = published(tmp_path, network, with_onnx=False), known[2]
    made = exports.export(version, "coreml", str(tmp_path / "out"), samples=samples)
    expected = network.predict(samples.pixels, verbose=0)
    assert made.difference < 1e-5 < 1e-2 < expected.std(0).max()
    package = tmp_path / "out" / "Classifier.mlpackage"
    assert "no Apple device" in (tmp_path / "out" / "MODEL_CARD.md").read_text("utf-8")
    about = coremltools.proto.Model_pb2.Model()
    about.ParseFromString((package / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes())
    (image,) = about.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", *SIZE[::-1])
    assert image.type.imageType.colorSpace == coremltools.proto.FeatureTypes_pb2.ImageFeatureType.RGB
    assert about.description.predictedProbabilitiesName == "classLabel_probs"
    last = about.mlProgram.functions["main"].block_specializations["CoreML5"].operations[-1]
    (labels,) = last.inputs["classes"].arguments
    named = [each.immediateValue.tensor.strings.values[0] for each in labels.value.immediateValue.list.values]
    assert (last.type, named) == ("classify", CLASSES)
    if form == "plain":  # of the other, normalisations are folded into kernels
        held = {each.tobytes() for each in weights_of(package)}
        kernels = [each for each in network.get_weights() if each.ndim == 4]
        assert len(kernels) == 5
        assert all(
            np.ascontiguousarray(np.transpose(each, (3, 2, 0, 1))).tobytes() in held for each in kernels
        )
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    content = bytearray(weights.read_bytes())
    content[128:132] = np.float32(9).tobytes()  # the first weight
    weights.write_bytes(content)
    assert np.abs(coreml.run(tmp_path / "out", samples.pixels) - expected).max() > 1e-4


def test_a_repository_for_triton_has_what_its_backend_reads(known, tmp_path):
    _, files, _, expected = known
    exported(known, "triton", tmp_path / "out")
    place = tmp_path / "out" / "models" / "fields"
    assert "dims: [ 5 ]" in (place / "config.pbtxt").read_text()
    assert json.loads((place / "1" / "classes.json").read_text("utf-8")) == CLASSES
    compile((place / "1" / "model.py").read_text("utf-8"), "model.py", "exec")
    pixels = np.stack([rule_of(place / "1")(file) for file in files])
    (found,) = onnxruntime.InferenceSession(place / "1" / "network.onnx").run(None, {"features": pixels})[:1]
    assert np.abs(found - expected).max() < 1e-5


@with_all
@pytest.mark.filterwarnings(
    "ignore:Protobuf gencode version:UserWarning"
)  # Triton's client, of a newer protobuf
def test_a_triton_server_answers_over_http_and_grpc_with_keras_probabilities(known, tmp_path, monkeypatch):
    _, files, _, expected = known
    exported(known, "triton", tmp_path / "out")
    contents = [file.read_bytes() for file in files]
    try:
        monkeypatch.syspath_prepend(triton.client())
        with triton.server(tmp_path / "out" / "models", tmp_path) as (http, address):
            import tritonclient.grpc as over_grpc

            given = over_grpc.InferInput("image_bytes", [len(contents), 1], "BYTES")
            given.set_data_from_numpy(np.array(contents, object)[:, None])
            no_picture = over_grpc.InferInput("image_bytes", [1, 1], "BYTES")
            no_picture.set_data_from_numpy(np.array([[b"none"]], object))
            with over_grpc.InferenceServerClient(address) as client:
                found = client.infer("fields", [given])
                with pytest.raises(
                    over_grpc.InferenceServerException, match="an image that cannot be decoded"
                ):
                    client.infer("fields", [no_picture])
                assert client.is_model_ready("fields", "1")
            over_http = asked_over_http(http, contents)
    except triton.NoServerError as error:
        pytest.skip(str(error))
    assert np.abs(found.as_numpy("probabilities") - expected).max() < 1e-5
    assert [[name.decode() for name in row] for row in found.as_numpy("classes")] == [CLASSES] * len(files)
    assert np.abs(over_http - expected).max() < 1e-5


def asked_over_http(address, contents):
    """Probabilities by KServe's protocol with binary tensors, as curl would ask."""
    tensor = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    given = {"name": "image_bytes", "shape": [len(contents), 1], "datatype": "BYTES"}
    head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": len(tensor)}}]}).encode()
    asked = urllib.request.Request(f"{address}/v2/models/fields/infer", head + tensor)
    asked.add_header("Inference-Header-Content-Length", str(len(head)))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as answer:
        outputs = {each["name"]: each for each in json.load(answer)["outputs"]}
    probabilities = outputs["probabilities"]
    return np.reshape(probabilities["data"], probabilities["shape"])


@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # of MLflow's own models
def test_a_model_of_mlflow_takes_files(known, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny, which brings thirty packages, is not here")
    _, files, _, expected = known
    exported(known, "mlflow", tmp_path / "out")
    table = pd.DataFrame({"image_bytes": [file.read_bytes() for file in files]})
    found = mlflow.pyfunc.load_model(str(tmp_path / "out" / "model")).predict(table)
    assert np.abs(np.array(found["probabilities"].tolist()) - expected).max() < 1e-5
    assert found["predicted_species"].tolist() == [CLASSES[each] for each in expected.argmax(1)]


def test_an_export_that_differs_is_not_left_behind_nor_put_over_something(known, tmp_path):
    with pytest.raises(NetworkError, match=r"onnx of fields v0001, .* differ by .* on 12 drawn plants"):
        exported(known, "onnx", tmp_path / "out", tolerance=1e-30)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="which exists"):
        exported(known, "onnx", tmp_path / "out")


def test_names_that_tensorflow_takes_for_no_scope_are_exported(tmp_path):
    stack = [layers.Rescaling(1 / 255, name="_scaled"), layers.Flatten(name="__flat")]
    network = keras.Sequential(
        [keras.Input((8, 8, 3)), *stack, layers.Dense(2, "softmax", name="_best")], name="_whole"
    )
    version = published(tmp_path, network, with_onnx=False)
    for form in ("savedmodel", "onnx"):
        assert exports.export(version, form, str(tmp_path / form)).difference < 1e-5


@keras.saving.register_keras_serializable("exports")
class Outside(layers.Layer):
    """A layer that is computed by Python, so by no format but Keras' own."""

    def call(self, inputs):
        tf = runtime.start(1)
        return tf.ensure_shape(tf.numpy_function(lambda rows: rows / 255, [inputs], tf.float32), inputs.shape)


def test_a_network_that_a_format_cannot_hold_is_refused_by_name(tmp_path):
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(0.5),
            Outside(name="mine"),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    version = published(tmp_path, network, with_onnx=False)
    layer = r"form at its layer 'mine' \(Outside\)"
    refused = {"onnx": f"{layer}: it uses PyFunc", "litert": layer, "savedmodel": "fresh TensorFlow"}
    for form, said in refused.items():
        with pytest.raises(NetworkError, match=said):
            exports.export(version, form, str(tmp_path / form))
        assert not (tmp_path / form).exists()


@pytest.mark.skipif(bool(browser.MISSING) or not shutil.which("npm"), reason=browser.MISSING or "no npm")
def test_a_page_says_in_a_browser_what_keras_says(known, tmp_path):
    _, files, _, expected = known
    exported(known, "web", tmp_path / "out")
    others = [files[0], tmp_path / "deep.png"]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 97, 4), dtype=np.uint8)).save(others[1])
    for file in others:
        shutil.copy(file, tmp_path / "out" / file.name)
    no_picture = tmp_path / "no picture.png"
    no_picture.write_bytes(b"none")
    asked = "import('./predict.js').then(({models}) => models())"
    with browser.served(tmp_path / "out") as address, browser.browser() as page:
        page.open(address)
        page.wait("return document.body.dataset.ready && navigator.serviceWorker.controller")
        assert page.run(f"return {asked}")[0]["classes"] == CLASSES
        for file in others:
            for aspect in choices.ASPECTS:
                found = page.result(FITTED, file.name, *SIZE, aspect)
                assert found == images.decode(file.read_bytes(), SIZE, aspect=aspect).ravel().tolist(), aspect
        page.offline()
        page.open(address)
        page.wait("return document.body.dataset.ready")
        page.upload("#choose", *files, no_picture)
        count = len(files) + 1
        page.wait(f"return document.querySelectorAll('[data-done]').length == {count}")
        shown = page.run("return [...document.querySelectorAll('.result')].map(each => each.innerText)")
    assert "no picture that this browser can read" in shown[0]
    for text, probabilities in zip(reversed(shown[1:]), expected, strict=True):
        numbers = dict(re.findall(r"^(.+)\n([0-9.]+)%$", text, re.MULTILINE))
        for name, probability in zip(CLASSES, probabilities, strict=True):
            assert abs(float(numbers[name]) - 100 * probability) <= 0.06


def test_a_page_is_not_made_with_half_of_its_runtime(known, tmp_path):
    with pytest.raises(ClusterError, match=r"without ort\.wasm\.min\.mjs"):
        exported(known, "web", tmp_path / "out", runtime_folder=str(tmp_path))
    assert not (tmp_path / "out").exists()
    assert web.PAGE.is_dir()
