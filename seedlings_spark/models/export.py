"""A Keras network as an ONNX file, compared with Keras before anybody uses it.

The file takes uint8 pixels where the network takes images, else the network's own type; it gives `probabilities`, and
`logits` where the network's probabilities are made of such. All that stands between is in it.
"""

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError, first_line
from seedlings_spark.models import engines
from seedlings_spark.training import network as carried

# The largest that tf2onnx writes; ONNX Runtime reads later ones, too.
OPSET = 18
# Of probabilities from Keras', and of values above 1 as a share of the largest. Where the two best probabilities differ
# by more than twice this, the best one is the same.
TOLERANCE = 1e-5
# Rows that are drawn where none are given.
_DRAWN_ROWS = 32
_KERAS_ROWS = 32


def to_onnx(
    content: bytes, rows: NDArray[Any] | None = None, custom_objects: Mapping[str, Any] | None = None
) -> tuple[bytes, dict[str, Any]]:
    """The network of a `.keras` file as an ONNX file, and how it compares with Keras.

    Args:
        content: The content of the `.keras` file.
        rows: What to compare on, shape (rows, *input shape): uint8 pixels or numbers. Some are drawn without.
        custom_objects: Classes and functions that the network names.

    Returns:
        The content of the ONNX file; `opset`, `tf2onnx`, `compared_on` ("given" or "drawn"), `compared_rows`,
        and `largest_difference` of a probability.

    Raises:
        NetworkError: The network has no ONNX form, or one that gives other probabilities than Keras.
    """
    network = with_plain_names(carried.from_bytes(content, custom_objects))
    if len(network.output_shape) != 2:
        raise _no_form(f"gives {tuple(network.output_shape)[1:]} for each row", "one vector a row")
    compared_on = "drawn" if rows is None or not len(rows) else "given"
    if rows is None or not len(rows):
        rows = drawn_rows(network)
    # Before the export, which changes this copy of the network.
    expected = [
        np.asarray(network(_as_input(network, rows[start : start + _KERAS_ROWS]), training=False))
        for start in range(0, len(rows), _KERAS_ROWS)
    ]

    def where() -> str:
        """The layer, in a copy that has not been changed."""
        return failing_layer(with_plain_names(carried.from_bytes(content, custom_objects)), _check_layer)

    exported = _export(network, where)
    difference = _compare(exported, rows, np.concatenate(expected), where)
    about = {
        "opset": OPSET,
        "tf2onnx": engines.version("tf2onnx"),
        "compared_on": compared_on,
        "compared_rows": len(rows),
        "largest_difference": difference,
    }
    return exported, about


def failing_layer(network: Any, convert: Callable[[Any, tuple[tuple[int, ...], str]], object]) -> str:
    """Where a network fails to be converted, for an error's text: " at its layer ...", or "" if no layer alone does.

    Args:
        network: That has failed.
        convert: Converts a network of one layer, given the shape of one row and the type of what it takes, or raises.
    """
    import keras

    for layer in network._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.InputLayer | keras.Model):
            continue
        try:
            taken, given = layer.input, layer.output
        except AttributeError:
            continue  # it is within another one, which is looked at as a whole
        # Sums and products of several have every form; a network of one layer has one output.
        if not all(isinstance(each, keras.KerasTensor) for each in (taken, given)) or None in taken.shape[1:]:
            continue
        shape, dtype = (1, *taken.shape[1:]), taken.dtype
        try:
            alone = keras.Sequential([keras.Input(shape[1:], dtype=dtype), layer])
            convert(alone, (shape, dtype))
        except Exception:  # of no common base
            return f" at its layer {layer.name!r} ({type(layer).__name__})"
    return ""


def with_plain_names(network: Any) -> Any:
    """The network, with names of layers that TensorFlow takes for a scope: none begins with `_`. Changed in place."""
    for layer in network._flatten_layers():
        layer.name = layer.name.lstrip("_") or "layer"
    return network


# What a quantised network's accuracy may be lower by.
MOST_LOST = 0.005


def to_int8(content: bytes, rows: NDArray[np.uint8]) -> bytes:
    """An ONNX file whose convolutions and products are of whole numbers of 8 bits: post-training quantisation.

    Each output channel of a layer's weights has a scale of its own. Weights take 7 of the 8 bits: with all of them,
    sums of products overflow on processors without VNNI, which would then predict otherwise. The last product stays in
    float32, and what follows: probabilities of 256 different values would often be equal.

    Args:
        content: The content of an ONNX file that `to_onnx` has made.
        rows: Images by which the ranges of what layers give are found, shape (rows, height, width, 3).

    Raises:
        NetworkError: It cannot be quantised.
    """
    import onnx

    quantization = engines.import_quantization()
    batches = (rows[start : start + _KERAS_ROWS] for start in range(0, len(rows), _KERAS_ROWS))

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(batches, None)
            return None if batch is None else {engines.FEATURES: batch}

    with tempfile.TemporaryDirectory() as folder, _silent("root"):
        after = Path(folder) / "int8.onnx"
        try:
            model = onnx.load_from_string(content)
            quantization.quantize_static(
                model,
                str(after),
                Rows(),
                nodes_to_exclude=_head(model),
                quant_format=quantization.QuantFormat.QDQ,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        except Exception as error:  # of no common base
            raise NetworkError(
                f"a network that cannot be quantised ({first_line(error)})",
                "operations that ONNX Runtime quantises",
                "Use the version as it is",
            ) from error
        return after.read_bytes()


def _head(model: Any) -> list[str]:
    """The names of the last product's node and of all behind it."""
    products = [place for place, node in enumerate(model.graph.node) if node.op_type in ("Gemm", "MatMul")]
    return [node.name for node in model.graph.node[products[-1] :]] if products else []


def takes_images(network: Any) -> bool:
    """Whether a network's rows are images, whose values are pixels."""
    return len(network.input_shape) == 4


def drawn_rows(network: Any) -> NDArray[Any]:
    """Rows for a network: noise from black to full brightness for images, else normally distributed numbers, or zeros
    and ones where whole numbers are asked for, which are in every vocabulary.
    """
    generator, shape = np.random.default_rng(0), (_DRAWN_ROWS, *network.input_shape[1:])
    if takes_images(network):
        brightness = np.linspace(0, 1, _DRAWN_ROWS).reshape(-1, 1, 1, 1)
        return (generator.integers(0, 256, shape) * brightness).astype(np.uint8)
    if "float" in network.inputs[0].dtype:
        return generator.normal(size=shape)
    return generator.integers(0, 2, shape)


def _as_input(network: Any, rows: NDArray[Any]) -> NDArray[Any]:
    return rows.astype(network.inputs[0].dtype)


def _export(network: Any, where: Callable[[], str]) -> bytes:
    with runtime.quiet_import():
        import tensorflow as tf

        from seedlings_spark import problems

    logits = problems.logits_of(network)
    if logits is not None:
        import keras

        network = keras.Model(network.inputs, [network.outputs[0], logits])
    _fold_constants(network, tf)
    dtype = network.inputs[0].dtype

    def forward(features: Any) -> dict[str, Any]:
        found = network(tf.cast(features, dtype), training=False)
        outputs = found if isinstance(found, list | tuple) else [found]
        names = [engines.PROBABILITIES, engines.LOGITS]
        return {name: tf.identity(each, name) for name, each in zip(names, outputs, strict=False)}

    taken = "uint8" if takes_images(network) else dtype
    signature = [tf.TensorSpec((None, *network.input_shape[1:]), taken, name=engines.FEATURES)]
    try:
        model = _written(forward, signature)
        exported: bytes = model.SerializeToString()  # of at most 2 GB
    except Exception as error:  # of no common base
        what = f"tf2onnx cannot write ({first_line(error)})"
        raise _no_form(what, "operations that ONNX has", where()) from error
    if further := [each.name for each in model.graph.input if each.name != engines.FEATURES]:
        raise _no_form(f"would need {', '.join(further)} besides", "one input")
    return exported


def _written(forward: Callable[[Any], dict[str, Any]], signature: list[Any]) -> Any:
    """The ONNX model of a function of TensorFlow."""
    # What it says goes to stderr, from C++ too; its exceptions say the same.
    with _silent("tf2onnx"), runtime.quiet_import():
        import tensorflow as tf
        import tf2onnx

        model, _ = tf2onnx.convert.from_function(
            tf.function(forward, autograph=False),
            input_signature=signature,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_complement_of_erf, [])},
        )
    return model


def _check_layer(layer: Any, taken: tuple[tuple[int, ...], str]) -> None:
    """Raise if a network of one layer cannot be written in operations that ONNX has."""
    import onnx
    import tensorflow as tf

    def forward(features: Any) -> dict[str, Any]:
        return {"found": tf.identity(layer(features, training=False), "found")}

    shape, dtype = taken
    _fold_constants(layer, tf)
    model = _written(forward, [tf.TensorSpec((None, *shape[1:]), dtype, name=engines.FEATURES)])
    if any(not onnx.defs.has(node.op_type, node.domain) for node in model.graph.node):
        raise _no_form("uses what ONNX does not have", "operations that ONNX has")


def _complement_of_erf(graph: Any, node: Any, name: str, _: Any) -> None:
    """Write 1 - Erf(x) for Erfc(x), which GELU is made of; a handler of tf2onnx."""
    (features,), (output,) = node.input, node.output
    dtype, shape = graph.get_dtype(output), graph.get_shape(output)
    one = graph.make_const(f"{name}/one", np.ones((), "float32"))  # ONNX Runtime has no Erf in float64
    graph.remove_node(name)
    erf = graph.make_node("Erf", [features], name=f"{name}/erf", dtypes=[dtype], shapes=[shape])
    graph.make_node(
        "Sub", [one.output[0], erf.output[0]], outputs=[output], name=name, dtypes=[dtype], shapes=[shape]
    )


def _fold_constants(network: Any, tf: Any) -> None:
    """Turn the constants that layers hold, such as the mean of a Normalization, into NumPy's: tf2onnx makes inputs of
    TensorFlow's, and constants of these.
    """
    for layer in network._flatten_layers(include_self=False):
        for name, value in list(vars(layer).items()):
            if isinstance(value, tf.Tensor) and hasattr(value, "numpy"):
                setattr(layer, name, value.numpy())


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.disabled, logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.disabled, logger.level = before


def _compare(exported: bytes, rows: NDArray[Any], expected: NDArray[Any], where: Callable[[], str]) -> float:
    """The largest difference of a probability from Keras'.

    Raises:
        NetworkError: It is more than the tolerance, or ONNX Runtime cannot compute an operation.
    """
    try:
        engine = engines.OnnxRuntime(exported, threads=1)
    except NetworkError as error:
        # Whole, while what the error has found is cut to a line.
        unknown = re.search(r"No Op registered for (\w+)", str(error.__cause__ or error.found))
        what = f"uses {unknown[1]}, which ONNX does not have" if unknown else f"becomes {error.found}"
        raise _no_form(what, "operations that ONNX has", where()) from error
    size = engine.steady_rows(len(rows))
    try:
        parts = [engine.run(rows[start : start + size]) for start in range(0, len(rows), size)]
    except Exception as error:  # what the library raises has a class for each cause, of no common base
        raise _no_form(f"cannot be computed ({first_line(error)})", "operations of ONNX Runtime") from error
    found = np.concatenate(parts)
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise _no_form(
            f"gives probabilities that differ by {difference:.2g} from Keras'", f"at most {TOLERANCE:g}"
        )
    return difference


def _no_form(what: str, expected: str, where: str = "") -> NetworkError:
    return NetworkError(
        f"a network that has no ONNX form{where}: it {what}",
        expected,
        "Score it with --engine tensorflow, which auto chooses for it",
    )
