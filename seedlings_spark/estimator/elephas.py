"""A drop-in for `elephas.ml_model`: Elephas' own conventions on our engine.

Code that was written for Elephas changes one import:

    from seedlings_spark.elephas import ElephasEstimator, ElephasTransformer, load_ml_estimator, load_ml_transformer

Params, defaults, setters, `get_config`, the HDF5 files and the column that `transform` adds are those of Elephas 7.3.
What differs, on purpose:

* The mode is real. Elephas trains synchronously whatever mode says; here "asynchronous", the default, is
  asynchronous, and an unknown mode or frequency is refused.
* Every row is trained on; Elephas skips a partition that has no more rows than a batch. The rows held out by
  `validation_split` are chosen by their content, not the last ones of each partition.
* `num_workers` above the slots of the cluster: workers live for the whole run, so that they cannot take turns. As many
  are started as there are slots, with a warning.
* Without an optimizer it is Adam; Elephas fails.
* `history` has one entry an epoch, over all workers; Elephas has one an epoch and worker.
* `get_model()` of the transformer has the trained weights; that of Elephas is newly drawn.
* HDF5 files also keep the optimizer and our own params, which Elephas' loaders take or leave, and may be on any
  Hadoop path. `write()` is Spark ML's, so that a `PipelineModel` can be saved.
"""

import base64
import copy
import io
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pyspark.ml.functions import vector_to_array
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.mllib.linalg import VectorUDT as OldVectorUDT
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import NumericType

from seedlings_spark import files, fingerprint, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import NetworkError, OptionError
from seedlings_spark.estimator import columns
from seedlings_spark.estimator.columns import feature_column
from seedlings_spark.models import prediction
from seedlings_spark.training import network as carried
from seedlings_spark.training import optimizer as optimizers

with runtime.quiet_import():
    from seedlings_spark import problems
    from seedlings_spark.estimator.estimator import SeedlingsEstimator
    from seedlings_spark.estimator.model import NETWORK_HASH, SeedlingsModel, network_outputs, read_network
    from seedlings_spark.estimator.stock import LossModelTypeMapper, ModelType, ModelTypeEncoder, as_enum
    from seedlings_spark.estimator.stock import ml_model as stock
    from seedlings_spark.models import networks
    from seedlings_spark.problems import Problem


__all__ = ["ElephasEstimator", "ElephasTransformer", "load_ml_estimator", "load_ml_transformer"]

_log = logging.getLogger(__name__)

# The attribute of an HDF5 file in which Elephas keeps all that it saves, and within it the key of what only we keep.
_ATTRIBUTE = "distributed_config"
_OURS = "seedlings_spark"
_FORMAT = 1
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
# Rows of one forward pass where inference_batch_size is not set; Elephas then predicts a whole partition at once.
_INFERENCE_BATCH_SIZE = 64
# Elephas' HDF5 layout takes about 20 bytes a weight, as text in one attribute, which is read in one piece.
_MANY_WEIGHTS = 5_000_000


class ElephasEstimator(SeedlingsEstimator):
    """`elephas.ml_model.ElephasEstimator` on our engine.

    Args:
        **kwargs: The params of Elephas with its defaults (mode "asynchronous", frequency "epoch", num_workers 8,
            epochs 10, batch_size 32, validation_split 0.1, categorical True, nb_classes 10, metrics ["acc"]), and
            those of `SeedlingsEstimator`.

    How the label column reaches the loss, as in Elephas: with `categorical` the class numbers become one-hot vectors
    of `nb_classes`, without it they stay numbers. The losses on class numbers ("sparse_...") get numbers, and those on
    one-hot vectors ("categorical_...") vectors, whatever `categorical` says: Elephas fails there.
    """

    __module__ = "seedlings_spark.elephas"  # as saved pipelines name it

    # Elephas' own, which say that they are deprecated.
    setFeaturesCol = stock.ElephasEstimator.setFeaturesCol  # noqa: N815
    setLabelCol = stock.ElephasEstimator.setLabelCol  # noqa: N815
    setOutputCol = stock.ElephasEstimator.setOutputCol  # noqa: N815

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._setDefault(
            mode="asynchronous",
            frequency="epoch",
            num_workers=8,
            validation_split=0.1,
            nb_classes=10,
            metrics=["acc"],
        )

    def save(self, file_name: str) -> None:
        """Write the params to an HDF5 file that `load_ml_estimator` reads, ours and Elephas' own.

        Custom objects and what is no `Param` are not saved.

        Args:
            file_name: On this machine, or the URI of any Hadoop file system. A file that exists is replaced.

        Raises:
            OptionError: A loss or metric is a function, which a file cannot hold.
        """
        config = self.get_config()
        optimizer = _optimizer_config(self.get_optimizer_config())
        if optimizer is not None:
            config["optimizer_config"] = optimizer
        ours: dict[str, Any] = {"params": _own_params(self, config)}
        if self._has_network():
            ours["network"] = _text(self._network_content)
        _write(file_name, type(self).__name__, config, ours)

    def _fit(self, dataset: DataFrame) -> "ElephasTransformer":
        engine = self._for_engine(session.num_slots(dataset.sparkSession))
        trained = SeedlingsEstimator._fit(engine, self._for_engine_columns(dataset))
        model = ElephasTransformer(
            featuresCol=self.getFeaturesCol(),
            labelCol=self.getLabelCol(),
            outputCol=self.getOutputCol(),
            custom_objects=self.get_custom_objects(),
            model_type=_model_type(self.get_loss() if isinstance(self.get_loss(), str) else self._loss()),
            precision=trained.getOrDefault("precision"),
        )
        model._take(trained.network_bytes, trained.history, trained.record)
        return model._resetUid(self.uid)

    def _for_engine(self, num_slots: int) -> "ElephasEstimator":
        """A copy whose params say to the engine what they say to Elephas."""
        engine = self.copy()
        engine._set(optimizer_config=_optimizer_config(self.get_optimizer_config()))
        categorical = bool(self.get_categorical_labels())
        if self.isDefined("loss") and _labels(self._loss(), categorical=categorical) != "one_hot":
            engine._set(nb_classes=0)
        num_workers = self.get_num_workers()
        if isinstance(num_workers, int) and num_workers > num_slots > 0:
            _log.warning(
                "num_workers=%d, but the cluster has %d slot%s: training with %d. Workers live for the whole run and"
                " cannot take turns; for more of them start with more cores or executors.",
                num_workers,
                num_slots,
                "s" * (num_slots != 1),
                num_slots,
            )
            engine._set(num_workers=num_slots)
        return engine

    def _for_engine_columns(self, dataset: DataFrame) -> DataFrame:
        """Vectors of the old MLlib as arrays, and the label without the names of its classes.

        Elephas knows no names, and lets a network have more outputs than there are classes.
        """
        features, label = self.getFeaturesCol(), self.getLabelCol()
        if _is_old_vector(dataset, features):
            dataset = dataset.withColumn(features, vector_to_array(schema.column(features)))
        if label in dataset.columns and isinstance(dataset.schema[label].dataType, NumericType):
            dataset = dataset.withColumn(label, schema.column(label).cast("double"))
        return dataset

    def _problem(self, dataset: DataFrame, network: Any) -> Problem:
        """As Elephas has it: `categorical` says what the labels are, and the outputs stay as they are."""
        if self.getOrDefault("problem"):
            return replace(super()._problem(dataset, network), head=())
        loss, outputs = self._loss(), int(network.output_shape[-1])
        labels = _labels(loss, categorical=bool(self.get_categorical_labels()))
        if columns.label_type(dataset, self.getLabelCol()) == columns.VECTOR:
            return Problem("regression", "vector", outputs)
        num_classes = self.get_nb_classes() or outputs
        if labels == "one_hot" and num_classes != outputs:
            raise NetworkError(
                f"one-hot labels of nb_classes={num_classes} for a network of {outputs} output{'s' * (outputs != 1)}",
                "as many classes as outputs",
                f"Set nb_classes={outputs}, or categorical=False where the label is a number to predict or the loss"
                " takes class numbers",
            )
        if labels != "number":
            return Problem("classification", labels, outputs, outputs)
        if outputs != 1 and problems.family_of(loss) != "own":
            raise NetworkError(
                f"a network of {outputs} outputs for one number a row as label, with {problems.name_of(loss)}",
                "a label for each output: one number would be compared with all of them",
                f"Set categorical=True and nb_classes={outputs} where the label is a class number, give the network"
                " one output, or assemble the labels into a vector",
            )
        return Problem("regression", labels, outputs)


class ElephasTransformer(SeedlingsModel):
    """`elephas.ml_model.ElephasTransformer` on our engine.

    `transform` adds `outputCol` alone: for a classifier (and for a loss that `LossModelTypeMapper` does not know) an
    array of doubles, the network's outputs, and for a regression a double. It is lazy, and reads its source once.

    Args:
        **kwargs: As for Elephas: params, `weights` (arrays in Keras' order), `model_type` and `history`.
    """

    __module__ = "seedlings_spark.elephas"  # as saved pipelines name it

    def __init__(self, **kwargs: Any) -> None:
        self._weights: list[NDArray[Any]] | None = None
        super().__init__(**kwargs)
        self._setDefault(inference_batch_size=None, kind="")

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The network's weights, in Keras' order; empty for a transformer that was given none."""
        if self._weights is None:
            self._weights = self.get_model().get_weights() if self._content else []
        return list(self._weights)

    @weights.setter
    def weights(self, weights: Sequence[NDArray[Any]]) -> None:
        self._weights = [np.asarray(weight) for weight in weights]
        self._content = b""

    @property
    def model_type(self) -> ModelType | None:
        """What Elephas' `LossModelTypeMapper` says of the loss; None where it does not know it."""
        kind = self.getOrDefault("kind")
        return ModelType[kind.upper()] if kind else None

    @model_type.setter
    def model_type(self, model_type: ModelType | None) -> None:
        self._set(kind=model_type.name.lower() if model_type is not None else "")

    @property
    def history(self) -> list[dict[str, list[float]]]:
        """For each epoch what Keras' `History` has of it, over all workers: lists of one value."""
        history: Any = self._history
        return list(history)

    @property
    def network_bytes(self) -> bytes:
        """The content of the network's `.keras` file."""
        if not self._content:
            if not self._weights:
                raise NetworkError(
                    "a transformer without weights",
                    "those of a trained network",
                    "Get it from ElephasEstimator.fit or load_ml_transformer, or give weights=model.get_weights()",
                )
            self._content = carried.to_bytes(self.get_model())
        return self._content

    def set_keras_model_config(self, keras_model_config: str) -> "ElephasTransformer":
        """Another network for the same weights."""
        self.weights = self.weights
        self._set(keras_model_config=keras_model_config)
        return self

    def get_model(self) -> Any:
        """The Keras network with its weights; newly drawn ones where there are none."""
        if self._content:
            return carried.from_bytes(self._content, self.get_custom_objects())
        network = carried.from_json(self.get_keras_model_config(), self.get_custom_objects())
        if self._weights:
            carried.restore_weights(network, self._weights)
        return network

    def save(self, file_name: str) -> None:
        """Write an HDF5 file that `load_ml_transformer` reads, ours and Elephas' own.

        Elephas keeps the weights as JSON text: about 20 bytes a weight, 500 MB for a network of 25 million, and
        several times that in memory. `write()` needs 4. Custom objects are not saved.

        Args:
            file_name: On this machine, or the URI of any Hadoop file system. A file that exists is replaced.
        """
        num_weights = sum(weight.size for weight in self.weights)
        if num_weights > _MANY_WEIGHTS:
            _log.warning(
                "%s: %d weights as JSON text, about %d MB; write().save(path) takes a fifth of it",
                file_name,
                num_weights,
                num_weights // 50_000,
            )
        config = self.get_config()
        ours: dict[str, Any] = {
            "params": _own_params(self, config),
            "history": self.history,
            "record": self.record,
        }
        if self._content and carried.has_assets(self._content):
            ours["network"] = _text(self._content)  # what neither JSON nor weights hold
        _write(file_name, type(self).__name__, config, ours)

    def write(self) -> MLWriter:
        """Spark ML's writer."""
        return _TransformerWriter(self)

    @classmethod
    def read(cls) -> "MLReader[SeedlingsModel]":
        """Spark ML's reader."""
        return _TransformerReader()

    def _take(self, content: bytes, history: Any, record: Mapping[str, Any]) -> None:
        super()._take(content, {}, record)
        by_epoch: Any = _by_epoch(history) if isinstance(history, Mapping) else list(history)
        self._history = by_epoch
        self._weights = None
        if not self.isSet("keras_model_config"):
            self._set(keras_model_config=self.get_model().to_json())

    def _transform(self, dataset: DataFrame) -> DataFrame:
        spark, name = dataset.sparkSession, self.getFeaturesCol()
        features = (
            vector_to_array(schema.column(name))
            if _is_old_vector(dataset, name)
            else feature_column(dataset, name)
        )
        task = prediction.ForwardTask(
            network=self.network_bytes,
            precision=self.getOrDefault("precision"),
            batch_size=max(0, self.get_inference_batch_size() or 0) or _INFERENCE_BATCH_SIZE,
            threads=self.getOrDefault("threads") or session.task_cpus(spark),
            custom_objects=self._objects(self.network_bytes),
        )
        outputs = network_outputs(spark, task, features)
        if self.model_type == ModelType.REGRESSION and self.get_model().output_shape[-1] == 1:
            outputs = F.element_at(outputs, 1)
        return dataset.withColumn(self.getOutputCol(), outputs)


def load_ml_estimator(file_name: str) -> ElephasEstimator:
    """The estimator of an HDF5 file that `ElephasEstimator.save` wrote, this one or Elephas' own.

    Raises:
        NetworkError: No such file of an estimator.
    """
    config, ours = _read(file_name, "estimator")
    estimator = ElephasEstimator(**config, **ours.get("params", {}))
    if "network" in ours:
        estimator._take_network(base64.b64decode(ours["network"]))
    return estimator


def load_ml_transformer(file_name: str) -> ElephasTransformer:
    """The transformer of an HDF5 file that `ElephasTransformer.save` wrote, this one or Elephas' own.

    A network with custom objects wants them by `set_custom_objects` before it is used.

    Raises:
        NetworkError: No such file of a transformer.
    """
    config, ours = _read(file_name, "transformer")
    config["weights"] = [_array(weight) for weight in config["weights"]]
    model = ElephasTransformer(**config, **ours.get("params", {}), history=ours.get("history", []))
    model._record = dict(ours.get("record", {}))
    if "network" in ours:
        model._content = base64.b64decode(ours["network"])
    return model


class _TransformerWriter(MLWriter):
    """Metadata, and the network beside it."""

    def __init__(self, instance: ElephasTransformer) -> None:
        super().__init__()
        self._instance = instance

    def saveImpl(self, path: str) -> None:
        instance = self._instance
        plain = instance.copy()
        plain.clear(plain.custom_objects)  # classes and functions, which JSON cannot hold
        content = instance.network_bytes
        network_hash = fingerprint.content_hash(content)
        extra = {"history": instance.history, "record": instance.record, NETWORK_HASH: network_hash}
        DefaultParamsWriter.saveMetadata(plain, path, self.sparkSession, extraMetadata=extra)
        files.write_bytes(files.join(path, networks.FILE), content)


class _TransformerReader(MLReader[SeedlingsModel]):
    """The counterpart of `_TransformerWriter`."""

    def load(self, path: str) -> ElephasTransformer:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        model = ElephasTransformer()
        model._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        content = read_network(path, metadata)
        model._take(content, metadata["history"], metadata["record"])
        return model


def _is_old_vector(dataset: DataFrame, name: str) -> bool:
    """Whether a column is of `pyspark.mllib`, as Elephas' `to_data_frame` makes them."""
    return name in dataset.columns and isinstance(dataset.schema[name].dataType, OldVectorUDT)


# Losses.


def _loss_name(loss: Any) -> str:
    return str(loss if isinstance(loss, str) else getattr(loss, "__name__", getattr(loss, "name", "")))


def _labels(loss: Any, *, categorical: bool) -> str:
    """What labels a loss is to get: "index" (class numbers), "one_hot" or "number"."""
    family = problems.family_of(loss)
    if family == "sparse":
        return "index"
    return "one_hot" if categorical or family == "categorical" else "number"


def _model_type(loss: Any) -> ModelType | None:
    """Elephas' type of a loss: a name, or a function or class that was registered under its name."""
    found: ModelType | None = LossModelTypeMapper().get_model_type(_loss_name(loss))
    return found


# Optimizers.


def _optimizer_config(optimizer: Any) -> Any:
    """An optimizer as Keras 3 can read it and JSON can hold it: None, a name, or a new dictionary.

    Args:
        optimizer: One of those, an optimizer, or a dictionary of an older Keras, with its `lr`.
    """
    if optimizer is None or isinstance(optimizer, str):
        return optimizer
    if not isinstance(optimizer, Mapping):
        return optimizers.to_config(optimizer)
    made = copy.deepcopy(dict(optimizer))  # Keras changes what it reads
    config = made.get("config")
    if isinstance(config, dict):
        if "lr" in config:
            config.setdefault("learning_rate", config.pop("lr"))
        if config.pop("decay", None):
            _log.warning(
                "the optimizer's decay is left out: Keras 3 has none. Give a schedule as its learning_rate,"
                " for example keras.optimizers.schedules.InverseTimeDecay"
            )
        for name in ("is_legacy_optimizer", "jit_compile"):
            config.pop(name, None)
    return made


# Files.


def _own_params(stage: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The params that were set and that Elephas' own configuration does not hold."""
    held = {*config, "categorical", "custom_objects", "kind", "optimizer_config"}
    return {param.name: value for param, value in stage._paramMap.items() if param.name not in held}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _write(file_name: str, class_name: str, config: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    content = {"class_name": class_name, "config": config, _OURS: {"format": _FORMAT, **ours}}
    try:
        text = json.dumps(content, cls=ModelTypeEncoder)
    except TypeError as error:
        raise OptionError(
            f"a param that a file cannot hold ({error})",
            "losses and metrics by name, and plain values",
            "Give the loss or metric as a string, or set it anew after loading",
        ) from error
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs[_ATTRIBUTE] = text.encode("utf8")
    files.write_bytes(_place(file_name), buffer.getvalue())


def _read(file_name: str, wanted: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Elephas' configuration of a stage, and what only our files have."""
    try:
        with h5py.File(io.BytesIO(files.read_bytes(_place(file_name))), "r") as file:
            content = json.loads(file.attrs[_ATTRIBUTE], object_hook=as_enum)
        config, ours = dict(content["config"]), dict(content.get(_OURS, {}))
    except FileNotFoundError:
        raise NetworkError(f"no file {file_name}", f"an Elephas {wanted}", "Check the path") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise NetworkError(
            f"{file_name}, which cannot be read ({error})",
            f"an HDF5 file that an Elephas {wanted} has saved",
            "Save it again with save(file)",
        ) from error
    found = "transformer" if "weights" in config else "estimator"
    if found != wanted:
        raise NetworkError(
            f"{file_name}, an Elephas {found}", f"an {wanted}", f"Load it with load_ml_{found}"
        )
    if ours.get("format", _FORMAT) != _FORMAT:
        raise NetworkError(
            f"{file_name} of format {ours['format']}",
            f"format {_FORMAT}",
            "Read it with the version of seedlings_spark that wrote it, or a newer one",
        )
    return config, ours


def _place(file_name: str) -> str:
    """A path without a scheme is on this machine, as in Elephas, whatever Spark's default file system is."""
    name = os.fspath(file_name)
    return name if _SCHEME.match(name) else f"file://{Path(name).absolute()}"


def _array(values: Any) -> NDArray[Any]:
    """An array of JSON's numbers: float32 where they all are that, as weights mostly were."""
    wide = np.array(values)
    if wide.dtype != np.float64:
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow, wide, equal_nan=True) else wide


def _by_epoch(history: Mapping[str, Sequence[float]]) -> list[dict[str, list[float]]]:
    """Keras' history of a whole run as a list of such of one epoch each."""
    num_epochs = max((len(values) for values in history.values()), default=0)
    return [
        {name: [values[epoch]] for name, values in history.items() if epoch < len(values)}
        for epoch in range(num_epochs)
    ]
