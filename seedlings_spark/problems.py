"""Which kind of problem a loss, a label and a network's outputs make, and how outputs become probabilities.

The kind decides how labels reach the loss, what a model's `prediction` is, and whether there is a `probability`. It is
read from loss, label and outputs together (the table is `_INFERRED`); where these do not tell, it is asked for.

Outputs that are no probabilities (`from_logits=True`, or a last layer without softmax or sigmoid) get layers behind
them that make them so, and a model is kept with these. So whoever runs it, here or elsewhere, gets probabilities and
needs to know nothing; `without_head` gives the network as it was trained.
"""

import copy
import functools
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seedlings_spark.cluster import runtime
from seedlings_spark.errors import NetworkError, OptionError, first_line
from seedlings_spark.kinds import Kind

with runtime.quiet_import():
    import keras
    from keras import layers, losses

_log = logging.getLogger(__name__)

CLASSIFICATION, MULTILABEL, REGRESSION = (kind.value for kind in Kind)
BINARY = "binary"
KINDS = (CLASSIFICATION, BINARY, MULTILABEL, REGRESSION)

# What is known of a loss. "own" is a function or class that Keras does not have.
_FAMILIES: dict[str, tuple[str, ...]] = {
    # takes class numbers
    "sparse": (
        "SparseCategoricalCrossentropy",
        "sparse_categorical_crossentropy",
        "CategoricalGeneralizedCrossEntropy",
    ),
    # takes one-hot vectors
    "categorical": (
        "CategoricalCrossentropy",
        "categorical_crossentropy",
        "CategoricalFocalCrossentropy",
        "categorical_focal_crossentropy",
        "CategoricalHinge",
        "categorical_hinge",
    ),
    # takes 0 or 1 for each output
    "binary": (
        "BinaryCrossentropy",
        "binary_crossentropy",
        "BinaryFocalCrossentropy",
        "binary_focal_crossentropy",
    ),
    "hinge": ("Hinge", "hinge", "SquaredHinge", "squared_hinge"),
    # takes a distribution
    "divergence": ("KLDivergence", "kl_divergence"),
    # takes any number for each output
    "distance": (
        "MeanSquaredError",
        "mean_squared_error",
        "MeanAbsoluteError",
        "mean_absolute_error",
        "MeanAbsolutePercentageError",
        "mean_absolute_percentage_error",
        "MeanSquaredLogarithmicError",
        "mean_squared_logarithmic_error",
        "Poisson",
        "poisson",
        "Huber",
        "huber",
        "LogCosh",
        "log_cosh",
        "CosineSimilarity",
        "cosine_similarity",
    ),
}
# Losses of the difference of label and output, which may have any unit.
_OF_DIFFERENCES = ("mean_squared_error", "mean_absolute_error", "huber", "log_cosh")
_FAMILY_OF = {
    getattr(losses, name): family
    for family, names in _FAMILIES.items()
    for name in names
    if hasattr(losses, name)
}

# (family, one output or several, one label number a row or a vector) -> kind; what is not here is asked for.
_INFERRED = {
    ("sparse", "several", "number"): CLASSIFICATION,
    ("categorical", "several", "number"): CLASSIFICATION,
    ("categorical", "several", "vector"): CLASSIFICATION,
    ("binary", "one", "number"): BINARY,
    ("binary", "several", "vector"): MULTILABEL,
    ("hinge", "one", "number"): BINARY,
    ("distance", "one", "number"): REGRESSION,
    ("distance", "one", "vector"): REGRESSION,
    ("distance", "several", "vector"): REGRESSION,
}
# What may be asked for.
_POSSIBLE = {
    "sparse": (CLASSIFICATION,),
    "categorical": (CLASSIFICATION,),
    "binary": KINDS,
    "hinge": (CLASSIFICATION, BINARY, MULTILABEL),
    "divergence": (CLASSIFICATION, REGRESSION),
    "distance": KINDS,
    "own": KINDS,
}

# Activations whose outputs are probabilities as they are.
_PROBABILITIES = ("softmax", "sigmoid", "hard_sigmoid", "sparsemax")
# Layers of the head; their names say what they are for, whatever file they are found in.
_HEAD = "probabilities_of_outputs_"
_MAKERS: dict[str, Callable[..., Any]] = {
    "softmax": layers.Softmax,
    "sigmoid": functools.partial(layers.Activation, "sigmoid"),
    # Probabilities of classes that exclude each other, of outputs that do not know so.
    "share": lambda dtype, name: functools.partial(_shares, name=name),
}
# How far probabilities may be from adding up to 1: bfloat16 has two to three digits.
_TOLERANCE = 0.02
_NOISE_ROWS = 9


@dataclass(frozen=True)
class Problem:
    """What is to be learnt.

    Args:
        kind: One of `KINDS`.
        labels: How they reach the loss: "index" (class numbers), "one_hot" (vectors made of class numbers),
            "number" (as they are) or "vector" (as they are).
        num_outputs: Number of outputs of the network.
        num_classes: 0 where labels are no classes that exclude each other.
        head: Names of the layers that make probabilities of the network's outputs.
    """

    kind: str
    labels: str
    num_outputs: int
    num_classes: int = 0
    head: tuple[str, ...] = ()


def resolve_loss(loss: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A loss as `compile` takes it for one output: an alias, a configuration or a class becomes what it stands for.

    Raises:
        OptionError: Keras knows no such loss.
    """
    objects = dict(custom_objects or {})
    try:
        with keras.saving.custom_object_scope(objects):
            if isinstance(loss, str) and loss in objects:
                loss = objects[loss]
            found = losses.get(copy.deepcopy(dict(loss)) if isinstance(loss, Mapping) else loss)
    except (ValueError, TypeError, KeyError) as error:
        raise OptionError(
            f"loss={loss!r} ({first_line(error)})",
            "a loss of Keras by name, its configuration, or a function of labels and outputs",
            "Correct the loss, for example to 'sparse_categorical_crossentropy'",
        ) from error
    if found is None:
        raise OptionError("no loss", "a loss", "Give one, for example 'sparse_categorical_crossentropy'")
    return found


def decide(
    loss: Any,
    network: Any,
    *,
    label: str,
    problem: str = "",
    has_names: bool = False,
    nb_classes: int = 0,
) -> Problem:
    """The kind of problem.

    Args:
        loss: As `resolve_loss` gives it.
        network: Built, with one output.
        label: "number" or "vector": what the label column holds.
        problem: One of `KINDS` where the user has said it, else "".
        has_names: Whether the label is known to number classes that have names.
        nb_classes: Length of one-hot labels, 0 for the number of outputs.

    Raises:
        OptionError: They do not tell, or contradict each other.
        NetworkError: The network does not give one vector a row.
    """
    outputs = _num_outputs(network)
    family = family_of(loss)
    what = (
        f"{name_of(loss)} with {outputs} output{'s' * (outputs != 1)} and"
        f" {'a vector' if label == 'vector' else 'one number'} a row as label"
    )
    if problem and problem not in KINDS:
        raise OptionError(
            f"problem={problem!r}",
            f"one of {', '.join(KINDS)}",
            "Set problem to one of them, or leave it out",
        )
    if problem and problem not in _POSSIBLE[family]:
        raise OptionError(
            f"problem={problem!r} with {name_of(loss)}",
            f"{' or '.join(_POSSIBLE[family])} with this loss",
            "Change the loss or the problem",
        )
    kind = problem or _INFERRED.get((family, "one" if outputs == 1 else "several", label), "")
    if kind == REGRESSION and has_names and not problem:
        kind, what = "", f"{what}, which numbers classes"
    if not kind:
        raise _untold(what, family, outputs, label)
    misfit = _misfit(kind, family, outputs, label)
    if misfit is not None:
        raise OptionError(f"{what}, as a problem of {kind}", *misfit)
    if label == "vector":
        labels = "vector"
    elif kind == CLASSIFICATION:
        labels = "index" if family == "sparse" or (family == "own" and not nb_classes) else "one_hot"
    else:
        labels = "number"
    classes = {CLASSIFICATION: (nb_classes if labels == "one_hot" else 0) or outputs, BINARY: 2}
    return Problem(kind, labels, outputs, classes.get(kind, 0), head_of(kind, loss, network))


def _num_outputs(network: Any) -> int:
    """Numbers that a network gives for each row."""
    shape = network.output_shape
    if len(shape) != 2 or shape[-1] is None:
        raise NetworkError(
            f"a network that gives {tuple(shape)[1:]} for each row",
            "one vector a row, of fixed length",
            "End it with a Dense layer over flattened or pooled features",
        )
    return int(shape[-1])


def _untold(what: str, family: str, outputs: int, label: str) -> OptionError:
    """Loss, label and outputs do not tell the kind of problem."""
    fitting = [each for each in _POSSIBLE[family] if _misfit(each, family, outputs, label) is None]
    if fitting:
        return OptionError(
            what,
            "loss, label and outputs that tell which kind of problem it is",
            f"Say it: set problem to {' or '.join(map(repr, fitting))}, or use a loss that is made for it",
        )
    found = _misfit(_POSSIBLE[family][0], family, outputs, label) or ("another loss", "Change it")
    return OptionError(what, *found)


def _misfit(kind: str, family: str, outputs: int, label: str) -> tuple[str, str] | None:
    """What was expected and what to do, where a kind does not fit the outputs and the label."""
    if kind == CLASSIFICATION and outputs == 1:
        return (
            "an output for each class",
            "Give the network as many outputs as there are classes, or use loss='binary_crossentropy' for two",
        )
    if kind == CLASSIFICATION and family == "sparse" and label == "vector":
        return "class numbers, which this loss takes", "Use loss='categorical_crossentropy' for vectors"
    if kind == BINARY and (outputs != 1 or label == "vector"):
        return "one output and one label, 0 or 1", "Set problem='classification' or problem='multilabel'"
    if kind == MULTILABEL and label != "vector":
        return (
            "a vector of 0 and 1 as label, with an element for each output",
            "Assemble the labels with VectorAssembler",
        )
    if kind == REGRESSION and label == "number" and outputs != 1 and family != "own":
        return (
            "a label for each output: one number would be compared with all of them",
            "Give the network one output, or assemble the labels into a vector",
        )
    return None


@keras.saving.register_keras_serializable(package="seedlings_spark")
class InDeviations(losses.Loss):  # type: ignore[misc]
    """A loss of the difference of label and output, both divided by the standard deviation of the labels.

    Labels and outputs keep their unit, and so do metrics; loss and gradients are those of standardised labels, whose
    size learning rates are made for.

    Args:
        loss: A loss of Keras by name, its configuration or itself.
        deviation: The standard deviation.
        name: Its own.
        kwargs: Those of any loss of Keras.
    """

    def __init__(self, loss: Any, deviation: float, name: str = "in_deviations", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.fn, self.deviation = losses.get(loss), deviation

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each row."""
        return getattr(self.fn, "call", self.fn)(y_true / self.deviation, y_pred / self.deviation)

    def get_config(self) -> dict[str, Any]:
        """For saving."""
        return {**super().get_config(), "loss": losses.serialize(self.fn), "deviation": self.deviation}


def check_loss(loss: Any, kind: str = CLASSIFICATION) -> None:
    """Refuse a loss that does not fit the labels of a corpus.

    Args:
        loss: As an estimator takes it.
        kind: "classification", whose classes exclude each other, "multilabel" or "regression".

    Raises:
        OptionError: Such a loss, or none that Keras knows.
    """
    resolved = resolve_loss(loss)
    family = family_of(resolved)
    if kind == REGRESSION and _name_in_keras(resolved) not in _OF_DIFFERENCES:
        raise OptionError(
            f"--loss {loss}",
            "a loss for numbers",
            f"Use --loss {', '.join(_OF_DIFFERENCES[:-1])} or {_OF_DIFFERENCES[-1]}, or leave --loss out",
        )
    if kind == MULTILABEL and family != "binary":
        raise OptionError(
            f"--loss {loss}",
            "a loss for pictures that show any number of species",
            "Use --loss binary_crossentropy or binary_focal_crossentropy, or leave --loss out",
        )
    if kind == CLASSIFICATION and family not in ("sparse", "categorical"):
        raise OptionError(
            f"--loss {loss}",
            "a loss for species, of which each image shows one",
            "Use --loss sparse_categorical_crossentropy, or another categorical one",
        )


def _name_in_keras(loss: Any) -> str:
    """The name of the function that a resolved loss is, or is made of; "" where that is none of Keras'."""
    found = loss.fn if isinstance(loss, InDeviations) else loss
    found = getattr(found, "fn", found)
    return getattr(found, "__name__", "") if found in _FAMILY_OF else ""


def described(loss: Any) -> str:
    """A loss as a text that is the same in every process: a name, a configuration, or a function's full name."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, losses.Loss):
        return json.dumps(losses.serialize(loss), sort_keys=True, default=str)
    if isinstance(loss, functools.partial):
        return f"{described(loss.func)} {sorted(loss.keywords.items())}"
    return f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__qualname__)}"


def name_of(loss: Any) -> str:
    """A loss for a message."""
    name = getattr(loss, "name", None) or getattr(loss, "__name__", None) or type(loss).__name__
    return f"loss {name}"


def family_of(loss: Any) -> str:
    """What is known of a resolved loss: a key of `_FAMILIES`, or "own"."""
    if isinstance(loss, functools.partial):
        return family_of(loss.func)
    if isinstance(loss, losses.Loss):
        for each in type(loss).__mro__:
            if each in _FAMILY_OF:
                return _FAMILY_OF[each]
        return family_of(loss.fn) if hasattr(loss, "fn") else "own"
    return _FAMILY_OF.get(loss, "own") if inspect.isroutine(loss) else "own"


def takes_logits(loss: Any) -> bool | None:
    """Whether a resolved loss takes logits; None where it does not say."""
    if isinstance(loss, functools.partial):
        given = loss.keywords.get("from_logits")
        return takes_logits(loss.func) if given is None else bool(given)
    held = getattr(loss, "_fn_kwargs", {}).get("from_logits", getattr(loss, "from_logits", None))
    if isinstance(held, bool | np.bool_):
        return bool(held)
    if not inspect.isroutine(loss):
        return None
    parameter = inspect.signature(loss).parameters.get("from_logits")
    return parameter.default if parameter is not None and isinstance(parameter.default, bool) else None


def config_takes_logits(config: Any) -> bool:
    """Whether the configuration of a loss, as a file holds it, says that it takes logits."""
    try:
        return config is not None and takes_logits(resolve_loss(config)) is True
    except OptionError:  # a loss of somebody's own, which says nothing here
        return False


def last_activation(network: Any) -> str:
    """The name of the activation that a network's outputs come from; "" where there is none to be seen.

    Layers that only carry values on, such as Dropout, Reshape or a linear Activation, are looked through.
    """
    tensor = network.outputs[0]
    while True:
        operation, place, _ = tensor._keras_history
        if isinstance(operation, keras.Model):
            tensor = operation.outputs[0]
            continue
        if isinstance(operation, layers.Softmax):
            return "softmax"
        activation = getattr(operation, "activation", None)
        name = "" if activation is None else getattr(activation, "__name__", "")
        if not isinstance(operation, _CARRYING) or name not in ("", "linear"):
            return name
        before = operation._inbound_nodes[place].input_tensors
        if not before:
            return ""
        tensor = before[0]


_CARRYING = (
    layers.Activation,
    layers.Identity,
    layers.Dropout,
    layers.Reshape,
    layers.Flatten,
    layers.ActivityRegularization,
)


def head_of(kind: str, loss: Any, network: Any) -> tuple[str, ...]:
    """The layers that make probabilities of a network's outputs; none where they are that, or none are wanted.

    Args:
        kind: One of `KINDS`.
        loss: As `resolve_loss` gives it; None for one that is not known.
        network: Built.

    Raises:
        NetworkError: The loss takes probabilities, and the network ends without anything that makes them.
    """
    if kind == REGRESSION:
        return ()
    activation, logits = last_activation(network), None if loss is None else takes_logits(loss)
    family = "own" if loss is None else family_of(loss)
    if activation in _PROBABILITIES:
        if logits:
            _log.warning(
                "%s takes logits, but the network ends with %s: its outputs are taken as the probabilities that they"
                " are. Remove from_logits=True or the activation.",
                name_of(loss),
                activation,
            )
        needs_share = kind == CLASSIFICATION and activation not in ("softmax", "sparsemax")
        return ("share",) if needs_share else ()
    if logits is None:
        # Every activation that Keras names is none of probabilities; what has no name is looked at.
        logits = bool(activation) or not _look_like_probabilities(kind, network)
    elif not logits and activation == "linear":
        raise NetworkError(
            f"a network that ends without softmax or sigmoid, and {name_of(loss)}, which takes probabilities",
            "both of probabilities, or both of logits",
            f"End the network with activation={'softmax' if kind == CLASSIFICATION else 'sigmoid'!r}, or give the"
            " loss as an object with from_logits=True",
        )
    if not logits:
        return ()
    if kind == CLASSIFICATION:
        return ("sigmoid", "share") if family == "binary" else ("softmax",)
    return ("sigmoid",)


def with_head(network: Any, head: Sequence[str]) -> Any:
    """The network with layers behind it that make probabilities of its outputs; it shares its weights.

    Args:
        network: Built.
        head: That of `Problem`; nothing changes where it is empty.
    """
    if not head:
        return network
    is_graph = type(network).__name__ in ("Functional", "Sequential")
    if is_graph:
        inputs, outputs = network.inputs[0], network.outputs[0]
    else:
        inputs = keras.Input(network.input_shape[1:], dtype=network.inputs[0].dtype)
        outputs = network(inputs)
    dtype = "float64" if outputs.dtype == "float64" else "float32"
    for name in head:
        outputs = _MAKERS[name](dtype=dtype, name=f"{_HEAD}{name}")(outputs)
    return keras.Model(inputs, outputs, name=network.name)


def _shares(outputs: Any, name: str) -> Any:
    """Each output's share of their sum; no layer of Keras computes it."""
    shares = keras.ops.normalize(outputs, axis=-1, order=1)
    shares._keras_history.operation.name = name
    return shares


def without_head(network: Any) -> Any:
    """The network as it was trained; the same one where it has no head."""
    tensor = network.outputs[0]
    while tensor._keras_history.operation.name.startswith(_HEAD):
        operation, place, _ = tensor._keras_history
        tensor = operation._inbound_nodes[place].input_tensors[0]
    return network if tensor is network.outputs[0] else keras.Model(network.inputs, tensor, name=network.name)


def logits_of(network: Any) -> Any:
    """The tensor of logits that a network's head makes probabilities of; None where it has no such head."""
    tensor, logits = network.outputs[0], None
    while tensor._keras_history.operation.name.startswith(_HEAD):
        operation, place, _ = tensor._keras_history
        tensor = operation._inbound_nodes[place].input_tensors[0]
        if operation.name != f"{_HEAD}share":
            logits = tensor
    return logits


def check_probabilities(network: Any, shown: str) -> None:
    """Refuse a classifier whose outputs for noise are no probabilities: its confidences would mean nothing.

    Raises:
        NetworkError: Such a network.
    """
    outputs = _outputs_for_noise(network)
    sums = outputs.sum(axis=-1)
    worst = sums[np.argmax(np.abs(sums - 1))]
    if not _add_up(outputs):
        raise NetworkError(
            f"{shown}, whose outputs are from {outputs.min():.3g} to {outputs.max():.3g} and add up to {worst:.3g}",
            "probabilities that add up to 1",
            "Say --outputs logits if they are logits, or end the network with a softmax, for example"
            " keras.layers.Softmax(), and save it again",
        )


def _look_like_probabilities(kind: str, network: Any) -> bool:
    outputs = _outputs_for_noise(network)
    if kind == CLASSIFICATION:
        return _add_up(outputs)
    return bool(outputs.min() >= 0 and outputs.max() <= 1)


def _add_up(outputs: Any) -> bool:
    return bool((np.abs(outputs.sum(axis=-1) - 1) <= _TOLERANCE).all() and outputs.min() >= 0)


def _outputs_for_noise(network: Any) -> Any:
    # Whole numbers are places in a vocabulary: the first two are in each.
    dtype = network.inputs[0].dtype
    high = 256 if "float" in dtype or dtype == "uint8" else 2
    noise = np.random.default_rng(0).integers(0, high, (_NOISE_ROWS, *network.input_shape[1:]))
    # From black to full brightness, where a sigmoid is saturated and may happen to look like a softmax.
    brightness = np.linspace(0, 1, _NOISE_ROWS).reshape(-1, *[1] * len(network.input_shape[1:]))
    return np.asarray(network((noise * brightness).astype(dtype), training=False), np.float64)
