"""Networks by name, or from a file; folding a mean and a std into one.

Every network takes raw pixels, 0 to 255, and begins with the standardisation that it was trained with. So what
is stored is complete: whoever loads it needs no scaler, and no table of scaled pixels ever exists.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import choices
from seedlings_spark.cluster import runtime
from seedlings_spark.config.suggestions import nearest
from seedlings_spark.errors import NetworkError, OptionError, first_line
from seedlings_spark.models import backbones, pretrained
from seedlings_spark.training import network as carried

with runtime.quiet_import():
    import keras
    from keras import layers

# Its files in the folder of a stage, or of a version.
FILE, ONNX_FILE = "network.keras", "network.onnx"
# The largest network file that is read, as it is and unpacked.
MAX_NETWORK_BYTES = 2 * 1024**3
_MOST_DROPPED = 0.9
# The layer behind a network whose outputs are numbers in the unit of the labels.
_UNIT = "in_unit_of_labels"
# A pixel that never changes in the training images says nothing; Spark's StandardScaler maps it to 0, and a
# division by this does so too.
_CONSTANT_STD = 1e15


def plain(image_size: tuple[int, int], num_classes: int, activation: str = "softmax") -> Any:
    """A VGG-like network: four blocks of 3x3 convolutions, global average, one hidden layer, dropout.

    About 0.5 million parameters, whatever the image size (Simonyan and Zisserman 2015, arXiv:1409.1556, in
    small; the average in place of the flattening is from Lin, Chen and Yan 2014, arXiv:1312.4400).

    Args:
        image_size: (height, width) in pixels, each at least 32.
        num_classes: Outputs.
        activation: Of the outputs.
    """
    inputs = x = keras.Input((*image_size, 3), name="pixels")
    for depth, (filters, convolutions) in enumerate([(32, 1), (64, 1), (128, 2), (192, 1)]):
        for _ in range(convolutions):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(
                x
            )
        x = layers.MaxPooling2D(2)(x)
        if depth:
            x = layers.Dropout(0.1)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(256, activation="relu", kernel_initializer="he_normal")(x)
    x = layers.Dropout(0.4)(x)
    return keras.Model(
        inputs, layers.Dense(num_classes, activation=activation, name="probabilities")(x), name="plain"
    )


def residual(image_size: tuple[int, int], num_classes: int, activation: str = "softmax") -> Any:
    """A batch-normalised residual network: three stages of two blocks each (He et al. 2016, arXiv:1512.03385).

    About 0.7 million parameters, whatever the image size.

    Args:
        image_size: (height, width) in pixels, each at least 32.
        num_classes: Outputs.
        activation: Of the outputs.
    """

    def convolution(x: Any, filters: int, stride: int = 1, kernel: int = 3) -> Any:
        x = layers.Conv2D(
            filters, kernel, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    def block(x: Any, filters: int, stride: int) -> Any:
        y = layers.ReLU()(convolution(x, filters, stride))
        y = convolution(y, filters)
        if stride != 1 or x.shape[-1] != filters:
            x = convolution(x, filters, stride, kernel=1)
        return layers.ReLU()(layers.Add()([x, y]))

    inputs = keras.Input((*image_size, 3), name="pixels")
    x = layers.ReLU()(convolution(inputs, 32))
    for filters, stride in [(32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)]:
        x = block(x, filters, stride)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(
        inputs, layers.Dense(num_classes, activation=activation, name="probabilities")(x), name="residual"
    )


BY_NAME: dict[str, Callable[[tuple[int, int], int, str], Any]] = {"plain": plain, "residual": residual}


def build(
    name: str,
    image_size: tuple[int, int],
    num_classes: int,
    weights: str = choices.NO_WEIGHTS,
    activation: str = "softmax",
    *,
    head_on: str = choices.LAST,
) -> Any:
    """A network of `choices.NETWORKS`, with weights drawn from Keras' current seed where none are given.

    Args:
        name: Its name.
        image_size: (height, width) in pixels.
        num_classes: Outputs.
        weights: "none", "imagenet", or the path of a file on this machine, for all but the layer of the classes.
        activation: Of the outputs: "softmax", "sigmoid" for classes that do not exclude each other, or "linear" for
            numbers.
        head_on: One of `choices.HEAD_ON`, of a network of others.

    Raises:
        OptionError: No network of this name, or the images are too small for it.
        NetworkError: The weights cannot be had, or are those of another network.
    """
    check_named(name, image_size)
    if name in BY_NAME:
        network = BY_NAME[name](image_size, num_classes, activation)
    else:
        network = backbones.build(name, image_size, num_classes, weights, activation)
    if weights == choices.IMAGENET and name in choices.LITE_NETWORKS:
        pretrained.take(network, pretrained.published_file(name))
    elif weights not in (choices.NO_WEIGHTS, choices.IMAGENET):
        pretrained.take(network, Path(weights))
    return backbones.on_stages(network) if head_on == choices.STAGES else network


def check_named(name: str, image_size: tuple[int, int]) -> None:
    """Refuse a name that no network has, and images that are too small for it.

    Raises:
        OptionError: It is so.
    """
    if name not in choices.NETWORKS:
        raise OptionError(
            f"network {name!r}",
            f"{', '.join(choices.OWN_NETWORKS)}, one of keras.applications such as MobileNetV2,"
            f" {', '.join(choices.LITE_NETWORKS)}, or a file that ends in .keras or .json",
            nearest(name, choices.NETWORKS) or "Choose one of them for --network",
        )
    least = choices.NETWORKS[name]
    if min(image_size) < least:
        raise OptionError(
            f"images of {image_size[0]}x{image_size[1]} pixels for the network {name!r}",
            f"at least {least}x{least}",
            "Prepare the corpus with a larger --image-size, or give another --network",
        )


def freeze(network: Any, trained: str) -> None:
    """Say which layers of a network are trained; the others keep their weights, and so do their normalisations.

    What is frozen does not travel between master and workers, and its gradients are not computed.

    Args:
        network: Built; changed in place.
        trained: "all", "head" (the last layer with weights), "staged" (all but batch normalisation, for a network whose
            head has been trained before), or a number: the head and so many convolutions and dense layers before it,
            each with the normalisation behind it.

    Raises:
        OptionError: It is something else, or more layers than there are.
    """
    holding = [layer for layer in _in_order(network) if _own_weights(layer)]
    bearing = [layer for layer in holding if _has_kernel(layer)]
    if trained in ("all", choices.STAGED):
        first = 0
    elif trained == "head" or (trained.isascii() and trained.isdigit()):
        count = 1 if trained == "head" else 1 + int(trained)
        if count > len(bearing):
            before = max(0, len(bearing) - 1)
            raise OptionError(
                f"--fine-tune {trained} of the network {network.name}",
                f"at most its {before} convolutions and dense layers before the head",
                "Give a smaller number, or --fine-tune all",
            )
        first = holding.index(bearing[-count])
    else:
        raise OptionError(
            f"--fine-tune {trained}",
            "head, all, staged, or a number of layers before the head",
            "Correct --fine-tune",
        )
    for place, layer in enumerate(holding):
        is_still = trained == choices.STAGED and isinstance(layer, layers.BatchNormalization)
        layer.trainable = place >= first and not is_still


def scale_dropout(network: Any, factor: float) -> None:
    """Multiply the rates of all dropout layers, up to 0.9.

    Args:
        network: Built; changed in place.
        factor: At least 0; 1 changes nothing.
    """
    for layer in network._flatten_layers(include_self=False):
        if isinstance(layer, layers.Dropout):
            layer.rate = min(_MOST_DROPPED, factor * layer.rate)


def features_of(network: Any, layer: str = "") -> Any:
    """The network up to a layer; without a name, up to what its last layer with weights takes, without dropout.

    Raises:
        OptionError: It has no such layer, or one that does not give one vector a row.
    """
    names = [each.name for each in network.layers]
    if layer and layer not in names:
        raise OptionError(
            f"layer {layer!r} of the network {network.name}",
            "one of its layers",
            nearest(layer, names) or f"Choose one of {', '.join(names[-10:])}",
        )
    if layer:
        tensor = network.get_layer(layer).output
    else:
        tensor = network.layers[place_of_head(network)].input
    if len(tensor.shape) != 2:
        raise OptionError(
            f"layer {layer or tensor._keras_history.operation.name!r}, which gives {tuple(tensor.shape)[1:]} for a row",
            "one vector a row",
            "Choose a layer behind the pooling or flattening",
        )
    return keras.Model(network.inputs, tensor, name=f"features_of_{network.name}")


def place_of_head(network: Any) -> int:
    """Which of its layers is the first of the head: the last with weights, or dropout and standardisation before it.

    Raises:
        OptionError: The last with weights is a network of its own.
    """
    holding = [layer for layer in network.layers if layer.weights]
    if not holding or not _own_weights(holding[-1]):
        last = f"which ends with the network {holding[-1].name!r}" if holding else "which has no weights"
        raise OptionError(
            f"the network {network.name}, {last}",
            "one whose last layer with weights is a layer of its own",
            "Build it with the layers of the inner network in its place; featurize can also be told a --layer",
        )
    layer = holding[-1]
    while True:
        before = layer.input._keras_history.operation
        if not isinstance(before, layers.Dropout) and before.name != backbones.STANDARDIZATION:
            return int(network.layers.index(layer))
        layer = before


def _in_order(layer: Any) -> list[Any]:
    """All layers below one, each before those that follow it; Keras gives those of a network in a network backwards."""
    found: dict[int, Any] = {}
    for each in layer._flatten_layers(include_self=False, recursive=False):
        found |= {id(one): one for one in (each, *_in_order(each))}
    return list(found.values())


def _has_kernel(layer: Any) -> bool:
    """Whether it is a convolution or a dense layer; a separable one has two kernels, called otherwise."""
    return any(getattr(layer, name, None) is not None for name in ("kernel", "depthwise_kernel"))


def _own_weights(layer: Any) -> bool:
    return bool(layer._trainable_variables or layer._non_trainable_variables)


def load(file: Path, shown: str = "") -> Any:
    """A network from a `.keras` file (with its weights) or the JSON of `to_json()` (weights newly drawn).

    A file is data, not code: layers that carry Python code (Lambda) are refused, and so are a user's own classes.

    Args:
        file: On this machine.
        shown: What to call it in errors; by default its path.

    Returns:
        A built `keras.Model` with one input of a fixed shape and one output.

    Raises:
        NetworkError: Not such a network, too large, or one that carries code.
    """
    shown = shown or str(file)
    if not file.is_file():
        raise NetworkError(
            f"no file {shown}",
            "a .keras file or the JSON of a Keras network",
            "Check the path given to --network",
        )
    if file.suffix not in (".keras", ".json"):
        raise NetworkError(
            f"{shown}, whose name ends in {file.suffix or 'nothing'!r}",
            "a file that ends in .keras or .json",
            "Save the network with model.save('name.keras')",
        )
    _check_size(shown, file.stat().st_size)
    try:
        if file.suffix == ".json":
            network = keras.models.model_from_json(file.read_text(encoding="utf-8"))
            carried.check_adapted(carried.checked(network, shown))
        else:
            network = _load_keras(file, shown)
    except NetworkError:
        raise
    except Exception as error:  # Keras raises what its zip, JSON and HDF5 readers raise
        reason = str(error).strip()
        if "safe_mode" in reason:
            raise NetworkError(
                f"{shown}, which carries code ({reason.split('. ')[0]})",
                "built-in layers only: a network file is data, and what it brings is never run",
                "Replace such layers by built-in ones, for example Lambda(lambda x: x / 255) by Rescaling(1 / 255)",
            ) from error
        raise NetworkError(
            f"{shown}, which Keras does not load ({first_line(error)})",
            "a network that Keras 3 wrote with model.save('name.keras') or model.to_json(), of built-in layers",
            "Save it again with the installed Keras, without own classes and functions",
        ) from error
    return carried.checked(network, shown)


def _load_keras(file: Path, shown: str) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            _check_size(shown, sum(member.file_size for member in archive.infolist()))
    except zipfile.BadZipFile as error:
        raise NetworkError(
            f"{shown}, which is no .keras file or not a whole one ({error})",
            "a network that Keras 3 wrote with model.save('name.keras')",
            "Copy or save it again",
        ) from error
    return keras.saving.load_model(file, compile=False, safe_mode=True)


def _check_size(shown: str, num_bytes: int) -> None:
    if num_bytes > MAX_NETWORK_BYTES:
        raise NetworkError(
            f"{shown} of {num_bytes:,} bytes", f"at most {MAX_NETWORK_BYTES:,}", "Give a smaller network"
        )


def saved_loss(file: Path) -> Any:
    """The configuration of the loss that a network was saved with; None where there is none, or more than one.

    Args:
        file: A `.keras` file that `load` has read.
    """
    with zipfile.ZipFile(file) as archive:
        loss = (json.loads(archive.read("config.json")).get("compile_config") or {}).get("loss")
    if isinstance(loss, list) and len(loss) == 1:
        loss = loss[0]
    return loss if isinstance(loss, str | dict) else None


to_bytes = carried.to_bytes


def from_bytes(content: bytes) -> Any:
    """The network in the content of a `.keras` file."""
    return carried.from_bytes(content)


def fold_standardization(network: Any, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Any:
    """The same network over raw pixels: `folded(pixels) == network((pixels - mean) / std)`.

    The mean and the std become constants of a first layer and not of the first convolution's weights: those
    would no longer be exact at the border, where a convolution pads with zeros, and would learn at another
    rate.

    Args:
        network: Built, over standardised images of shape (height, width, 3).
        mean: Shape (3,), a value a channel, or the shape of an image, a value a pixel.
        std: The same shape. A std of 0 maps its pixels to 0, as Spark's StandardScaler does.

    Returns:
        A new network that shares the weights of the old one. Mean and std are kept in float32, as Keras does.
    """
    shape = tuple(network.input_shape[1:])
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if mean.shape != std.shape or mean.shape not in (shape, shape[-1:]):
        raise NetworkError(
            f"a mean of shape {mean.shape} and a std of shape {std.shape} for images of shape {shape}",
            f"both of shape {shape} or {shape[-1:]}",
            "Fit the standardiser on the images that the network is for",
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise NetworkError(
            "a mean or std that is not finite",
            "finite numbers",
            "Fit the standardiser on images without damage",
        )
    scale = np.where(std > 0, std, _CONSTANT_STD)
    axis: int | tuple[int, ...] = -1 if mean.ndim == 1 else tuple(range(1, len(shape) + 1))
    dtype = network.inputs[0].dtype
    inputs = keras.Input(shape, dtype=dtype, name="raw_pixels")
    standardised = layers.Normalization(
        axis=axis,
        mean=mean.tolist(),
        variance=np.square(scale).tolist(),
        dtype=dtype,
        name="standardization",
    )(inputs)
    # Layer by layer. Of a network as one layer in another, Keras lists the layers backwards, and so a setting for
    # all layers but the last (`runtime.set_precision`) would spare the wrong one.
    is_graph = type(network).__name__ in ("Functional", "Sequential")
    outputs = network.call(standardised) if is_graph else network(standardised)
    return keras.Model(inputs, outputs, name=f"standardized_{network.name}")


def in_unit(network: Any, mean: float, deviation: float) -> Any:
    """The network with its one output in the unit of labels: what it gives, times their deviation, plus their mean.

    So it begins at their mean, and its weights need not grow to their size. A network that has such a layer keeps it:
    its weights are made for that.

    Args:
        network: Built; it shares its weights with the new one.
        mean: Of the labels.
        deviation: Likewise.
    """
    last = network.outputs[0]._keras_history.operation
    if isinstance(last, layers.Rescaling) and last.name == _UNIT:
        return network
    layer = layers.Rescaling(deviation, mean, dtype="float32", name=_UNIT)
    return keras.Model(network.inputs[0], layer(network.outputs[0]), name=network.name)


@keras.saving.register_keras_serializable(package="seedlings_spark")
class RandomQuarterTurn(layers.Layer):
    """Turns each image of a batch by 0, 90, 180 or 270 degrees (0 or 180 where images are not square).

    Args:
        seed: Seed of its generator.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Turn; images of shape (batch, height, width, channels)."""
        if not training:
            return images
        turns = keras.random.randint((keras.ops.shape(images)[0], 1, 1, 1), 0, 4, seed=self.generator)
        if images.shape[1] == images.shape[2]:
            turned = keras.ops.flip(keras.ops.transpose(images, (0, 2, 1, 3)), axis=1)
            images = keras.ops.where(turns % 2 == 1, turned, images)
        return keras.ops.where(turns >= 2, keras.ops.flip(images, axis=(1, 2)), images)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "seed": self.seed}


def augmentation(names: Sequence[str], image_size: tuple[int, int]) -> str:
    """The layers that change training images, as the JSON of a Keras network over raw pixels.

    Args:
        names: Some of `choices.AUGMENTATIONS`: "mirror" (left and right), "flip" (also upside down), "turn" (quarter
            turns), "rotate" (by any angle), "shift" (up to 10 % of the image), "shear" (rows and columns by up to 10 %
            of their distance from the first ones), "zoom" (up to 10 % in or out), "brightness" (up to 10 % of white),
            "contrast" (up to 20 % less or more), "hue" (by up to 18 degrees), "blur" (over 3x3 pixels, in every second
            image), "cutout" (a rectangle of up to a fifth of the image becomes black, in a quarter of the images;
            DeVries and Taylor 2017, arXiv:1708.04552); "none" stands for no change. What is moved beyond a border is
            filled by reflection.
        image_size: (height, width) in pixels.

    Returns:
        JSON for the estimator's param `augmentation`, or "" without names. Their seeds are set anew at every step.
    """
    names = [name for name in names if name != "none"]
    unknown = [name for name in names if name not in choices.AUGMENTATIONS]
    if unknown:
        raise OptionError(
            f"augmentation {', '.join(map(repr, unknown))}",
            f"any of {', '.join(choices.AUGMENTATIONS)}",
            "Correct --augment",
        )
    if not names:
        return ""
    makers: dict[str, Callable[[], list[Any]]] = {
        "mirror": lambda: [layers.RandomFlip("horizontal", seed=0)],
        # Two layers: RandomFlip("horizontal_and_vertical") of Keras 3.15 draws once for both, and so only ever
        # turns an image by 180 degrees.
        "flip": lambda: [layers.RandomFlip("horizontal", seed=0), layers.RandomFlip("vertical", seed=0)],
        "turn": lambda: [RandomQuarterTurn(seed=0)],
        "rotate": lambda: _clipped(layers.RandomRotation(0.5, fill_mode="reflect", seed=0)),
        "shift": lambda: _clipped(layers.RandomTranslation(0.1, 0.1, fill_mode="reflect", seed=0)),
        # Of a range on both sides of 0 Keras 3.15 cannot be built from its own configuration; it draws the side, too.
        "shear": lambda: _clipped(layers.RandomShear((0.0, 0.1), (0.0, 0.1), fill_mode="reflect", seed=0)),
        "zoom": lambda: _clipped(layers.RandomZoom(0.1, fill_mode="reflect", seed=0)),
        "brightness": lambda: [layers.RandomBrightness(0.1, value_range=(0, 255), seed=0)],
        "contrast": lambda: [layers.RandomContrast(0.2, value_range=(0, 255), seed=0)],
        "hue": lambda: _clipped(layers.RandomHue(0.1, seed=0)),
        "blur": lambda: _clipped(layers.RandomGaussianBlur(1.0, 3, 1.0, seed=0)),
        "cutout": lambda: [layers.RandomErasing(0.5, (0.02, 0.2), 0.0, seed=0)],
    }
    stack = [layer for name in choices.AUGMENTATIONS if name in names for layer in makers[name]()]
    return str(keras.Sequential([keras.Input((*image_size, 3)), *stack]).to_json())


def augmented(
    augmentation: str, pixels: NDArray[np.uint8], count: int, mixing: Any = None
) -> NDArray[np.uint8]:
    """What training may make of images.

    Args:
        augmentation: As `augmentation` gives it.
        pixels: Shape (images, height, width, 3).
        count: How many are made of each.
        mixing: A `training.mixing.Mixing`, or None.

    Returns:
        Shape (images, count, height, width, 3); always the same.
    """
    changing = keras.models.model_from_json(augmentation, CUSTOM_OBJECTS) if augmentation else None
    made = []
    for draw in range(count):
        states = [] if changing is None else carried.seed_states(changing)
        for place, state in enumerate(states + ([] if mixing is None else [mixing.state])):
            state.assign([draw, place])
        images = keras.ops.convert_to_tensor(pixels.astype(np.float32))
        if changing is not None:
            images = changing(images, training=True)
        if mixing is not None:
            images, _ = mixing(images)
        made.append(np.asarray(images).round().clip(0, 255).astype(np.uint8))
    return np.stack(made, axis=1)


def _clipped(layer: Any) -> list[Any]:
    """A layer that interpolates, whose shares of neighbours add up to 1 within a bit: white may be whiter."""
    return [layer, layers.ReLU(max_value=255.0)]


CUSTOM_OBJECTS = {"RandomQuarterTurn": RandomQuarterTurn}
