"""Optimizers as they travel: made from a configuration, and what they hold between two steps.

What an optimizer counts is not averaged like its moments: its steps, the scale of its loss, its learning rate. An
optimizer that wraps others (`LossScaleOptimizer`, `MultiOptimizer`) holds all of that several times.
"""

import contextlib
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seedlings_spark.errors import OptionError, first_line

# Those that make of each number of a weight, of its gradient and of its slots the next ones, whatever the others are.
# Not RMSprop, Adagrad and Adadelta: of a division by a root TensorFlow makes a product with a reciprocal root, whose
# last bit goes by the place of a number in its array.
_ELEMENTWISE = ("SGD", "Adam", "AdamW", "Lion", "Adamax")
# What makes them look at others, or keep more than slots.
_BESIDES = (
    "clipnorm",
    "global_clipnorm",
    "use_ema",
    "gradient_accumulation_steps",
    "_exclude_from_weight_decay",
)
# A key of our own beside Keras' "class_name" and "config": Keras does not save which variables are spared.
_EXCLUDED = "exclude_from_weight_decay"


def to_config(optimizer: Any) -> dict[str, Any]:
    """What `from_config` makes this optimizer from again, with nothing but plain values.

    Args:
        optimizer: A name, a configuration (which stays as it is), a Keras optimizer, or None for Adam.

    Raises:
        OptionError: It is none of these, or cannot be written down.
    """
    made = _made(optimizer, None) if isinstance(optimizer, str | Mapping) else optimizer
    return _configuration(_made("adam", None) if made is None else made)


def from_config(optimizer: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A new Keras optimizer.

    Args:
        optimizer: As for `to_config`. It is not changed.
        custom_objects: Classes and functions that a configuration names.

    Raises:
        OptionError: Keras does not make it.
    """
    if optimizer is not None and not isinstance(optimizer, str | Mapping):
        optimizer = _configuration(optimizer)
    return _made(optimizer or "adam", custom_objects)


def _configuration(optimizer: Any) -> dict[str, Any]:
    import keras

    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise OptionError(
            f"an optimizer of the type {type(optimizer).__name__}",
            "a name, keras.optimizers.serialize(...) or a Keras optimizer",
            "Correct optimizer_config",
        )
    config: dict[str, Any] = keras.optimizers.serialize(optimizer)
    for part in parts(optimizer):
        if getattr(part, "_exclude_from_weight_decay", None):
            raise OptionError(
                f"{type(part).__name__}.exclude_from_weight_decay(var_list=...)",
                "variables that are excluded by name: those of a worker's network are others",
                "Call exclude_from_weight_decay(var_names=[...])",
            )
        pattern = getattr(part, "_exclude_from_weight_decay_pattern", None)
        if pattern is not None:
            if part is not _innermost(optimizer):
                raise OptionError(
                    "exclude_from_weight_decay on an optimizer within a MultiOptimizer",
                    "one optimizer that spares variables",
                    "Give the spared variables an optimizer without weight_decay in the OptimizerMap",
                )
            config[_EXCLUDED] = pattern.pattern
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"an optimizer {type(optimizer).__name__} that cannot be written down ({error})",
            "plain values and Keras' own or registered schedules",
            "Give the learning rate as a number or a keras.optimizers.schedules.LearningRateSchedule",
        ) from None
    return config


def _made(optimizer: Any, custom_objects: Mapping[str, Any] | None) -> Any:
    import keras

    config: Any = {"class_name": optimizer, "config": {}} if isinstance(optimizer, str) else optimizer
    config = copy.deepcopy(dict(config))  # Keras changes what it reads
    excluded = config.pop(_EXCLUDED, None)
    objects = dict(custom_objects or {})
    # Of Keras 3.15 `deserialize` does not know every optimizer that Keras has.
    own = {name.lower(): one for name, one in vars(keras.optimizers).items() if isinstance(one, type)}
    name = str(config.get("class_name"))
    if not config.get("registered_name") and name not in objects and name.lower() in own:
        config["class_name"] = config["registered_name"] = own[name.lower()].__name__
        objects[config["class_name"]] = own[name.lower()]
    try:
        made = keras.optimizers.deserialize(config, custom_objects=objects)
        if not isinstance(made, keras.optimizers.Optimizer):
            raise TypeError(f"it is a {type(made).__name__}")
        if excluded:
            _innermost(made).exclude_from_weight_decay(var_names=[excluded])
    except Exception as error:  # Keras raises what its classes' arguments raise
        raise OptionError(
            f"optimizer {optimizer!r}, which Keras does not make ({first_line(error)})",
            "a name such as 'adam', or keras.optimizers.serialize(...) of a Keras 3 optimizer",
            "Correct optimizer_config; classes of your own are given by set_custom_objects or registered with "
            "keras.saving.register_keras_serializable()",
        ) from error
    return made


def parts(optimizer: Any) -> list[Any]:
    """The optimizer, and those within it."""
    inner = [optimizer.inner_optimizer] if hasattr(optimizer, "inner_optimizer") else []
    inner += list(getattr(optimizer, "optimizers", None) or [])
    return [optimizer, *(part for one in inner for part in parts(one))]


def _innermost(optimizer: Any) -> Any:
    return _innermost(optimizer.inner_optimizer) if hasattr(optimizer, "inner_optimizer") else optimizer


def has_schedule(optimizer: Any) -> bool:
    """Whether the learning rate cannot be set: a schedule gives it, or there are several."""
    inner = _innermost(optimizer)
    return callable(getattr(inner, "_learning_rate", None)) or len(parts(inner)) > 1


def has_dynamic_scale(optimizer: Any) -> bool:
    """Whether the scale of the loss changes with the gradients."""
    return any(hasattr(part, "inner_optimizer") for part in parts(optimizer))


def is_elementwise(optimizer: Any, weights: Sequence[Any]) -> bool:
    """Whether a step on a slice of the weights, laid out flat, gives the bits of a step on all of them.

    Args:
        optimizer: Built for these weights.
        weights: Those that are trained.
    """
    import keras

    return (
        type(optimizer) in {getattr(keras.optimizers, name) for name in _ELEMENTWISE}
        and not any(
            getattr(optimizer, name, None) for name in (*_BESIDES, "_exclude_from_weight_decay_pattern")
        )
        and all(str(weight.dtype) == "float32" and weight.constraint is None for weight in weights)
        and not any(weight.overwrite_with_gradient for weight in weights)
    )


def slots_by_kind(optimizer: Any, num_weights: int) -> list[list[Any]]:
    """Of an elementwise optimizer that is built, of each kind of slot (such as the momentum) those of all weights."""
    slots = {id(slot) for slot in OptimizerState(optimizer).slots}
    lists = [value for _, value in sorted(vars(optimizer).items()) if isinstance(value, list)]
    kinds = [each for each in lists if len(each) == num_weights and all(id(slot) in slots for slot in each)]
    if sum(map(len, kinds)) != len(slots):
        raise RuntimeError(f"slots of {type(optimizer).__name__} that belong to no kind")
    return kinds


def keeps_averages(optimizer: Any) -> bool:
    """Whether averages of the weights take their place when training is over."""
    return any(getattr(part, "use_ema", False) for part in parts(optimizer))


def check_exchange(optimizer: Any, *, is_synchronous: bool, is_local: bool, rule: str = "") -> None:
    """Refuse what has no meaning where workers do not wait for each other.

    Args:
        optimizer: Optimizer of the run.
        is_synchronous: Whether the workers meet.
        is_local: Whether workers take steps of their own.
        rule: How their work enters the model.

    Raises:
        OptionError: It cannot be trained with in this mode.
    """
    import keras

    if is_synchronous:
        return
    if rule == "eamsgd" and not (
        isinstance(optimizer, keras.optimizers.SGD) and optimizer.momentum and optimizer.nesterov
    ):
        raise OptionError(
            f"rule='eamsgd' with the optimizer {optimizer.name}",
            "SGD with Nesterov momentum, which the rule is made of",
            "Set optimizer_config to SGD(momentum=0.9, nesterov=True), or use rule='aeasgd'",
        )
    second = any(type(part).__name__ == "ScheduleFreeAdamW" for part in parts(optimizer))
    if is_local and (second or keeps_averages(optimizer)):
        name = "ScheduleFreeAdamW" if second else "an optimizer with use_ema=True"
        raise OptionError(
            f"{name} in an asynchronous mode in which workers take steps of their own",
            "one optimizer that sees all steps: each worker would hold averages of its own",
            "Use frequency='batch', or mode='synchronous'",
        )
    if not is_local and has_dynamic_scale(optimizer):
        raise OptionError(
            "LossScaleOptimizer (mixed_float16) in an asynchronous mode with frequency='batch'",
            "gradients whose scale is still that of the master when they arrive",
            "Use mode='synchronous', a fixed loss_scale_factor, or precision='mixed_bfloat16'",
        )


def step_shares(variables: Sequence[Any], layer_decay: float) -> list[float]:
    """What each variable takes of the optimizer's step: layer-wise rates (Howard and Ruder 2018, arXiv:1801.06146).

    A layer begins with its kernel; what follows up to the next kernel, such as its bias and its normalisation, goes
    with it. The shares rise by one factor from layer to layer.

    Args:
        variables: Those that are trained, in the order of the network's layers.
        layer_decay: Share of the first layer; the last one has 1.
    """
    depths = np.maximum(np.cumsum([variable.name.endswith("kernel") for variable in variables]) - 1, 0)
    if layer_decay == 1 or not len(depths) or not depths[-1]:
        return [1.0] * len(depths)
    return [float(share) for share in layer_decay ** (1 - depths / depths[-1])]


def apply(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """One step; to be traced."""
    with _alone(optimizer):
        optimizer.apply(gradients, variables)


@contextlib.contextmanager
def _alone(optimizer: Any) -> Iterator[None]:
    """Leave out Keras' sum over replicas: there is one, and TensorFlow keeps the graph of each such sum for good."""
    each = {id(part): part for part in parts(optimizer)}.values()  # one may be there twice
    for part in each:
        part._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        for part in each:
            del part._all_reduce_sum_gradients


def take_step(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any], shares: Sequence[float]
) -> None:
    """One step, of which each variable takes its share; to be traced."""
    import keras

    before = {
        place: keras.ops.copy(variable)
        for place, (variable, share) in enumerate(zip(variables, shares, strict=True))
        if share != 1
    }
    apply(optimizer, gradients, variables)
    for place, value in before.items():
        variables[place].assign(value + shares[place] * (variables[place] - value))


def check_layer_decay(optimizer: Any, layer_decay: float) -> None:
    """Refuse a share that is none, and one with an optimizer that keeps a second set of weights.

    Raises:
        OptionError: It is so.
    """
    if not 0 < layer_decay <= 1:
        raise OptionError(f"layer_decay={layer_decay!r}", "above 0, up to 1", "Correct layer_decay")
    second = any(type(part).__name__ == "ScheduleFreeAdamW" for part in parts(optimizer))
    if layer_decay != 1 and (second or keeps_averages(optimizer)):
        name = "ScheduleFreeAdamW" if second else "an optimizer that averages weights (use_ema, --ema)"
        raise OptionError(
            f"layer_decay={layer_decay:g} with {name}",
            "an optimizer with one set of weights, which shares of its steps are taken from",
            "Leave out one of them",
        )


class OptimizerState:
    """What a built optimizer holds.

    Args:
        optimizer: Built.

    Attributes:
        slots: Its moments, averages and sums of gradients: what is averaged like weights.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        everything = parts(optimizer)
        rates: list[Any] = [getattr(part, "_learning_rate", None) for part in everything]
        self._rates = [rate for rate in rates if hasattr(rate, "assign")]
        scaled = [part for part in everything if hasattr(part, "dynamic_scale")]
        self._scales = [(part.dynamic_scale, part.step_counter) for part in scaled]
        held = [*self._rates, *(variable for pair in self._scales for variable in pair)]
        rest = [one for one in optimizer.variables if all(one is not other for other in held)]
        self.slots = [variable for variable in rest if "float" in str(variable.dtype)]
        self._steps = [variable for variable in rest if "float" not in str(variable.dtype)]

    def counters(self) -> list[float]:
        """The steps that are counted, then of each scale of the loss the scale and its own count."""
        scales = [variable for pair in self._scales for variable in pair]
        return [float(np.asarray(variable.value)) for variable in self._steps + scales]

    def set_counters(self, counters: Sequence[float]) -> None:
        """Set what `counters` gave."""
        scales = [variable for pair in self._scales for variable in pair]
        for variable, value in zip(self._steps + scales, counters, strict=True):
            variable.assign(np.asarray(value).astype(str(variable.dtype)))

    def set_steps(self, num_steps: int) -> None:
        """Count this many steps."""
        for variable in self._steps:
            variable.assign(num_steps)

    def merged(self, counters: Sequence[Sequence[float]]) -> list[float]:
        """The counters after a round from those of its workers.

        Steps are those of the worker that has taken most: another's batch was empty, or its gradient overflowed. The
        scale of the loss is the smallest, with which no worker overflows.
        """
        cut = len(self._steps)
        steps = [max(column) for column in zip(*(one[:cut] for one in counters), strict=True)]
        for place in range(cut, cut + 2 * len(self._scales), 2):
            steps += min(tuple(one[place : place + 2]) for one in counters)
        return steps

    def rates(self) -> list[float]:
        """The learning rates that are no schedules."""
        return [float(np.asarray(rate.value)) for rate in self._rates]

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set what `rates` gave."""
        for variable, value in zip(self._rates, rates, strict=True):
            variable.assign(value)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied with before its gradient is taken."""
        return float(np.asarray(self._optimizer.scale_loss(1.0)))
