"""Master: the one model and optimizer of a run, and what a Keras callback sees.

Everything here runs on the driver. Vectors are laid out as the workers' (see `Vectors`): first the trainable
weights, then the other floating-point weights (batch normalisation's moving statistics).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedlings_spark.errors import NetworkError
from seedlings_spark.training.weights import Layout, Vector


class Vectors:
    """The flat vectors of a compiled Keras network.

    Integer variables (counters, the states of seed generators) do not travel: seeds are derived anew at
    every step.

    Args:
        network: A built and compiled `keras.Model`.
    """

    def __init__(self, network: Any) -> None:
        self.trainable = list(network.trainable_weights)
        self.other = [weight for weight in network.non_trainable_weights if "float" in str(weight.dtype)]
        self.slots = optimizer_slots(network.optimizer) if network.optimizer is not None else []
        self.metrics = metric_variables(network)
        self.model_layout = Layout.of([_numpy(weight) for weight in self.trainable + self.other])
        self.state_layout = Layout.of([_numpy(weight) for weight in self.trainable + self.other + self.slots])


def optimizer_slots(optimizer: Any) -> list[Any]:
    """The optimizer's moments: its variables but for the iteration counter and the learning rate."""
    own = [optimizer.iterations, getattr(optimizer, "_learning_rate", None)]
    return [variable for variable in optimizer.variables if all(variable is not one for one in own)]


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


class Master:
    """The master model with its optimizer.

    Args:
        network: A compiled `keras.Model` whose metrics are built.
    """

    def __init__(self, network: Any) -> None:
        import tensorflow as tf

        self.network = network
        self.optimizer = network.optimizer
        self.optimizer.build(network.trainable_variables)
        self.vectors = Vectors(network)
        self._apply = tf.function(self._apply_gradients, autograph=False)

    @property
    def model_layout(self) -> Layout:
        """Of the vector of weights."""
        return self.vectors.model_layout

    @property
    def state_layout(self) -> Layout:
        """Of the vector of weights and optimizer slots."""
        return self.vectors.state_layout

    def weights(self) -> Vector:
        """A new vector of the current weights."""
        vectors = self.vectors
        return vectors.model_layout.flatten([_numpy(weight) for weight in vectors.trainable + vectors.other])

    def state(self) -> Vector:
        """A new vector of the current weights and optimizer slots."""
        vectors = self.vectors
        return vectors.state_layout.flatten(
            [_numpy(variable) for variable in vectors.trainable + vectors.other + vectors.slots]
        )

    def set_state(self, state: Vector) -> None:
        """Replace weights and optimizer slots."""
        vectors = self.vectors
        variables = vectors.trainable + vectors.other + vectors.slots
        for variable, value in zip(variables, vectors.state_layout.split(state), strict=True):
            variable.assign(value)

    def set_weights(self, weights: Vector) -> None:
        """Replace the weights; optimizer slots stay."""
        self.show(self.network, weights)

    def show(self, network: Any, weights: Vector) -> None:
        """Set the weights of a network of this architecture."""
        vectors = self.vectors if network is self.network else Vectors(network)
        variables = vectors.trainable + vectors.other
        for variable, value in zip(variables, self.model_layout.split(weights), strict=True):
            variable.assign(value)

    def shown(self, network: Any) -> Vector:
        """A new vector of the weights of a network of this architecture."""
        vectors = self.vectors if network is self.network else Vectors(network)
        return self.model_layout.flatten([_numpy(weight) for weight in vectors.trainable + vectors.other])

    @property
    def learning_rate(self) -> float:
        """In force at the next step."""
        return float(np.asarray(self.optimizer.learning_rate))

    @property
    def iterations(self) -> int:
        """Optimizer steps taken, over the whole run."""
        return int(np.asarray(self.optimizer.iterations))

    def advance(self, num_steps: int) -> None:
        """Count steps that the workers have taken on their own."""
        self.optimizer.iterations.assign(self.optimizer.iterations + num_steps)

    def apply_gradient(self, update: Vector) -> Vector:
        """One optimizer step.

        Args:
            update: The mean gradient of the trainable weights, then the new values of the other ones.

        Returns:
            A new vector of the weights after the step.
        """
        parts = self.vectors.model_layout.split(update)
        num_trainable = len(self.vectors.trainable)
        for variable, value in zip(self.vectors.other, parts[num_trainable:], strict=True):
            variable.assign(value)
        result: Vector = np.array(self._apply(*parts[:num_trainable]))
        if self.vectors.other:
            result = np.concatenate([result, *[part.ravel() for part in parts[num_trainable:]]])
        return result

    def logs(self, loss: float, metrics: Sequence[float]) -> dict[str, float]:
        """What Keras would log.

        Args:
            loss: Mean over all samples.
            metrics: Sums over all workers of the metrics' variables, flat.
        """
        logs = {"loss": loss}
        compiled = self.network._compile_metrics
        if compiled is None:
            return logs
        at = 0
        for variable in self.vectors.metrics:
            size = int(np.prod(variable.shape, dtype=np.int64))
            variable.assign(np.reshape(metrics[at : at + size], variable.shape))
            at += size
        logs.update({name: float(np.asarray(value)) for name, value in compiled.result().items()})
        compiled.reset_state()
        return logs

    def _apply_gradients(self, *gradients: Any) -> Any:
        import tensorflow as tf

        dtype = self.vectors.model_layout.dtype
        self.optimizer.apply(
            [
                tf.cast(gradient, variable.dtype)
                for gradient, variable in zip(gradients, self.vectors.trainable, strict=True)
            ],
            self.vectors.trainable,
        )
        # Constraints have been applied by the optimizer.
        return tf.concat(
            [tf.cast(tf.reshape(variable.value, [-1]), dtype) for variable in self.vectors.trainable], axis=0
        )


def network_from_json(text: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A Keras network from its JSON configuration (`model.to_json()`), with newly drawn weights."""
    import keras

    try:
        network = keras.models.model_from_json(text, custom_objects=dict(custom_objects or {}))
    except (ValueError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise NetworkError(
            f"a network that Keras cannot build ({str(error).splitlines()[0]})",
            "the JSON that model.to_json() of Keras 3 gives",
            "Write it again with the installed Keras, and give its own layers by set_custom_objects",
        ) from error
    if not getattr(network, "built", False):
        raise NetworkError(
            "a network that does not know the shape of its input",
            "one that is built",
            "Begin it with keras.Input(shape=...)",
        )
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise NetworkError(
            f"a network with {len(network.inputs)} inputs and {len(network.outputs)} outputs",
            "one input and one output",
            "Join the inputs into one column, or train the network's parts one by one",
        )
    return network


def _numpy(variable: Any) -> NDArray[np.generic]:
    return np.asarray(variable.value)
