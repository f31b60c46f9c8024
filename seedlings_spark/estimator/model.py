"""SeedlingsModel: a trained network as a Spark ML transformer, and how it is saved."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.util import (
    DefaultParamsReader,
    DefaultParamsWriter,
    MLReadable,
    MLReader,
    MLWritable,
    MLWriter,
)
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import BinaryType

from seedlings_spark import files, fingerprint, schema
from seedlings_spark.choices import ONNXRUNTIME, TENSORFLOW
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import CorpusError, NetworkError, OptionError
from seedlings_spark.estimator.columns import VECTOR, feature_column, label_column, label_type
from seedlings_spark.estimator.params import SeedlingsParams, SparkColumns, plain
from seedlings_spark.kinds import ONE_SPECIES, Kind, Reading
from seedlings_spark.models import decisions, engines, export, prediction
from seedlings_spark.training import network as carried
from seedlings_spark.training.record import TrainingRecord

with runtime.quiet_import():
    from seedlings_spark import problems
    from seedlings_spark.estimator.stock import ElephasTransformer
    from seedlings_spark.models import networks

# Of which function of them a model's probabilities are, by its kind.
_LOGITS = {
    problems.CLASSIFICATION: "softmax",
    problems.BINARY: "sigmoid",
    problems.MULTILABEL: "sigmoid",
    problems.REGRESSION: "",
}
# In the metadata of a stage: the SHA-256 of its network, and of its ONNX form if it has one.
NETWORK_HASH, ONNX_HASH = "network_sha256", "onnx_sha256"
# Probabilities that thresholds are fitted on, at most, which the driver takes.
_MOST_VALUES = 4_000_000


class SeedlingsModel(
    SparkColumns, ElephasTransformer, SeedlingsParams, MLWritable, MLReadable["SeedlingsModel"]
):
    """A trained network as a Spark ML transformer.

    It adds `prediction` (double: the class number, or the value of a regression), and for a classifier
    `probability` (vector, in the order of the classes), `predicted_species` (the class' name) and `rawPrediction`
    (vector: logits, of which `probability` is the softmax). A column whose name is "" is not added.

    Of more than one value (a regression of several outputs, the classes that a row has in a problem of "multilabel")
    `prediction` and `predicted_species` are arrays.

    Params as for `SeedlingsEstimator`; `labels` are the classes' names in order, `kind` is the kind of problem:
    "classification", "binary" (one output, the probability of class 1), "multilabel" or "regression".
    `label_thresholds` are the probabilities from which a row has each class of a problem of "multilabel":
    `fit_thresholds` chooses them, without it they are 0.5.
    """

    __module__ = "seedlings_spark.estimator"  # as saved pipelines name it

    labels: Param[list[str]] = Param(
        Params._dummy(), "labels", "names of the classes, in order", TypeConverters.toListString
    )
    kind: Param[str] = Param(
        Params._dummy(), "kind", "classification, binary, multilabel or regression", TypeConverters.toString
    )

    label_thresholds: Param[list[float]] = Param(
        Params._dummy(),
        "label_thresholds",
        "of a problem of multilabel: from which probability a row has each class; [] for 0.5 each",
        TypeConverters.toListFloat,
    )

    num_outputs: Param[int] = Param(
        Params._dummy(), "num_outputs", "values that the network gives for a row", TypeConverters.toInt
    )

    engine: Param[str] = Param(
        Params._dummy(),
        "engine",
        "of transform: onnxruntime, openvino, tensorflow, or auto: ONNX Runtime where use_onnx has been called, and no"
        " GPU is assigned",
        TypeConverters.toString,
    )

    tta: Param[int] = Param(
        Params._dummy(),
        "tta",
        "test-time augmentation of images: 1 for none; else probabilities are the mean over 2 (mirrored), 4 (both ways)"
        " or 8 views (with quarter turns)",
        TypeConverters.toInt,
    )

    def __init__(self, **kwargs: Any) -> None:
        self._content = b""
        self._onnx = b""
        self._record: dict[str, Any] = {}
        super().__init__(**kwargs)
        self._setDefault(
            outputCol=schema.PREDICTION,
            predicted_species_col=schema.PREDICTED_SPECIES,
            labels=[],
            kind="classification",
            num_outputs=1,
            label_thresholds=[],
            precision="float32",
            threads=0,
            inference_batch_size=64,
            engine="auto",
            tta=1,
        )

    @classmethod
    def from_network(
        cls, network: Any, classes: Sequence[str], *, features_col: str = schema.IMAGE, loss: Any = None
    ) -> "SeedlingsModel":
        """A model of a network that was trained elsewhere, over raw pixels.

        Args:
            network: A `keras.Model` with an output for each class: probabilities or logits.
            classes: Names, in the order of its outputs.
            features_col: Column of images.
            loss: That it was trained with, which tells whether its outputs are logits; without it the last
                activation does.
        """
        model = cls(featuresCol=features_col, labelCol=schema.LABEL, labels=list(classes))
        known = None if loss is None else problems.resolve_loss(loss)
        head = problems.head_of(problems.CLASSIFICATION, known, network)
        model._take(networks.to_bytes(problems.with_head(network, head)), {}, {})
        return model

    @classmethod
    def featurizer(
        cls,
        network: Any,
        layer: str = "",
        *,
        features_col: str = schema.IMAGE,
        output_col: str = "features",
    ) -> "SeedlingsModel":
        """A transformer that adds what a layer of a network gives for each row, as an array of numbers.

        `pyspark.ml.functions.array_to_vector` makes a vector of it, for Spark ML's own stages.

        Args:
            network: A `keras.Model`.
            layer: Name of the layer; without one, that whose outputs the last layer with weights, or a dropout before
                it, takes: the features that the classes are told by.
            features_col: Column of images, or of what the network takes.
            output_col: Column that is added.

        Raises:
            OptionError: The network has no such layer, or one that does not give one vector a row.
        """
        features = networks.features_of(network, layer)
        model = cls(featuresCol=features_col, outputCol=output_col, predicted_species_col="")
        model._set(kind=problems.REGRESSION, num_outputs=int(features.output_shape[-1]))
        model._take(networks.to_bytes(features), {}, {})
        return model

    def setLabelThresholds(self, value: list[float]) -> "SeedlingsModel":
        """Set `label_thresholds`, from which probability a row has each class."""
        return self._set(label_thresholds=value)

    def fit_thresholds(self, dataset: DataFrame) -> decisions.Thresholds:
        """Choose `label_thresholds` so that each class has its highest F1 on rows that the network was not trained on.

        Args:
            dataset: With features and labels as `fit` takes them. Of more than 4,000,000 probabilities a part is looked
                at, chosen by the features' hashes.

        Raises:
            OptionError: The model is of another kind.
            CorpusError: There are no rows, or their labels are no vectors of 0 and 1 for each class.
        """
        if self.getOrDefault("kind") != problems.MULTILABEL:
            raise OptionError(
                f"thresholds of a model of {self.getOrDefault('kind')}",
                "one of multilabel, whose rows have any number of classes",
                "Use its predictions as they are",
            )
        spark, name = dataset.sparkSession, self.getLabelCol()
        if name not in dataset.columns or label_type(dataset, name) != VECTOR:
            raise CorpusError(
                f"no label {name!r} of vectors among {', '.join(dataset.columns)}",
                "the label that the model was trained on",
                "Give a table that the stages before the model have transformed",
            )
        column, num_outputs = feature_column(dataset, self.getFeaturesCol()), self.getOrDefault("num_outputs")
        share = min(1.0, _MOST_VALUES / num_outputs / max(1, dataset.count()))
        chosen = dataset.where(
            F.pmod(F.xxhash64(column), F.lit(1 << 20)) < F.lit(max(1, int(share * (1 << 20))))
        )
        are_pixels = isinstance(dataset.schema[self.getFeaturesCol()].dataType, BinaryType)
        outputs = network_outputs(spark, self.forward_task(spark, are_pixels=are_pixels), column)
        found = chosen.select(label_column(dataset, name).alias("label"), outputs.alias("outputs")).toArrow()
        truth, probabilities = (
            each.combine_chunks().flatten().to_numpy(zero_copy_only=False) for each in found.columns
        )
        if not found.num_rows or truth.shape != probabilities.shape or truth.size % num_outputs:
            raise CorpusError(
                f"{found.num_rows:,} rows with {truth.size:,} labels",
                f"some rows, each with {num_outputs} labels",
                "Give rows with labels, such as the validation images",
            )
        made = decisions.fit_thresholds(
            probabilities.reshape(-1, num_outputs), truth.reshape(-1, num_outputs)
        )
        self._set(label_thresholds=list(made.values))
        return made

    def setTta(self, value: int) -> "SeedlingsModel":
        """Set `tta`, the number of views of each image whose probabilities are averaged."""
        return self._set(tta=value)

    def setWeightCol(self, value: str) -> "SeedlingsModel":
        """Set `weightCol`, which evaluators look for."""
        return self._set(weightCol=value)

    def _take(
        self, content: bytes, history: Mapping[str, Sequence[float]], record: Mapping[str, Any]
    ) -> None:
        self._content = content
        self._onnx = b""
        self._history = dict(history)
        self._record = dict(record)

    def use_onnx(self, rows: NDArray[Any] | None = None) -> dict[str, Any]:
        """Let `transform` compute by ONNX Runtime from now on; what is saved has the ONNX file, too.

        A version of a store has it already. Predictions are Keras', to 1e-5.

        Args:
            rows: What to compare the two on, shape (rows, *input shape): uint8 pixels or numbers. Some are drawn
                without.

        Returns:
            How they compare: see `models.export.to_onnx`.

        Raises:
            NetworkError: The network has no ONNX form, or one that predicts otherwise. Nothing has changed.
        """
        self._onnx, about = export.to_onnx(self._content, rows, self._objects(self._content))
        return about

    @property
    def onnx_bytes(self) -> bytes:
        """The content of the network's ONNX file; empty if it has none."""
        return self._onnx

    @property
    def network_bytes(self) -> bytes:
        """The content of the network's `.keras` file; a classifier's gives probabilities, also if trained on logits."""
        return self._content

    @property
    def numClasses(self) -> int:
        """Number of classes; as in Spark's models only of a classifier."""
        kind = self.getOrDefault("kind")
        if kind == problems.REGRESSION:
            raise AttributeError("a regression has no classes")
        return 2 if kind == problems.BINARY else int(self.get_model().output_shape[-1])

    @property
    def numFeatures(self) -> int:
        """Values of one row's features."""
        return int(np.prod(self.get_model().input_shape[1:], dtype=np.int64))

    @property
    def record(self) -> dict[str, Any]:
        """What was recorded of the training: rows of each worker, precision, environment, failures; see `summary`."""
        return dict(self._record)

    @property
    def hasSummary(self) -> bool:
        """Whether anything was recorded: a network that was trained elsewhere has no record."""
        return bool(self._record)

    @property
    def summary(self) -> TrainingRecord:
        """What was recorded of the training, as a type.

        Raises:
            RuntimeError: There is no record, as `hasSummary` tells; Spark's own models raise the same.
        """
        if not self.hasSummary:
            raise RuntimeError("no training summary: the network was trained elsewhere")
        return TrainingRecord.of(self._record)

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The network's weights, in Keras' order."""
        weights: list[NDArray[Any]] = self.get_model().get_weights()
        return weights

    def get_model(self) -> Any:
        """The trained Keras network, over raw features; its outputs are logits where it was trained on such."""
        return problems.without_head(carried.from_bytes(self._content, self.get_custom_objects()))

    def _objects(self, content: bytes) -> dict[str, Any]:
        """The classes and functions of one's own that a network names."""
        return {**carried.registered_in(carried.to_json(content)), **(self.get_custom_objects() or {})}

    def write(self) -> MLWriter:
        """Spark ML's writer."""
        return _ModelWriter(self)

    def save(self, path: str) -> None:
        """Save as a Spark ML stage."""
        self.write().save(path)

    @classmethod
    def read(cls) -> "MLReader[SeedlingsModel]":
        """Spark ML's reader."""
        return _ModelReader()

    def _transform(self, dataset: DataFrame) -> DataFrame:
        spark, name = dataset.sparkSession, self.getFeaturesCol()
        column = feature_column(dataset, name)
        task = self.forward_task(spark, are_pixels=isinstance(dataset.schema[name].dataType, BinaryType))
        kind = self.getOrDefault("kind")
        outputs = network_outputs(spark, replace(task, logits=_LOGITS[kind]), column)
        kept = f"outputs_{uuid.uuid4().hex[:8]}"
        table = dataset.withColumn(kept, outputs)
        added = {name: column for name, column in self._columns(F.col(kept), kind).items() if name}
        return table.withColumns(added).drop(kept)

    def forward_task(self, spark: SparkSession, *, are_pixels: bool) -> prediction.ForwardTask:
        """What a task needs to predict.

        Args:
            spark: The session.
            are_pixels: Whether it is given bytes and not numbers.

        Raises:
            NetworkError: The engine that was chosen cannot be had.
        """
        task = prediction.ForwardTask(
            network=self.network_bytes,
            precision=self.getOrDefault("precision"),
            batch_size=self.get_inference_batch_size(),
            threads=self.getOrDefault("threads") or session.task_cpus(spark),
            views=self.getOrDefault("tta"),
            reading=self._reading(),
        )
        chosen = self.getOrDefault("engine")
        if chosen == "auto" and self._onnx and not are_pixels and engines.takes_pixels(self._onnx):
            chosen = TENSORFLOW
        engine = prediction.engine_for(spark, chosen, has_onnx=bool(self._onnx))
        if engine == TENSORFLOW:
            return replace(task, custom_objects=self._objects(self._content))
        precision = "float32" if engine == ONNXRUNTIME else task.precision
        return replace(task, network=self._onnx, engine=engine, precision=precision)

    def _reading(self) -> Reading:
        """How the network's outputs are read; of a regression without the scale of its labels."""
        if self.getOrDefault("kind") == problems.MULTILABEL:
            return Reading(Kind.MULTILABEL, self._thresholds())
        return Reading(Kind.REGRESSION) if self.getOrDefault("kind") == problems.REGRESSION else ONE_SPECIES

    def _thresholds(self) -> tuple[float, ...]:
        """From which probability a row has each class of a problem of "multilabel".

        Raises:
            OptionError: There are others than one for each class.
        """
        num_outputs = self.getOrDefault("num_outputs")
        values = self.getOrDefault("label_thresholds") or [0.5] * num_outputs
        if len(values) != num_outputs or not all(0 <= value <= 1 for value in values):
            raise OptionError(
                f"label_thresholds={values}",
                f"a probability for each of {num_outputs} classes",
                "Correct it, or leave it to fit_thresholds",
            )
        return tuple(values)

    def _columns(self, outputs: Column, kind: str) -> dict[str, Column]:
        """The columns that are added, of an array of the network's outputs and, for a classifier, their logits."""
        species = self.getOrDefault("predicted_species_col")
        names = [self.getPredictionCol(), self.getProbabilityCol(), species, self.getRawPredictionCol()]
        first = F.element_at(outputs, 1)
        if kind == problems.REGRESSION:
            return {names[0]: first if self.getOrDefault("num_outputs") == 1 else outputs}
        half = (F.size(outputs) / 2).cast("int")
        probabilities, logits = F.slice(outputs, F.lit(1), half), F.slice(outputs, half + 1, half)
        if kind == problems.BINARY:
            logit = F.element_at(outputs, 2)
            probabilities, logits = F.array(1.0 - first, first), F.array(-logit, logit)
        vectors = [array_to_vector(probabilities), array_to_vector(logits)]
        labels = self.getOrDefault("labels")
        classes = F.array(*[F.lit(name) for name in labels]) if labels else None

        def name_of(number: Column) -> Column:
            number = number.cast("int")
            return number.cast("string") if classes is None else F.element_at(classes, number + 1)

        if kind == problems.MULTILABEL:
            thresholds = F.array(*map(F.lit, self._thresholds()))
            places = F.transform(
                probabilities,
                lambda value, place: F.when(
                    value >= F.element_at(thresholds, place + 1), place.cast("double")
                ),
            )
            chosen = F.array_compact(places)
            found = [chosen, vectors[0], F.transform(chosen, name_of), vectors[1]]
        else:
            best = F.array_position(probabilities, F.array_max(probabilities)) - 1
            found = [best.cast("double"), vectors[0], name_of(best), vectors[1]]
        return dict(zip(names, found, strict=True))


class _ModelWriter(MLWriter):
    """Metadata, and the network beside it, whose hash they hold."""

    def __init__(self, instance: SeedlingsModel) -> None:
        super().__init__()
        self._instance = instance

    def saveImpl(self, path: str) -> None:
        instance = self._instance
        content, onnx = instance.network_bytes, instance.onnx_bytes
        extra = {
            "history": instance.history,
            "record": instance.record,
            NETWORK_HASH: fingerprint.content_hash(content),
            **({ONNX_HASH: fingerprint.content_hash(onnx)} if onnx else {}),
        }
        DefaultParamsWriter.saveMetadata(plain(instance), path, self.sparkSession, extraMetadata=extra)
        files.write_bytes(files.join(path, networks.FILE), content)
        if onnx:
            files.write_bytes(files.join(path, networks.ONNX_FILE), onnx)


class _ModelReader(MLReader[SeedlingsModel]):
    """The counterpart of `_ModelWriter`."""

    def load(self, path: str) -> SeedlingsModel:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        model = SeedlingsModel()
        model._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        content = read_network(path, metadata)
        model._take(content, metadata["history"], metadata["record"])
        if metadata.get(ONNX_HASH):
            model._onnx = _read_file(path, networks.ONNX_FILE, metadata[ONNX_HASH])
        return model


def keep_network_once(version: str, uid: str) -> None:
    """Move the network's files out of a saved pipeline to where a version of the store has them: stored once.

    Args:
        version: Folder of the version, with the pipeline in `model`.
        uid: The `uid` of the stage with the network, the last one of the pipeline.
    """
    stages = files.join(version, "model", "stages")
    stage = next(name for name in files.list_names(stages) if name.partition("_")[2] == uid)
    for name in (networks.FILE, networks.ONNX_FILE):
        if files.exists(files.join(stages, stage, name)):
            files.rename(files.join(stages, stage, name), files.join(version, name))


def read_network(path: str, metadata: Mapping[str, Any]) -> bytes:
    """The network of a saved stage: in its folder, or where `keep_network_once` has put it.

    Args:
        path: Path of the stage.
        metadata: Metadata of the stage; what an earlier release wrote has no hash, and its network in the folder.

    Raises:
        NetworkError: It is not there, or is not the one that was saved.
    """
    return _read_file(path, networks.FILE, metadata.get(NETWORK_HASH))


def _read_file(path: str, name: str, recorded: str | None) -> bytes:
    own = files.join(path, name)
    place = own
    if recorded and not files.exists(own):
        # VERSION/model/stages/STAGE
        place = files.join(files.parent(files.parent(files.parent(path))), name)
    remedy = "Copy the whole version, of which model/ is a part, or save the loaded pipeline anew"
    try:
        content = files.read_bytes(place)
    except FileNotFoundError:
        raise NetworkError(f"no {own} and no {place}", "the network of the stage", remedy) from None
    if recorded and fingerprint.content_hash(content) != recorded:
        raise NetworkError(f"{place}, whose SHA-256 is not {recorded}", "the network of the stage", remedy)
    return content


def network_outputs(spark: SparkSession, task: prediction.ForwardTask, features: Column) -> Column:
    """The network's outputs for a column of features, an array of doubles."""
    from collections.abc import Iterator

    import pandas as pd

    def predict(parts: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return prediction.predict_rows(task, parts)

    with session.python_environment(spark, runtime.worker_environment(task.threads)):
        # Not deterministic, so that Spark never evaluates it twice for one row.
        udf = pandas_udf(predict, "array<double>").asNondeterministic()  # type: ignore[call-overload]
        column: Column = udf(features)
    return column
