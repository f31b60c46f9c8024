"""Grad-CAM (Selvaraju et al. 2017): where in a picture a network finds the species that it predicts.

Of the last convolution, or what follows it in the same size: each channel counts by how much the species' logit
rises with it, in the mean over the picture, and what speaks against the species is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError
from seedlings_spark.training import network as carried

_ROWS = 32


@dataclass(frozen=True)
class SaliencyTask:
    """What a task needs to draw maps.

    Args:
        network: The content of a `.keras` file.
        threads: Threads within one operation.
        custom_objects: Classes and functions that the network names.
    """

    network: bytes
    threads: int
    custom_objects: Mapping[str, Any] = field(default_factory=dict)


def maps(task: SaliencyTask, pixels: NDArray[np.uint8], classes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """A map for each picture.

    Args:
        task: The network.
        pixels: Shape (pictures, height, width, 3).
        classes: Shape (pictures,): the class that each map is for.

    Returns:
        Shape (pictures, rows, columns), of the layer's own size: 255 where the class is found most, and all 0 where
        nothing speaks for it.

    Raises:
        NetworkError: The network has no convolution.
    """
    runtime.start(task.threads)
    return maps_of(carried.from_bytes(task.network, task.custom_objects), pixels, classes)


def maps_of(network: Any, pixels: NDArray[np.uint8], classes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """As `maps`, of a network that is loaded, and is not used for anything else: it is changed."""
    import tensorflow as tf

    network.trainable = True  # or frozen weights would hide what their inputs do
    split, gives_logits = _split(network)
    found = []
    for start in range(0, len(pixels), _ROWS):
        rows = tf.cast(pixels[start : start + _ROWS], network.inputs[0].dtype)
        places = tf.one_hot(classes[start : start + _ROWS], network.output_shape[-1])
        with tf.GradientTape() as tape:
            tape.watch(rows)
            features, outputs = split(rows, training=False)
            values = tf.cast(outputs, tf.float32)
            score = tf.reduce_sum(places * (values if gives_logits else tf.math.log(values + 1e-30)))
        slopes = tf.cast(tape.gradient(score, features), tf.float32)
        weights = tf.reduce_mean(slopes, axis=(1, 2), keepdims=True)
        found.append(tf.nn.relu(tf.reduce_sum(weights * tf.cast(features, tf.float32), axis=-1)).numpy())
    values = np.concatenate(found)
    highest = values.max(axis=(1, 2), keepdims=True)
    shares = np.divide(values, highest, out=np.zeros_like(values), where=highest > 0)
    return np.asarray(np.round(255 * shares), np.uint8)


def require_convolution(network: Any) -> None:
    """Refuse a network that has no map to show.

    Raises:
        NetworkError: It has no convolution.
    """
    _features(network)


def _split(network: Any) -> tuple[Any, bool]:
    """A network of the features and the logits; or of the probabilities, where its logits cannot be told."""
    import keras

    features = _features(network)
    outputs, gives_logits = logits_of(network)
    return keras.Model(network.inputs, [features, outputs]), gives_logits


def logits_of(network: Any) -> tuple[Any, bool]:
    """The tensor of a network's logits, and True; or of its probabilities, where its logits cannot be told, and False.

    The network is changed: nothing else can be done with it.
    """
    import keras

    outputs = network.outputs[0]
    operation, place, _ = outputs._keras_history
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    if type(operation).__name__ == "Dense" and activation == "softmax":
        operation.activation = keras.activations.linear
        return outputs, True
    if type(operation).__name__ == "Softmax" or activation == "softmax":
        return operation._inbound_nodes[place].input_tensors[0], True
    return outputs, False


def _features(network: Any) -> Any:
    """The last tensor that is as large as what the last convolution gives, which itself may be pooled at once."""
    size, found = None, None
    for layer in network.layers:
        is_convolution = any("Conv" in type(each).__name__ for each in _parts(layer))
        for node in getattr(layer, "_inbound_nodes", [])[-1:]:
            for tensor in node.output_tensors:
                if len(tensor.shape) == 4 and (is_convolution or tuple(tensor.shape[1:3]) == size):
                    size, found = tuple(tensor.shape[1:3]), tensor
    if found is None:
        raise NetworkError(
            f"a network {network.name!r} without a convolution",
            "one whose values still have a place in the picture",
            "Leave out --saliency",
        )
    return found


def _parts(layer: Any) -> list[Any]:
    """A layer, with those of a network that is one layer of another."""
    return [layer, *(part for each in getattr(layer, "layers", ()) for part in _parts(each))]
