"""The params of our stages beside those of Elephas, and their values as JSON can hold them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from seedlings_spark.cluster import runtime
from seedlings_spark.errors import OptionError
from seedlings_spark.training import optimizer as optimizers

with runtime.quiet_import():
    import keras

    from seedlings_spark.estimator.stock import ElephasEstimator
    from seedlings_spark.problems import Problem


def class_weight_text(value: Any) -> str:
    """A dictionary of class number to weight as the JSON that the param holds."""
    if not isinstance(value, Mapping):
        return str(TypeConverters.toString(value))
    return json.dumps({str(_plain_value(name)): _plain_value(weight) for name, weight in value.items()})


class SparkColumns:
    """Spark ML's usual setters, and what it calls a model's columns. It comes before Elephas' classes."""

    def setFeaturesCol(self, value: str) -> Any:
        """Set `featuresCol`."""
        return self._set(featuresCol=value)  # type: ignore[attr-defined]

    def setLabelCol(self, value: str) -> Any:
        """Set `labelCol`."""
        return self._set(labelCol=value)  # type: ignore[attr-defined]

    def setOutputCol(self, value: str) -> Any:
        """Set `outputCol`: the column of the prediction, as Elephas calls it."""
        return self._set(outputCol=value, predictionCol=value)  # type: ignore[attr-defined]

    def setPredictionCol(self, value: str) -> Any:
        """Set `predictionCol`: the column of the prediction, as Spark calls it."""
        return self._set(predictionCol=value)  # type: ignore[attr-defined]

    def setProbabilityCol(self, value: str) -> Any:
        """Set `probabilityCol`; "" for none."""
        return self._set(probabilityCol=value)  # type: ignore[attr-defined]

    def setRawPredictionCol(self, value: str) -> Any:
        """Set `rawPredictionCol`; "" for none."""
        return self._set(rawPredictionCol=value)  # type: ignore[attr-defined]

    def getPredictionCol(self) -> str:
        """The column of the prediction: `predictionCol` where it is set, else `outputCol`."""
        stage: Any = self
        name = "predictionCol" if stage.isSet("predictionCol") else "outputCol"
        return str(stage.getOrDefault(name))

    def getOrDefault(self, param: Any) -> Any:
        """A param's value; NumPy's numbers as Python's."""
        return _plain_value(super().getOrDefault(param))  # type: ignore[misc]


class SeedlingsParams(
    HasWeightCol, HasValidationIndicatorCol, HasPredictionCol, HasProbabilityCol, HasRawPredictionCol
):
    """The params that Elephas does not have."""

    problem: Param[str] = Param(
        Params._dummy(),
        "problem",
        "'' where loss, label and outputs tell it, else classification, binary, multilabel or regression",
        TypeConverters.toString,
    )

    seed: Param[int] = Param(
        Params._dummy(),
        "seed",
        "of initial weights, order of rows, dropout and augmentation",
        TypeConverters.toInt,
    )
    shards: Param[int] = Param(
        Params._dummy(),
        "shards",
        "parts that the rows are dealt to, of which each worker holds some: a synchronous run gives the same bits with"
        " any number of workers up to this; 0 for as many as workers",
        TypeConverters.toInt,
    )
    min_workers: Param[int] = Param(
        Params._dummy(),
        "min_workers",
        "the fewest workers with which a synchronous run begins and goes on; 0 for num_workers, of which it then never"
        " has more, and for 1 where that is 'auto'",
        TypeConverters.toInt,
    )
    threads: Param[int] = Param(
        Params._dummy(),
        "threads",
        "of TensorFlow in each worker; 0 for spark.task.cpus",
        TypeConverters.toInt,
    )
    precision: Param[str] = Param(
        Params._dummy(),
        "precision",
        "float32, mixed_bfloat16, or auto: what the CPU does best",
        TypeConverters.toString,
    )
    class_weight: Param[str] = Param(
        Params._dummy(),
        "class_weight",
        "'' for none, 'balanced', or a dictionary (or its JSON) of class number to weight",
        class_weight_text,
    )
    augmentation: Param[str] = Param(
        Params._dummy(),
        "augmentation",
        "'' or the JSON of a Keras network that changes images before each training step",
        TypeConverters.toString,
    )
    mixup: Param[float] = Param(
        Params._dummy(),
        "mixup",
        "each row in training takes on a part of another one, and of its label: alpha of the beta distribution of its"
        " own share; 0 for none",
        TypeConverters.toFloat,
    )
    cutmix: Param[float] = Param(
        Params._dummy(),
        "cutmix",
        "each image in training takes on a rectangle of another one, and that share of its label: alpha of the beta"
        " distribution of its own share; 0 for none",
        TypeConverters.toFloat,
    )
    curriculum: Param[str] = Param(
        Params._dummy(),
        "curriculum",
        "'' or a column of numbers, lower where a row is easier: the first epochs go through the easiest quarter of"
        " each class (of all rows where labels are no classes), and the others come in one by one",
        TypeConverters.toString,
    )
    curriculum_epochs: Param[int] = Param(
        Params._dummy(),
        "curriculum_epochs",
        "with a curriculum: epochs before all rows are in; 0 for half of them",
        TypeConverters.toInt,
    )
    layer_decay: Param[float] = Param(
        Params._dummy(),
        "layer_decay",
        "learning rate of the first trained layer as a share of the last one's; those between rise by one factor from"
        " layer to layer",
        TypeConverters.toFloat,
    )
    memory_budget_mb: Param[int] = Param(
        Params._dummy(),
        "memory_budget_mb",
        "MB of features that each worker holds in memory; the rest is spooled to local disk",
        TypeConverters.toInt,
    )
    checkpoint_path: Param[str] = Param(
        Params._dummy(),
        "checkpoint_path",
        "'' or a folder for a checkpoint after each epoch; a run that finds some goes on from there",
        TypeConverters.toString,
    )
    server_port: Param[str] = Param(
        Params._dummy(),
        "server_port",
        "port of the parameter server on the driver: '0' for any, 'N', or 'N-M' for the first free one of a range",
        TypeConverters.toString,
    )
    exchange: Param[str] = Param(
        Params._dummy(),
        "exchange",
        "where the mean of each synchronous step is made: 'driver', 'workers' or 'auto'",
        TypeConverters.toString,
    )
    worker_port: Param[str] = Param(
        Params._dummy(),
        "worker_port",
        "with exchange 'workers' or 'auto': port of each worker for the others, as server_port",
        TypeConverters.toString,
    )
    drop_slow: Param[float] = Param(
        Params._dummy(),
        "drop_slow",
        "how much slower than the others a synchronous worker may be before it loses shards to them, as a factor above"
        " 1; 0 for any",
        TypeConverters.toFloat,
    )
    encrypt: Param[bool] = Param(
        Params._dummy(),
        "encrypt",
        "whether weights and gradients are encrypted on their way; both sides are authenticated either way",
        TypeConverters.toBoolean,
    )
    rule: Param[str] = Param(
        Params._dummy(),
        "rule",
        "how an asynchronous worker's work enters the model: dynsgd (default), downpour, adag, aeasgd or eamsgd",
        TypeConverters.toString,
    )
    elasticity: Param[float] = Param(
        Params._dummy(),
        "elasticity",
        "alpha of the elastic rules; 0 for 0.9 / num_workers",
        TypeConverters.toFloat,
    )
    predicted_species_col: Param[str] = Param(
        Params._dummy(),
        "predicted_species_col",
        "column of the predicted class' name",
        TypeConverters.toString,
    )


def is_param(name: str) -> bool:
    """Whether `SeedlingsEstimator` has a param of this name."""
    return name in _ELEPHAS_PARAMS or isinstance(getattr(SeedlingsParams, name, None), Param)


_ELEPHAS_PARAMS = frozenset(param.name for param in ElephasEstimator().params)


def given_class_weights(text: str) -> dict[str, float] | None:
    """Of the param `class_weight`: class number -> weight; None where they are to be balanced.

    Raises:
        OptionError: It is neither.
    """
    if text == "balanced":
        return None
    try:
        return {str(int(name)): float(value) for name, value in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        raise OptionError(
            f"class_weight={text!r}",
            "'balanced' or a dictionary such as {0: 1.0, 1: 2.5}, also as JSON",
            "Correct class_weight",
        ) from None


def check_reductions(loss: Any, *, is_mean_of_shards: bool, has_weights: bool) -> None:
    """Refuse a loss whose mean over shards is not what one process would have.

    Args:
        loss: As `problems.resolve_loss` gives it.
        is_mean_of_shards: Whether gradients of several shards are averaged, each by its rows.
        has_weights: Whether rows have weights.

    Raises:
        OptionError: It is a sum; or, with weights, a mean by weights.
    """
    reduction = getattr(loss, "reduction", None)
    if is_mean_of_shards and (reduction == "sum" or (reduction == "mean_with_sample_weight" and has_weights)):
        raise OptionError(
            f"a loss with reduction={reduction!r}, of several shards",
            "sum_over_batch_size: each step takes the mean over the rows of all shards",
            "Give the loss without a reduction and, for a sum, the learning rate times the rows of a batch; or use one"
            " shard",
        )


def check_class_weights(given: Mapping[str, float] | None, problem: Problem) -> None:
    """Refuse class weights that do not fit the problem.

    Raises:
        OptionError: It has no classes, or not these, or weights that are none.
    """
    if given == {}:
        return
    if not problem.num_classes:
        raise OptionError(
            f"class_weight with a problem of {problem.kind}",
            "classes that exclude each other",
            "Leave class_weight out, or give sample weights by weightCol",
        )
    numbers = set(map(str, range(problem.num_classes)))
    unknown = sorted(set(given or {}) - numbers)
    bad = {name: weight for name, weight in (given or {}).items() if not 0 <= weight < float("inf")}
    if unknown or bad or (given and set(given) == numbers and not any(given.values())):
        found = (
            f"unknown class{'es' * (len(unknown) != 1)} {', '.join(unknown)}"
            if unknown
            else ", ".join(f"{weight} for class {name}" for name, weight in bad.items())
            or "no weight above 0"
        )
        raise OptionError(
            f"class_weight with {found}",
            f"finite weights of 0 or more, for classes from 0 to {problem.num_classes - 1}",
            "Correct class_weight",
        )


def plain(stage: Any) -> Any:
    """The stage as JSON can hold it: without custom objects, which are classes, and with objects as configurations.

    Raises:
        OptionError: A loss or metric is a function, which JSON cannot hold.
    """
    copy = stage.copy()
    copy.clear(copy.custom_objects)
    for param in copy.params:
        if copy.isSet(param):
            copy._paramMap[param] = _written(param.name, copy.getOrDefault(param))
    return copy


def writable_optimizer(optimizer: Any) -> Any:
    """An optimizer as JSON can hold it; a name or configuration that already can stays as it is."""
    try:
        json.dumps(optimizer)
    except (TypeError, ValueError):
        return optimizers.to_config(optimizer)
    return optimizer


def _written(name: str, value: Any) -> Any:
    """A param's value as JSON can hold it."""
    if isinstance(value, list | tuple):
        return [_written(name, each) for each in value]
    if isinstance(value, keras.losses.Loss):
        return keras.losses.serialize(value)
    if isinstance(value, keras.metrics.Metric):
        return keras.metrics.serialize(value)
    if isinstance(value, keras.optimizers.Optimizer):
        return optimizers.to_config(value)
    if callable(value):
        raise OptionError(
            f"{name}={getattr(value, '__name__', value)!r}, a function",
            "what JSON can hold: a name, numbers, or an object of Keras",
            f"Set {name} anew after loading, or give it by the name of a loss or metric of Keras",
        )
    return _plain_value(value)


def _plain_value(value: Any) -> Any:
    """NumPy's numbers, booleans and strings as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
