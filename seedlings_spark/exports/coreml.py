"""A version as a Core ML model, for iPhones, iPads and Macs.

Core ML itself is on Apple's machines only. What coremltools has written is read again, and its operations are computed
by TensorFlow, one by one: so its weights, its order of operations and what they are told are compared with Keras, and
an operation that is not known here is refused. How an Apple device computes them is not.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.cluster import runtime
from seedlings_spark.errors import ClusterError, NetworkError, first_line
from seedlings_spark.exports.source import Source

PACKAGE = "Classifier.mlpackage"
_IMAGE = "image"
_log = logging.getLogger(__name__)
_REMEDY = "Use --format onnx or litert: ONNX Runtime and LiteRT are on iPhones, too"

TAKES = (
    "`image`, an RGB image of {width} x {height} pixels (a `CVPixelBuffer`, or any picture through Vision)"
)
GIVES = "`classLabel`, the most probable class, and `classLabel_probs`, a dictionary of {num_classes} probabilities"
VERIFIED_BY = (
    "TensorFlow {tensorflow}, which computed the operations that coremltools {coremltools} had written, one by one"
    " (Core ML is on Apple's machines only: no Apple device has computed it)"
)
USE = """\
Put `Classifier.mlpackage` into an Xcode project (iOS 15, macOS 12 or later), which makes the class `Classifier` of it:

    let network = try VNCoreMLModel(for: Classifier(configuration: MLModelConfiguration()).model)
    let request = VNCoreMLRequest(model: network)
    request.imageCropAndScaleOption = .centerCrop
    try VNImageRequestHandler(url: picture).perform([request])
    let best = (request.results as? [VNClassificationObservation])?.first
    print(best?.identifier ?? "", best?.confidence ?? 0)

`.centerCrop` is for a version whose rule above cuts out, `.scaleFill` for one that squeezes, `.scaleFit` for one with
black bars. Vision scales by a filter of its own; where that matters, scale by the rule above before. It computes in
float32. Compare some pictures on a device with what `serve` or `score` say of them before you rely on it.
"""


def write(source: Source, folder: Path) -> None:
    """Write the package.

    Raises:
        ClusterError: The extra `coreml` is not installed.
        NetworkError: An operation of the network is none of Core ML's.
    """
    coremltools = _imported()
    tf = runtime.start(1)
    network, version = source.network(), source.version
    shape = (1, *version.image_size, 3)

    def outputs(image: Any) -> Any:
        return tf.identity(network(tf.cast(image, network.inputs[0].dtype), training=False))

    function = tf.function(outputs, [tf.TensorSpec(shape, tf.float32, name=_IMAGE)], autograph=False)
    options = {
        "inputs": [coremltools.ImageType(name=_IMAGE, shape=shape)],
        "classifier_config": coremltools.ClassifierConfig(list(version.classes)),
        "compute_precision": coremltools.precision.FLOAT32,
        "minimum_deployment_target": coremltools.target.iOS15,
    }
    failed = None
    with runtime.quiet_import():  # it tells how far it is
        try:
            traced = function.get_concrete_function()
            made = coremltools.convert([traced], "tensorflow", skip_model_load=True, **options)
            made.short_description = f"{version.name} {version.version}"
            made.save(str(folder / PACKAGE))
        except Exception as error:  # of no common base
            failed = error
    if failed is not None:
        said = first_line(failed)[:300]
        raise NetworkError(
            f"a network that has no Core ML form ({said})", "operations of Core ML", _REMEDY
        ) from failed
    _check(source, coremltools.models.MLModel(str(folder / PACKAGE), skip_model_load=True).get_spec())


def _check(source: Source, spec: Any) -> None:
    """Refuse a package that does not say what its card says: an RGB image of the size, the classes in their order."""
    (image,), version = spec.description.input, source.version
    found: tuple[Any, ...] = (image.name, image.type.imageType.height, image.type.imageType.width)
    found += (image.type.imageType.colorSpace == image.type.imageType.RGB,)
    ((_, function),) = spec.mlProgram.functions.items()
    (block,) = function.block_specializations.values()
    held = block.operations[-1].inputs["classes"].arguments[0].value.immediateValue.list.values
    classes = [each.immediateValue.tensor.strings.values[0] for each in held]
    if (*found, classes) != (_IMAGE, *version.image_size, True, list(version.classes)):
        raise NetworkError(
            f"a Core ML model of {found} and {len(classes)} classes",
            f"an RGB image of {version.image_size} and the classes of {version.name} {version.version}",
            _REMEDY,
        )


def run(folder: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of what was written, its operations computed by TensorFlow, one by one.

    Raises:
        NetworkError: It has an operation that is not known here.
    """
    tf, coremltools = runtime.start(1), _imported()
    package = coremltools.models.MLModel(str(folder / PACKAGE), skip_model_load=True)
    with runtime.quiet_import():
        from coremltools.converters.mil.frontend.milproto.load import load

        spec = package.get_spec()
        program = load(spec, spec.specificationVersion, package.weights_dir)
    operations = [each for each in program.functions["main"].operations if each.op_type != "const"]
    computed = _computed_by(tf)
    for each in operations[:-1]:
        if each.op_type not in computed:
            raise NetworkError(
                f"a network with Core ML's operation {each.op_type}, which cannot be compared with Keras here",
                f"one of {', '.join(computed)}",
                _REMEDY,
            )

    def probabilities(image: Any) -> Any:
        known = {_IMAGE: image}

        def value(given: Any) -> Any:
            if isinstance(given, list | tuple):
                return [value(each) for each in given]
            return known[given.name] if given.val is None else given.val

        for each in operations[:-1]:
            given = {name: value(of) for name, of in each.inputs.items() if of is not None}
            known[each.outputs[0].name] = computed[each.op_type](given)
        return value(operations[-1].inputs["probabilities"])

    _log.warning(
        "TensorFlow computes what was written: Core ML is on Apple's machines only, and none has tried it"
    )
    one = tf.function(probabilities, autograph=False)
    images = np.moveaxis(rows, 3, 1).astype(np.float32)  # Core ML has channels before rows and columns
    return np.concatenate([one(tf.constant(image[None])) for image in images])


def _computed_by(tf: Any) -> Mapping[str, Callable[[dict[str, Any]], Any]]:
    """Of each operation of Core ML's language MIL that is known here, what computes it from its inputs."""
    return {
        "conv": lambda given: _convolution(tf, given),
        "max_pool": lambda given: _pooled(tf, tf.nn.max_pool2d, -np.inf, given),
        "avg_pool": lambda given: _pooled(tf, tf.nn.avg_pool2d, 0.0, given),
        "batch_norm": _normalized,
        "pad": lambda given: _with_border(tf, given),
        "matmul": lambda given: _product(tf, given),
        "linear": lambda given: tf.matmul(given["x"], given["weight"], transpose_b=True) + given["bias"],
        "add": lambda given: given["x"] + given["y"],
        "sub": lambda given: given["x"] - given["y"],
        "mul": lambda given: given["x"] * given["y"],
        "real_div": lambda given: given["x"] / given["y"],
        "relu": lambda given: tf.nn.relu(given["x"]),
        "relu6": lambda given: tf.nn.relu6(given["x"]),
        "clip": lambda given: tf.clip_by_value(given["x"], given["alpha"], given["beta"]),
        "sigmoid": lambda given: tf.sigmoid(given["x"]),
        "silu": lambda given: tf.nn.silu(given["x"]),
        "tanh": lambda given: tf.tanh(given["x"]),
        "softmax": lambda given: tf.nn.softmax(given["x"], int(given["axis"])),
        "concat": lambda given: tf.concat(given["values"], int(given["axis"])),
        "reduce_mean": lambda given: tf.reduce_mean(given["x"], given["axes"], bool(given["keep_dims"])),
        "reshape": lambda given: tf.reshape(given["x"], given["shape"]),
        "reverse": lambda given: tf.reverse(given["x"], given["axes"]),
        "transpose": lambda given: tf.transpose(given["x"], given["perm"]),
    }


def _convolution(tf: Any, given: Mapping[str, Any]) -> Any:
    groups, weight = int(given.get("groups", 1)), given["weight"]
    moved, padding = _padded(tf, given, 0.0)
    options = {
        "strides": _pair(given, "strides"),
        "dilations": _pair(given, "dilations"),
        "padding": padding,
    }
    if groups == moved.shape[-1] > 1:
        kernel = np.transpose(weight, (2, 3, 0, 1)).reshape(*weight.shape[2:], groups, -1)
        options["strides"] = [1, *options["strides"], 1]
        found = tf.nn.depthwise_conv2d(moved, kernel, **options)
    else:
        kernels = np.split(np.transpose(weight, (2, 3, 1, 0)), groups, -1)
        parts = zip(tf.split(moved, groups, -1), kernels, strict=True)
        found = tf.concat([tf.nn.conv2d(part, kernel, **options) for part, kernel in parts], -1)
    return _channels_first(tf, found + given.get("bias", np.float32(0)))


def _pooled(tf: Any, pool: Any, filled: float, given: Mapping[str, Any]) -> Any:
    moved, padding = _padded(tf, given, filled)
    sizes = [int(each) for each in given["kernel_sizes"]]
    return _channels_first(tf, pool(moved, sizes, _pair(given, "strides"), padding))


def _normalized(given: Mapping[str, Any]) -> Any:
    parts = [np.reshape(given[name], (-1, 1, 1)) for name in ("mean", "variance", "gamma", "beta")]
    mean, variance, gamma, beta = parts
    return (given["x"] - mean) * (gamma / np.sqrt(variance + given["epsilon"])) + beta


def _with_border(tf: Any, given: Mapping[str, Any]) -> Any:
    pairs = np.reshape(given["pad"], (-1, 2))
    whole = np.concatenate([np.zeros((given["x"].shape.rank - len(pairs), 2), np.int32), pairs])
    mode = {"constant": "CONSTANT", "reflect": "REFLECT"}[str(given["mode"])]
    return tf.pad(given["x"], whole, mode, float(given["constant_val"]))


def _product(tf: Any, given: Mapping[str, Any]) -> Any:
    turned = {f"transpose_{end}": bool(given.get(f"transpose_{name}", False)) for end, name in ("ax", "by")}
    return tf.matmul(given["x"], given["y"], **turned)


def _pair(given: Mapping[str, Any], name: str) -> list[int]:
    return [int(each) for each in given.get(name, (1, 1))]


def _padded(tf: Any, given: Mapping[str, Any], filled: float) -> tuple[Any, str]:
    """The input with channels last, as TensorFlow computes it on a processor, padded; and what is left of padding."""
    moved, kind = tf.transpose(given["x"], (0, 2, 3, 1)), str(given.get("pad_type", "valid"))
    if bool(given.get("ceil_mode", False)) or kind not in ("valid", "same", "custom"):
        raise NetworkError(
            f"a network with a Core ML layer padded by {kind}", "valid, same or custom", _REMEDY
        )
    around = np.reshape(given["pad"], (-1, 2)) if kind == "custom" else np.zeros((2, 2), int)
    if around.any() and "exclude_padding_from_average" in given and given["exclude_padding_from_average"]:
        raise NetworkError("a network with Core ML's mean over padded borders", "valid or same", _REMEDY)
    if kind == "same" and not given.get("exclude_padding_from_average", True):
        raise NetworkError("a network with Core ML's mean that counts borders", "valid", _REMEDY)
    if around.any():
        moved = tf.pad(moved, [(0, 0), *around.tolist(), (0, 0)], constant_values=filled)
    return moved, "SAME" if kind == "same" else "VALID"


def _channels_first(tf: Any, rows: Any) -> Any:
    return tf.transpose(rows, (0, 3, 1, 2))


def _imported() -> Any:
    # It warns of every version of TensorFlow that it was not tried with, and of what only Apple's machines have.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        import coremltools
    except ImportError as error:
        raise ClusterError(
            f"no coremltools in this Python ({error})",
            "the extra `coreml` of this package",
            "Install seedlings-spark[coreml]",
        ) from None
    return coremltools
