"""Networks as they travel: what a `.keras` file holds.

A network's JSON and weights are not all of it. Vocabularies, boundaries and means that a layer has adapted, and
whatever a layer saves by itself, are in neither; so a network goes whole from driver to workers.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedlings_spark import reproducibility
from seedlings_spark.errors import NetworkError, first_line


def to_bytes(network: Any, *, compiled: bool = True) -> bytes:
    """The network as the content of a `.keras` file.

    Args:
        network: A `keras.Model`.
        compiled: Whether with what it was compiled with, such as its loss, which may be a function of one's own.

    Raises:
        NetworkError: Keras cannot save it.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.keras"
        before = network.compiled
        try:
            network.compiled = before and compiled
            network.save(file)
        except Exception as error:  # Keras and the user's own layers raise what they like
            raise NetworkError(
                f"a network {network.name!r} that Keras cannot save ({first_line(error)})",
                "one that model.save('name.keras') writes",
                "Give its own layers a get_config() that returns the arguments of __init__",
            ) from error
        finally:
            network.compiled = before
        return file.read_bytes()


def from_bytes(content: bytes, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The network in the content of a `.keras` file, not compiled.

    Raises:
        NetworkError: Keras cannot build it, or it cannot be fed.
    """
    import keras

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.keras"
        file.write_bytes(content)
        try:
            # Keras draws weights before it reads them, which must not reach into what another thread draws.
            with reproducibility.seeded_initializers(0):
                network = keras.saving.load_model(
                    file, custom_objects=dict(custom_objects or {}), compile=False, safe_mode=True
                )
        except Exception as error:
            raise NetworkError(
                f"a network that Keras cannot build again ({first_line(error)})",
                "built-in layers, registered ones, or those given by set_custom_objects",
                "Decorate its own classes and functions with keras.saving.register_keras_serializable(), or give "
                "them by set_custom_objects",
            ) from error
    return checked(network, f"a network {network.name!r}")


def from_json(text: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A Keras network from its JSON configuration (`model.to_json()`), with newly drawn weights.

    What it was compiled with is left out: a loss of one's own would have to be known here.

    Raises:
        NetworkError: Keras cannot build it, or it cannot be fed.
    """
    import keras

    try:
        config = json.loads(text)
        config.pop("compile_config", None)
        network = keras.models.model_from_json(json.dumps(config), custom_objects=dict(custom_objects or {}))
    except Exception as error:
        raise NetworkError(
            f"a network that Keras cannot build ({first_line(error)})",
            "the JSON that model.to_json() of Keras 3 gives",
            "Write it again with the installed Keras, and give its own layers by set_custom_objects",
        ) from error
    return checked(network, "the JSON of a network")


def to_json(content: bytes) -> str:
    """The JSON configuration in the content of a `.keras` file, without what it was compiled with."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config = json.loads(archive.read("config.json"))
    config.pop("compile_config", None)
    return json.dumps(config)


def has_assets(content: bytes) -> bool:
    """Whether a `.keras` file holds more than JSON and weights do: vocabularies, boundaries."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.startswith("assets/") for name in archive.namelist())


def registered_in(*texts: str) -> dict[str, Any]:
    """The classes and functions that this process has registered with Keras and that configurations name.

    A worker's process has not run the program that registered them.

    Args:
        texts: JSON.
    """
    import keras

    own = keras.saving.get_custom_objects()
    return {name: one for name, one in own.items() if any(json.dumps(name) in text for text in texts)}


def check_trained(network: Any) -> None:
    """Refuse a network whose class trains or measures in a way of its own, which no worker would call.

    Raises:
        NetworkError: It is so. `compute_loss` may be its own.
    """
    import keras

    own = [
        name
        for name in ("train_step", "test_step", "compute_metrics")
        if getattr(type(network), name) is not getattr(keras.Model, name)
    ]
    if own:
        raise NetworkError(
            f"{network.name}, a network of the class {type(network).__name__}, with a {own[0]} of its own",
            "one that is trained as Keras trains: workers compute gradients of its loss, and the mean makes a step",
            "Put what is special into compute_loss, a loss or a layer, which are called",
        )


def checked(network: Any, shown: str) -> Any:
    """The network, if a table's column of numbers can be fed to it and its answer is one array.

    Args:
        network: Anything.
        shown: What to call it in errors.

    Raises:
        NetworkError: It is no such network.
    """
    import keras

    if not isinstance(network, keras.Model):
        raise NetworkError(
            f"{shown}, which holds a {type(network).__name__}",
            "a Keras network",
            "Save a whole keras.Model or keras.Sequential",
        )
    if not network.built:
        raise NetworkError(
            f"{shown}, a network that does not know the shape of its input",
            "one that is built",
            "Begin it with keras.Input(shape=...) and save it again",
        )
    if not getattr(network, "inputs", None):
        raise NetworkError(
            f"{shown}, a network of the class {type(network).__name__}, whose layers Keras does not see from outside",
            "a keras.Sequential or a functional keras.Model(inputs, outputs)",
            "Wrap it: inputs = keras.Input(shape); keras.Model(inputs, network(inputs))",
        )
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise NetworkError(
            f"{shown}, a network with {len(network.inputs)} inputs and {len(network.outputs)} outputs",
            "one input and one output",
            "Join the inputs into one column, or build a network of the one output that is wanted",
        )
    # Where one input is held in a list or a dict, so is its shape.
    shape = tuple(network.inputs[0].shape)
    if None in shape[1:]:
        raise NetworkError(
            f"{shown}, a network that takes {shape}",
            "a fixed shape of its input",
            "Begin it with keras.Input((height, width, 3)) and save it again",
        )
    if "string" in str(network.inputs[0].dtype):
        raise NetworkError(
            f"{shown}, a network that takes strings",
            "numbers or pixels",
            "Turn the text into numbers before it (StringIndexer, HashingTF), and build the network from there on",
        )
    return network


def check_adapted(network: Any) -> None:
    """Refuse a network from JSON that had to adapt to data first: what it has adapted does not stand in JSON.

    Raises:
        NetworkError: A layer of it waits for `adapt`.
    """
    import keras

    for layer in network._flatten_layers(include_self=False):
        waits = (
            (isinstance(layer, keras.layers.Normalization) and layer.input_mean is None)
            or (isinstance(layer, keras.layers.Discretization) and not layer.bin_boundaries)
            or (hasattr(layer, "input_vocabulary") and layer.input_vocabulary is None)
        )
        if waits:
            raise NetworkError(
                f"the JSON of a network whose layer {layer.name!r} ({type(layer).__name__}) has not adapted to data",
                "a network with all that it has adapted, which JSON does not hold",
                "Give the network itself by set_network(model), or --network FILE.keras",
            )


def restore_weights(network: Any, weights: Any) -> None:
    """`set_weights`, also for layers that compute something from their weights when they are loaded."""
    network.set_weights(weights)
    finalize(network)


def finalize(network: Any) -> None:
    """Let layers compute what they compute from their weights, such as a normalization its mean, when these changed."""
    for layer in network._flatten_layers(include_self=False):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def seed_states(network: Any) -> list[Any]:
    """The states of all seed generators in a network, in the order of its layers."""
    return [
        generator.state
        for layer in network._flatten_layers(include_self=True)
        for generator in layer._seed_generators
    ]
