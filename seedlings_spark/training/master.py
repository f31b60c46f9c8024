"""Master: the one model and optimizer of a run, and what a Keras callback sees.

Everything here runs on the driver. Vectors are laid out as the workers' (see `Vectors`): first the trainable
weights, then the other floating-point weights (batch normalisation's moving statistics).
"""

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.errors import OptionError, first_line
from seedlings_spark.training.messages import Steps, Work
from seedlings_spark.training.optimizer import OptimizerState, is_elementwise, step_shares, take_step
from seedlings_spark.training.weights import Layout, Vector

# Numbers in the integer weights of a network that travel, as text; what is larger is a table, not a counter.
_MAX_COUNTS = 10_000


class Vectors:
    """The flat vectors of a compiled Keras network.

    The states of seed generators do not travel: seeds are derived anew at every step. What belongs to a frozen layer
    (`layer.trainable = False`) does not either, as nothing changes it: everybody has it from the network's file.

    Args:
        network: A built and compiled `keras.Model`.
    """

    def __init__(self, network: Any) -> None:
        self.trainable = list(network.trainable_weights)
        frozen = _frozen(network)
        self.frozen = [weight for weight in network.non_trainable_weights if id(weight) in frozen]
        moving = [weight for weight in network.non_trainable_weights if id(weight) not in frozen]
        self.other = [weight for weight in moving if "float" in str(weight.dtype)]
        # What layers count, in integers.
        self.counts = [weight for weight in moving if "float" not in str(weight.dtype)]
        if sum(int(np.prod(weight.shape)) for weight in self.counts) > _MAX_COUNTS:
            self.counts = []
        built = network.optimizer is not None and network.optimizer.built
        self.optimizer = OptimizerState(network.optimizer) if built else None
        self.slots = self.optimizer.slots if self.optimizer is not None else []
        self.metrics = metric_variables(network)
        self.model_layout = Layout.of([_numpy(weight) for weight in self.trainable + self.other])
        self.state_layout = Layout.of([_numpy(weight) for weight in self.trainable + self.other + self.slots])

    def get_counts(self) -> list[list[int]]:
        """What the layers have counted: of each variable its numbers."""
        return [np.asarray(variable.value).ravel().astype(int).tolist() for variable in self.counts]

    def set_counts(self, counts: Sequence[Sequence[int]]) -> None:
        """Set what `get_counts` gave."""
        for variable, values in zip(self.counts, counts, strict=True):
            variable.assign(np.reshape(values, variable.shape).astype(str(variable.dtype)))


def _frozen(network: Any) -> set[int]:
    """Ids of the variables that a step cannot change since their layers are frozen.

    A frozen layer of one's own may still count something; of batch normalisation Keras promises that it does not.
    """
    import keras

    frozen: set[int] = set()
    for layer in network._flatten_layers(include_self=False):
        if not layer.trainable:
            is_still = isinstance(layer, keras.layers.BatchNormalization)
            frozen.update(id(each) for each in (layer.weights if is_still else layer._trainable_variables))
    return frozen


def metric_variables(network: Any) -> list[Any]:
    """The variables of the compiled metrics (not of the loss), in Keras' order.

    They are sums over samples, so that the metric of all workers together comes from the sum of their
    variables: exactly, also for metrics that are no means, such as AUC.
    """
    compiled = network._compile_metrics
    return (
        [] if compiled is None else [variable for metric in compiled.metrics for variable in metric.variables]
    )


def build_metrics(network: Any, labels: Any) -> None:
    """Make the metrics' variables exist, which Keras puts off until it sees data.

    Args:
        network: A compiled network.
        labels: One batch of labels, as the worker will give them.
    """
    inputs = np.zeros((len(labels), *network.input_shape[1:]), "float32")
    outputs = network(inputs, training=False)
    network.compute_loss(inputs, labels, outputs)
    if network._compile_metrics is not None:
        network._compile_metrics.update_state(labels, outputs)
        network._compile_metrics.reset_state()


@dataclass(frozen=True)
class MetricRecipe:
    """How a metric object is made anew: each network that is compiled needs its own, with its own variables.

    Args:
        kind: Its class.
        config: Its configuration.
    """

    kind: Any
    config: Mapping[str, Any]


def metric_recipes(metrics: Any) -> list[Any]:
    """Metrics as they travel: names, configurations and functions as they are, of objects their recipes."""
    import keras

    if metrics is None:
        return []
    given = list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    return [
        MetricRecipe(type(metric), _plain(metric.get_config()))
        if isinstance(metric, keras.metrics.Metric)
        else metric
        for metric in given
    ]


def _plain(value: Any) -> Any:
    """Keras' tracking lists and dictionaries, which cannot be pickled, as Python's own."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def made_metrics(recipes: Sequence[Any], custom_objects: Mapping[str, Any] | None = None) -> list[Any]:
    """Metrics as `compile` takes them: new objects, but for names and functions.

    Raises:
        OptionError: Keras knows no such metric.
    """
    import keras

    objects = dict(custom_objects or {})
    made: list[Any] = []
    with keras.saving.custom_object_scope(objects):
        for recipe in recipes:
            try:
                metric = _made(recipe, objects, {getattr(each, "name", "") for each in made})
            except (ValueError, TypeError, KeyError) as error:
                raise OptionError(
                    f"metric {recipe!r} ({first_line(error)})",
                    "a metric of Keras by name, its configuration, an object or a function",
                    "Correct metrics",
                ) from error
            made.append(metric)
    return made


def _made(recipe: Any, objects: Mapping[str, Any], taken: set[str]) -> Any:
    import keras

    if isinstance(recipe, MetricRecipe):
        return recipe.kind.from_config(dict(recipe.config))
    is_name = isinstance(recipe, str)
    if not is_name and not isinstance(recipe, Mapping):
        return recipe
    if is_name and recipe.lower() in ("accuracy", "acc", "crossentropy", "ce"):
        return recipe  # which of them it is, `compile` sees from the outputs
    metric = keras.metrics.get(objects.get(recipe, recipe) if is_name else copy.deepcopy(dict(recipe)))
    if not isinstance(metric, keras.metrics.Metric):
        return recipe if is_name and recipe not in objects else metric
    config = metric.get_config()
    if not is_name and "name" in (recipe.get("config") or {}):
        return metric
    # Keras counts the objects of a process: "auc" would be "auc_1" in the second fit.
    name = stem = re.sub(r"_[0-9]+$", "", config["name"])
    number = 0
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    return type(metric).from_config({**config, "name": name})


def check_metrics_add_up(network: Any, labels: Any) -> None:
    """Refuse a metric whose variables over all rows are not the sums of those over parts of them.

    Workers and steps are joined by adding up. That is exact for what Keras brings; a metric of one's own that keeps a
    maximum or a mean would come out wrong.

    Args:
        network: Compiled, with its metrics built.
        labels: Some labels, as the worker gives them, not all the same.

    Raises:
        OptionError: Such a metric.
    """
    if network._compile_metrics is None:
        return
    rng = np.random.default_rng(0)
    outputs = rng.uniform(0.05, 1, (len(labels), *network.output_shape[1:]))
    outputs = (outputs / outputs.sum(axis=-1, keepdims=True) if outputs.shape[-1] > 1 else outputs).astype(
        "float32"
    )
    half = len(labels) // 2

    def states(*parts: slice) -> list[NDArray[np.float64]]:
        network._compile_metrics.reset_state()
        for part in parts:
            network._compile_metrics.update_state(labels[part], outputs[part])
        return [np.asarray(variable.value, np.float64) for variable in metric_variables(network)]

    first, second = slice(0, half), slice(half, None)
    names = [metric.name for metric in network._compile_metrics.metrics for _ in metric.variables]
    empty, of_first, of_second, of_both = states(), states(first), states(second), states(first, second)
    network._compile_metrics.reset_state()
    for name, start, one, other, both in zip(names, empty, of_first, of_second, of_both, strict=True):
        if start.any() or not np.allclose(one + other, both, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise OptionError(
                f"metric {name!r}, whose state for all rows is not the sum of its states for some of them",
                "metrics that keep sums from 0 on, as Keras' own do: the workers' are added up",
                "Keep sums in its variables and compute the rest in result(), or leave it out",
            )


class Master:
    """The master model with its optimizer.

    Args:
        network: A compiled `keras.Model` whose metrics are built.
        layer_decay: As for `optimizer.step_shares`.
    """

    def __init__(self, network: Any, layer_decay: float = 1.0) -> None:
        import tensorflow as tf

        self.network = network
        self.optimizer = network.optimizer
        self.optimizer.build(network.trainable_variables)
        self.vectors = Vectors(network)
        if self.vectors.optimizer is None:
            raise ValueError("the network has no optimizer: it is not compiled")
        self.held = self.vectors.optimizer
        self._shares = step_shares(self.vectors.trainable, layer_decay)
        self._apply = tf.function(self._apply_gradients, autograph=False)
        self._step = tf.function(self._apply_only, autograph=False)

    @property
    def model_layout(self) -> Layout:
        """Of the vector of weights."""
        return self.vectors.model_layout

    @property
    def state_layout(self) -> Layout:
        """Of the vector of weights and optimizer slots."""
        return self.vectors.state_layout

    @property
    def is_elementwise(self) -> bool:
        """See `optimizer.is_elementwise`; where layers have rates of their own, numbers are not all treated alike."""
        is_alike = is_elementwise(self.optimizer, self.vectors.trainable) and set(self._shares) <= {1.0}
        return is_alike and self.model_layout.dtype == "float32"

    @property
    def metric_sizes(self) -> list[int]:
        """Numbers in each variable of the metrics."""
        return [int(np.prod(variable.shape, dtype=np.int64)) for variable in self.vectors.metrics]

    def weights(self) -> Vector:
        """A new vector of the current weights."""
        vectors = self.vectors
        return vectors.model_layout.flatten([_numpy(weight) for weight in vectors.trainable + vectors.other])

    def all_weights(self) -> Vector:
        """A new vector of the current weights, and of those of frozen layers."""
        frozen = [_numpy(weight).ravel() for weight in self.vectors.frozen]
        return np.concatenate([self.weights(), *frozen]) if frozen else self.weights()

    def state(self) -> Vector:
        """A new vector of the current weights and optimizer slots."""
        vectors = self.vectors
        return vectors.state_layout.flatten(
            [_numpy(variable) for variable in vectors.trainable + vectors.other + vectors.slots]
        )

    def state_arrays(self) -> list[Vector]:
        """The current weights and optimizer slots, flat, one variable after the other: as they stay in memory.

        A variable that changes leaves what is given here as it was.
        """
        vectors, dtype = self.vectors, self.state_layout.dtype
        variables = vectors.trainable + vectors.other + vectors.slots
        return [np.ascontiguousarray(_numpy(variable), dtype).ravel() for variable in variables]

    def set_state(self, state: Vector) -> None:
        """Replace weights and optimizer slots."""
        vectors = self.vectors
        variables = vectors.trainable + vectors.other + vectors.slots
        for variable, value in zip(variables, vectors.state_layout.split(state), strict=True):
            variable.assign(value)

    def set_arrays(self, arrays: Iterable[Vector]) -> None:
        """Replace weights and optimizer slots by their new numbers, flat, one variable after the other."""
        vectors = self.vectors
        variables = vectors.trainable + vectors.other + vectors.slots
        for variable, shape, value in zip(variables, vectors.state_layout.shapes, arrays, strict=True):
            variable.assign(value.reshape(shape))

    def digest(self) -> bytes:
        """Tells this state, weights and optimizer slots, from any other."""
        found, vectors = hashlib.blake2b(), self.vectors
        for variable in vectors.trainable + vectors.other + vectors.slots:
            found.update(np.ascontiguousarray(_numpy(variable)).view(np.uint8).data)
        return found.digest()

    def set_weights(self, weights: Vector) -> None:
        """Replace the weights; optimizer slots stay."""
        self.show(self.network, weights)

    def show(self, network: Any, weights: Vector) -> None:
        """Set the weights of a network of this architecture, and what its layers have counted."""
        vectors = self.vectors if network is self.network else Vectors(network)
        if network is not self.network:
            vectors.set_counts(self.vectors.get_counts())
        variables = vectors.trainable + vectors.other
        for variable, value in zip(variables, self.model_layout.split(weights), strict=True):
            variable.assign(value)

    def shown(self, network: Any) -> Vector:
        """A new vector of the weights of a network of this architecture."""
        vectors = self.vectors if network is self.network else Vectors(network)
        return self.model_layout.flatten([_numpy(weight) for weight in vectors.trainable + vectors.other])

    def work(self, number: int | str, steps: Steps | None, iterations: int | None = None) -> Work:
        """A piece of work, with what workers need beside a vector of weights or state.

        Args:
            number: Tells it from all others.
            steps: To train, or None for an evaluation.
            iterations: See `messages.Work`.
        """
        return Work(
            number,
            steps,
            rates=self.held.rates(),
            counters=self.held.counters(),
            loss_scale=self.held.loss_scale or 1.0,
            counts=self.vectors.get_counts(),
            iterations=iterations,
        )

    @property
    def iterations(self) -> int:
        """Steps that the optimizer has counted, over the whole run."""
        return int(np.asarray(self.optimizer.iterations))

    def take_counters(self, counters: Sequence[Sequence[float]]) -> None:
        """What the workers' optimizers have counted in steps of their own, a list of each worker."""
        self.held.set_counters(self.held.merged(counters))

    def take_counts(self, counts: Sequence[Sequence[Sequence[int]]]) -> None:
        """What the workers' layers have counted: of each number the highest."""
        if self.vectors.counts:
            self.vectors.set_counts([np.max(each, axis=0).tolist() for each in zip(*counts, strict=True)])

    def finalize(self) -> None:
        """What Keras does with the weights when training is over (`use_ema`: the averages take their place)."""
        self.optimizer.finalize_variable_values(self.vectors.trainable)

    def apply_gradient(self, update: Vector) -> Vector:
        """One optimizer step.

        Args:
            update: The mean gradient of the trainable weights, then the new values of the other ones.

        Returns:
            A new vector of the weights after the step.
        """
        gradients, others = self._taken(update)
        result: Vector = np.array(self._apply(*gradients))
        if others:
            result = np.concatenate([result, *[part.ravel() for part in others]])
        return result

    def step(self, update: Vector) -> None:
        """As `apply_gradient`, for whoever does not need the weights as a vector: a copy of all of them less."""
        gradients, _ = self._taken(update)
        self._step(*gradients)

    def _taken(self, update: Vector) -> tuple[list[Vector], list[Vector]]:
        """The gradients, and the other weights' values, which are taken over."""
        parts = self.vectors.model_layout.split(update)
        num_trainable = len(self.vectors.trainable)
        for variable, value in zip(self.vectors.other, parts[num_trainable:], strict=True):
            variable.assign(value)
        return parts[:num_trainable], parts[num_trainable:]

    def logs(self, loss: float, metrics: Sequence[float]) -> dict[str, Any]:
        """What Keras would log.

        Args:
            loss: Mean over all samples.
            metrics: Sums over all workers of the metrics' variables, flat.

        Returns:
            Numbers, and of metrics that give several of them (one a class, one a threshold) arrays.
        """
        logs: dict[str, Any] = {"loss": loss}
        compiled = self.network._compile_metrics
        if compiled is None:
            return logs
        at = 0
        for variable in self.vectors.metrics:
            size = int(np.prod(variable.shape, dtype=np.int64))
            variable.assign(np.reshape(metrics[at : at + size], variable.shape))
            at += size
        results = {name: np.asarray(value) for name, value in compiled.result().items()}
        logs.update({name: value if value.ndim else float(value) for name, value in results.items()})
        compiled.reset_state()
        return logs

    def _apply_only(self, *gradients: Any) -> None:
        import tensorflow as tf

        cast = [
            tf.cast(gradient, variable.dtype)
            for gradient, variable in zip(gradients, self.vectors.trainable, strict=True)
        ]
        take_step(self.optimizer, cast, self.vectors.trainable, self._shares)

    def _apply_gradients(self, *gradients: Any) -> Any:
        import tensorflow as tf

        dtype = self.vectors.model_layout.dtype
        self._apply_only(*gradients)  # constraints, too
        return tf.concat(
            [tf.cast(tf.reshape(variable.value, [-1]), dtype) for variable in self.vectors.trainable], axis=0
        )


def _numpy(variable: Any) -> NDArray[np.generic]:
    """What a variable holds now, without a copy: TensorFlow gives a variable that changes other memory."""
    import tensorflow as tf

    return np.asarray(tf.convert_to_tensor(variable.value))
