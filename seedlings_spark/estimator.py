"""SeedlingsEstimator and SeedlingsModel: Elephas' estimator and transformer on our own engine.

Both keep the class, the params and the setters of Elephas, so that what was written for those runs unchanged, and
both are ordinary Spark ML stages: they can be saved, copied, put into a `Pipeline` and searched over by a
`CrossValidator`. What is underneath is `seedlings_spark.training`.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasValidationIndicatorCol,
    HasWeightCol,
)
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
from pyspark.sql.types import ArrayType, BinaryType, NumericType

from seedlings_spark import columns, features, files, fingerprint, reproducibility, schema
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import CorpusError, NetworkError, OptionError
from seedlings_spark.models import prediction
from seedlings_spark.training import network as carried
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training.checkpoint import RunIdentity
from seedlings_spark.training.master import build_metrics, check_metrics_add_up, made_metrics, metric_recipes
from seedlings_spark.training.messages import Exchanged
from seedlings_spark.training.progress import Progress, ProgressLine
from seedlings_spark.training.stage import StageLauncher
from seedlings_spark.training.worker import FEATURES, HELD_OUT, LABEL, RANK, WEIGHT, Recipe

with runtime.quiet_import():
    import keras
    from elephas.ml_model import ElephasEstimator, ElephasTransformer

    from seedlings_spark import problems
    from seedlings_spark.models import networks
    from seedlings_spark.problems import Problem
    from seedlings_spark.training.engine import Engine, RunOptions

_log = logging.getLogger(__name__)

# Of which function of them a model's probabilities are, by its kind.
_LOGITS = {
    problems.CLASSIFICATION: "softmax",
    problems.BINARY: "sigmoid",
    problems.MULTILABEL: "sigmoid",
    problems.REGRESSION: "",
}
_KEY = "key"
# In the metadata of a stage: the SHA-256 of its network.
NETWORK_HASH = "network_sha256"


def class_weight_text(value: Any) -> str:
    """A dictionary of class number to weight as the JSON that the param holds."""
    if not isinstance(value, Mapping):
        return str(TypeConverters.toString(value))
    return json.dumps({str(_plain_value(name)): _plain_value(weight) for name, weight in value.items()})


class _SparkColumns:
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


class _SeedlingsParams(
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


class SeedlingsEstimator(  # type: ignore[misc]
    _SparkColumns, ElephasEstimator, _SeedlingsParams, MLReadable["SeedlingsEstimator"]
):
    """Trains a Keras network data-parallel on the workers of a Spark application.

    The features column is one of raw images (binary, uint8 pixels of shape (height, width, 3), as `prepare`
    writes them; a mean and std that `ImageStandardizer` left in its metadata become the network's first layer), a
    vector, or an array of numbers. The label column is numeric: class numbers from 0, or values to regress on; or it
    holds vectors with an element for each output of the network.

    Which kind of problem it is, is read from loss, label and outputs together: class numbers with a categorical loss
    are "classification", one output with a binary loss "binary", vectors with a binary loss "multilabel", one output
    (or vectors) with a loss of distance "regression". Where these do not tell, `fit` asks for `problem`. Outputs
    that are logits (the loss says so, or the network ends without softmax and sigmoid) become probabilities.

    Labels, weights and features are looked at before training, in one pass over the rows.

    Rows are dealt to the workers by the hash of their content (the column `content_hash` of a corpus that `prepare`
    has made; one of your own that is called so is not looked at), so that the same rows, params and number of
    workers give the same weights, bit for bit.

    Args:
        keras_model_config: JSON of the network (`model.to_json()`); or use `set_network`.
        mode: "synchronous", "asynchronous", or "hogwild" (asynchronous without a lock around an update).
        frequency: "batch" (every step is one step of the master's optimizer on the gradient's mean over all
            workers), "epoch" or a number of steps that workers take on their own before they exchange weights.
        rule: How the work of an asynchronous worker enters the model; see `training.rules`.
        num_workers: Tasks that train at once, each with its shard of the rows.
        epochs: Times that all rows are trained on.
        batch_size: Rows of one worker at one step, at most; a step of all workers together takes num_workers
            times as many.
        loss: A Keras loss: by name, its configuration, an object or a function.
        metrics: Keras metrics, the same.
        problem: See above.
        optimizer_config: `keras.optimizers.serialize(...)`, or a name; Adam by default.
        validation_split: Share of the rows, chosen by hash, that are held out for validation.
        validationIndicatorCol: Boolean column of rows that are held out; in place of validation_split.
        weightCol: Sample weights; 1 by default.
        nb_classes: Classes, where the loss wants one-hot labels; by default as many as the network has outputs.
        featuresCol: See above.
        labelCol: See above.
        outputCol: Of the prediction (a double) that the model will add; "prediction" by default.
        seed: Of everything that is drawn.
        threads: Of TensorFlow in each worker; part of what a result depends on.
        precision: "float32" (default), "mixed_bfloat16" or "auto".
        class_weight: See the params.
        augmentation: See the params and `networks.augmentation`.
        memory_budget_mb: See the params.
        verbose: 0 is silent, 1 shows progress.

    What is no plain value, such as callbacks and initial weights, is given by a `set_...` method; it is not a
    Spark `Param` and is not saved with the estimator.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._callbacks: list[Any] = []
        self._network_content = b""
        self._progress: Progress | None = None
        custom_objects = kwargs.pop("custom_objects", None)
        unknown = [name for name in kwargs if not _is_param(name)]
        if unknown:
            raise OptionError(
                f"SeedlingsEstimator({', '.join(unknown)}=...)",
                "params of SeedlingsEstimator",
                "Correct the name; help(SeedlingsEstimator) lists them",
            )
        super().__init__(**kwargs)
        self._setDefault(
            mode="synchronous",
            frequency="batch",
            num_workers=2,
            validation_split=0.0,
            metrics=["accuracy"],
            nb_classes=0,
            seed=0,
            threads=0,
            precision="float32",
            class_weight="",
            problem="",
            augmentation="",
            memory_budget_mb=1024,
            rule="",
            elasticity=0.0,
            checkpoint_path="",
            server_port="0",
            encrypt=True,
            predicted_species_col=schema.PREDICTED_SPECIES,
        )
        if custom_objects:
            self.set_custom_objects(custom_objects)

    # What is no Param.

    def set_callbacks(self, callbacks: Sequence[Any]) -> "SeedlingsEstimator":
        """Keras callbacks: they run on the driver, at epoch level, on the master model. Not saved."""
        self._callbacks = list(callbacks)
        return self

    def set_network(self, network: Any) -> "SeedlingsEstimator":
        """Take a Keras network with its weights, to train on from them, and with all that its layers have adapted.

        It is saved with the estimator, and gives way to a `keras_model_config` that is set afterwards.

        Raises:
            NetworkError: A table cannot be fed to it, or Keras cannot save it.
        """
        carried.checked(network, f"a network {getattr(network, 'name', '')!r}")
        return self._take_network(carried.to_bytes(network, compiled=False))

    def _take_network(self, content: bytes) -> "SeedlingsEstimator":
        self._network_content = content
        self._set(keras_model_config=carried.to_json(content))
        return self

    def set_progress(self, progress: Progress) -> "SeedlingsEstimator":
        """Who hears of the progress, in place of the line that `verbose=1` shows. Not saved."""
        self._progress = progress
        return self

    def setWeightCol(self, value: str) -> "SeedlingsEstimator":
        """Set `weightCol`, the column of sample weights."""
        return self._set(weightCol=value)

    def setValidationIndicatorCol(self, value: str) -> "SeedlingsEstimator":
        """Set `validationIndicatorCol`, the boolean column of rows that are held out."""
        return self._set(validationIndicatorCol=value)

    def setSeed(self, value: int) -> "SeedlingsEstimator":
        """Set `seed`."""
        return self._set(seed=value)

    # Persistence, in place of Elephas' HDF5 file.

    def write(self) -> MLWriter:
        """Spark ML's writer."""
        return _EstimatorWriter(self)

    def save(self, path: str) -> None:
        """Save as a Spark ML stage."""
        self.write().save(path)

    @classmethod
    def read(cls) -> "MLReader[SeedlingsEstimator]":
        """Spark ML's reader."""
        return _EstimatorReader(cls)

    # Training.

    def _fit(self, dataset: DataFrame) -> "SeedlingsModel":
        spark = dataset.sparkSession
        options = self._options(dataset)
        session.require_slots(spark, self.get_num_workers())
        network = self._network(dataset, options)
        problem = self._problem(dataset, network)
        recipe = self._recipe(dataset, network, problem, session.task_cpus(spark))
        self._check_rows(dataset, recipe, problem)
        _log.info(
            "training %s: %s parameters, %d workers of %d thread%s, %s, every %s",
            network.name,
            f"{network.count_params():,}",
            recipe.num_workers,
            recipe.threads,
            "s" * (recipe.threads != 1),
            options.mode,
            options.frequency,
        )
        rows = self._rows(dataset, recipe.num_workers)
        engine = Engine(
            options,
            recipe,
            network,
            StageLauncher(rows, f"train {network.name}", barrier=options.is_synchronous),
            identity=self._identity(recipe),
            callbacks=self._callbacks,
            progress=self._progress or (ProgressLine(options.num_epochs) if self.get_verbosity() else None),
        )
        record = engine.run()
        labels = _label_names(dataset, self.getLabelCol())
        model = SeedlingsModel(
            featuresCol=self.getFeaturesCol(),
            labelCol=self.getLabelCol(),
            outputCol=self.getPredictionCol(),
            probabilityCol=self.getProbabilityCol(),
            rawPredictionCol=self.getRawPredictionCol(),
            predicted_species_col=self.getOrDefault("predicted_species_col"),
            precision=record.precision,
            labels=labels,
            kind=problem.kind,
            num_outputs=problem.num_outputs,
        )
        if self.isSet("predictionCol"):
            model.setPredictionCol(self.getPredictionCol())
        model.set_custom_objects(self.get_custom_objects())
        content = networks.to_bytes(problems.with_head(network, problem.head))
        model._take(content, record.history, record.as_dict())
        return model._resetUid(self.uid)

    def _options(self, dataset: DataFrame) -> RunOptions:
        """The options of the run, all of which are looked at before anything is done."""
        for name, least in (("epochs", 1), ("batch_size", 1), ("num_workers", 1), ("memory_budget_mb", 1)):
            value = self.getOrDefault(name)
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r}", f"an integer of at least {least}", f"Correct {name}")
        split = self.get_validation_split()
        options = RunOptions(
            mode=self.get_mode(),
            frequency=self._frequency(),
            num_epochs=self.get_epochs(),
            rule=self.getOrDefault("rule"),
            elasticity=self.getOrDefault("elasticity"),
            precision=self.getOrDefault("precision"),
            class_weight=self._given_class_weights(),
            held_out_share=split,
            checkpoint_path=self.getOrDefault("checkpoint_path"),
            has_given_weights=self._has_network(),
            ports=session.ports(self.getOrDefault("server_port")),
            encrypt=self.getOrDefault("encrypt"),
        )
        _feature_column(dataset, self.getFeaturesCol())
        _label_names(dataset, self.getLabelCol())
        return replace(options, held_out_share=0.0) if self._has_column("validationIndicatorCol") else options

    def _frequency(self) -> str | int:
        frequency = self.get_frequency()
        if frequency in ("batch", "epoch"):
            return str(frequency)
        if str(frequency).isdigit() and int(frequency) > 0:
            return int(frequency)
        raise OptionError(
            f"frequency={frequency!r}",
            "'batch', 'epoch' or a number of steps",
            "Set frequency to one of them",
        )

    def _network(self, dataset: DataFrame, options: RunOptions) -> Any:
        """The master's network: built from its configuration, the standardisation folded in, compiled."""
        if not self.isDefined("keras_model_config") or not self.isDefined("loss"):
            missing = [name for name in ("keras_model_config", "loss") if not self.isDefined(name)]
            raise OptionError(
                f"no {' and no '.join(missing)}",
                "a network and a loss",
                "Give keras_model_config=model.to_json() (or set_network) and loss='sparse_categorical_crossentropy'",
            )
        if self._has_network():
            network = carried.from_bytes(self._network_content, self.get_custom_objects())
        else:
            seed = reproducibility.seed_for(self.getOrDefault("seed"), "init")
            with reproducibility.seeded_initializers(seed):
                network = carried.from_json(self.get_keras_model_config(), self.get_custom_objects())
            carried.check_adapted(network)
        scaling = features.standardization(dataset, self.getFeaturesCol())
        if scaling is not None:
            network = networks.fold_standardization(network, *scaling)
        with runtime.float_type_of(network):
            network.compile(
                loss=self._loss(),
                metrics=made_metrics(metric_recipes(self.get_metrics()), self.get_custom_objects()),
                optimizer=optimizers.from_config(self.get_optimizer_config(), self.get_custom_objects()),
            )
        optimizers.check_exchange(
            network.optimizer,
            is_synchronous=options.is_synchronous,
            is_local=options.exchanged != Exchanged.GRADIENT,
            rule=options.rule,
        )
        return network

    def _has_network(self) -> bool:
        """Whether the network of `set_network` is that of the params."""
        return bool(self._network_content) and (
            carried.to_json(self._network_content) == self.get_keras_model_config()
        )

    def _loss(self) -> Any:
        return problems.resolve_loss(self.get_loss(), self.get_custom_objects())

    def _problem(self, dataset: DataFrame, network: Any) -> Problem:
        """The kind of problem that loss, label and outputs make."""
        names = _label_names(dataset, self.getLabelCol())
        problem = problems.decide(
            self._loss(),
            network,
            label=columns.label_type(dataset, self.getLabelCol()),
            problem=self.getOrDefault("problem"),
            has_names=bool(names),
            nb_classes=self.get_nb_classes() or 0,
        )
        if names and problem.num_classes and len(names) != problem.num_classes:
            raise NetworkError(
                f"a network of {problem.num_outputs} outputs for {len(names)} classes",
                f"{len(names)} outputs",
                "Build the network for the classes of this corpus",
            )
        return problem

    def _check_rows(self, dataset: DataFrame, recipe: Recipe, problem: Problem) -> None:
        """Look at labels, weights, features and what is held out, in one pass over the rows."""
        self._check_class_weights(problem)
        name = self.getLabelCol()
        label = _label_column(dataset, name)
        if problem.labels == "vector":
            faults = columns.vectors(
                label,
                problem.num_outputs,
                name,
                sums_to_one=problem.kind == problems.CLASSIFICATION,
                at_most_one=problem.kind in (problems.CLASSIFICATION, problems.MULTILABEL),
            )
        elif problem.num_classes:
            faults = columns.class_numbers(label, problem.num_classes, name)
        else:
            faults = columns.numbers(label, name)
        weight = None
        if self._has_column("weightCol"):
            weight = schema.column(self.getWeightCol()).cast("double")
            faults += columns.weights(weight, self.getWeightCol())
        if self._has_column("validationIndicatorCol"):
            faults += columns.held_out(dataset, self.getValidationIndicatorCol())
        faults += columns.features(
            _feature_column(dataset, self.getFeaturesCol()),
            int(np.prod(recipe.row_shape, dtype=np.int64)),
            recipe.row_shape,
            self.getFeaturesCol(),
            is_image=recipe.row_dtype == "uint8",
        )
        columns.check(dataset, faults, weight)

    def _has_column(self, param: str) -> bool:
        """Whether a column is given that need not be; "" stands for none, as in Spark."""
        return self.isDefined(param) and bool(self.getOrDefault(param))

    def _check_class_weights(self, problem: Problem) -> None:
        given = self._given_class_weights()
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

    def _recipe(self, dataset: DataFrame, network: Any, problem: Problem, task_cpus: int) -> Recipe:
        is_image = isinstance(dataset.schema[self.getFeaturesCol()].dataType, BinaryType)
        # Without what it is compiled with: workers have their own, and a loss may be a function.
        content = carried.to_bytes(network, compiled=False)
        optimizer = optimizers.to_config(network.optimizer)
        recipe = Recipe(
            num_workers=self.get_num_workers(),
            network=content,
            loss=self.get_loss()
            if _is_keras_name(self.get_loss(), self.get_custom_objects())
            else self._loss(),
            metrics=metric_recipes(self.get_metrics()),
            optimizer=optimizer,
            labels=problem.labels,
            num_classes=problem.num_classes,
            row_shape=tuple(network.input_shape[1:]),
            row_dtype="uint8" if is_image else network.inputs[0].dtype,
            augmentation=self.getOrDefault("augmentation") or None,
            batch_size=self.get_batch_size(),
            seed=self.getOrDefault("seed"),
            threads=self.getOrDefault("threads") or task_cpus,
            budget_bytes=self.getOrDefault("memory_budget_mb") * 1024 * 1024,
            custom_objects={
                **networks.CUSTOM_OBJECTS,
                **carried.registered_in(
                    carried.to_json(content),
                    json.dumps(optimizer),
                    json.dumps([self.get_loss(), self.get_metrics()], default=repr),
                ),
                **self.get_custom_objects(),
            },
            label_shape=(problem.num_outputs,) if problem.labels == "vector" else (),
        )
        with runtime.float_type_of(network):
            examples = recipe.example_labels(network.outputs[0].dtype)
            build_metrics(network, examples)
            check_metrics_add_up(network, examples)
        return recipe

    def _identity(self, recipe: Recipe) -> RunIdentity:
        same = ("mode", "frequency", "rule", "elasticity", "validation_split", "class_weight", "metrics")
        computed = ("num_workers", "batch_size", "seed", "threads", "labels")
        return RunIdentity(
            {
                **{name: str(self.getOrDefault(name)) for name in same},
                **{name: str(getattr(recipe, name)) for name in computed},
                "network": carried.to_json(recipe.network),
                "loss": problems.described(recipe.loss),
                "optimizer": json.dumps(recipe.optimizer, sort_keys=True, default=str),
                "augmentation": recipe.augmentation or "",
            }
        )

    def _rows(self, dataset: DataFrame, num_workers: int) -> DataFrame:
        """The rows of all workers: partition r holds those of rank r, in the order of their hashes."""
        spark = dataset.sparkSession
        column = _feature_column(dataset, self.getFeaturesCol())
        is_weighted, is_held_out = self._has_column("weightCol"), self._has_column("validationIndicatorCol")
        weight = schema.column(self.getWeightCol()).cast("double") if is_weighted else F.lit(1.0)
        by_content = schema.has_content_hash(dataset)
        chosen = dataset.select(
            column.alias(FEATURES),
            _label_column(dataset, self.getLabelCol()).alias(LABEL),
            weight.alias(WEIGHT),
            *([F.col(schema.CONTENT_HASH).alias(_KEY)] if by_content else []),
            *([schema.column(self.getValidationIndicatorCol()).alias(HELD_OUT)] if is_held_out else []),
        )
        if not by_content:
            hashed = F.sha2(F.xxhash64(FEATURES, LABEL, WEIGHT).cast("string").cast("binary"), 256)
            chosen = chosen.withColumn(_KEY, hashed)
        if not is_held_out:
            place = (
                F.conv(F.substring(_KEY, 20, fingerprint.DIGITS), 16, 10).cast("double")
                / 16.0**fingerprint.DIGITS
            )
            chosen = chosen.withColumn(HELD_OUT, place < F.lit(float(self.get_validation_split())))
        rank = F.pmod(
            F.conv(F.right(F.col(_KEY), F.lit(fingerprint.DIGITS)), 16, 10).cast("long"),
            F.lit(num_workers),
        )
        partition = session.partition_key(spark, F.col(RANK), num_workers)
        return (
            chosen.withColumn(RANK, rank.cast("int"))
            .repartition(num_workers, partition)
            .sortWithinPartitions(_KEY, LABEL, WEIGHT, HELD_OUT)
            .select(RANK, FEATURES, LABEL, WEIGHT, HELD_OUT)
        )

    def _given_class_weights(self) -> dict[str, float] | None:
        """Class number -> weight; None where they are to be balanced."""
        text = self.getOrDefault("class_weight")
        if text == "balanced":
            return None
        try:
            weights = {str(int(name)): float(value) for name, value in json.loads(text or "{}").items()}
        except (ValueError, TypeError, AttributeError):
            raise OptionError(
                f"class_weight={text!r}",
                "'balanced' or a dictionary such as {0: 1.0, 1: 2.5}, also as JSON",
                "Correct class_weight",
            ) from None
        return weights


class SeedlingsModel(  # type: ignore[misc]
    _SparkColumns, ElephasTransformer, _SeedlingsParams, MLWritable, MLReadable["SeedlingsModel"]
):
    """A trained network as a Spark ML transformer.

    It adds `prediction` (double: the class number, or the value of a regression), and for a classifier
    `probability` (vector, in the order of the classes), `predicted_species` (the class' name) and `rawPrediction`
    (vector: logits, of which `probability` is the softmax). A column whose name is "" is not added.

    Of more than one value (a regression of several outputs, the classes that a row has at 0.5 or more in a problem of
    "multilabel") `prediction` and `predicted_species` are arrays.

    Params as for `SeedlingsEstimator`; `labels` are the classes' names in order, `kind` is the kind of problem:
    "classification", "binary" (one output, the probability of class 1), "multilabel" or "regression".
    """

    labels: Param[list[str]] = Param(
        Params._dummy(), "labels", "names of the classes, in order", TypeConverters.toListString
    )
    kind: Param[str] = Param(
        Params._dummy(), "kind", "classification, binary, multilabel or regression", TypeConverters.toString
    )

    num_outputs: Param[int] = Param(
        Params._dummy(), "num_outputs", "values that the network gives for a row", TypeConverters.toInt
    )

    def __init__(self, **kwargs: Any) -> None:
        self._content = b""
        self._record: dict[str, Any] = {}
        super().__init__(**kwargs)
        self._setDefault(
            outputCol=schema.PREDICTION,
            predicted_species_col=schema.PREDICTED_SPECIES,
            labels=[],
            kind="classification",
            num_outputs=1,
            precision="float32",
            threads=0,
            inference_batch_size=64,
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

    def setWeightCol(self, value: str) -> "SeedlingsModel":
        """Set `weightCol`, which evaluators look for."""
        return self._set(weightCol=value)

    def _take(
        self, content: bytes, history: Mapping[str, Sequence[float]], record: Mapping[str, Any]
    ) -> None:
        self._content = content
        self._history = dict(history)
        self._record = dict(record)

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
        """What was recorded of the training: rows of each worker, precision, environment, failures."""
        return dict(self._record)

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
        spark = dataset.sparkSession
        column = _feature_column(dataset, self.getFeaturesCol())
        task = prediction.ForwardTask(
            network=self.network_bytes,
            precision=self.getOrDefault("precision"),
            batch_size=self.get_inference_batch_size(),
            threads=self.getOrDefault("threads") or session.task_cpus(spark),
            custom_objects=self._objects(self._content),
        )
        kind = self.getOrDefault("kind")
        outputs = network_outputs(spark, replace(task, logits=_LOGITS[kind]), column)
        kept = f"outputs_{uuid.uuid4().hex[:8]}"
        table = dataset.withColumn(kept, outputs)
        added = {name: column for name, column in self._columns(F.col(kept), kind).items() if name}
        return table.withColumns(added).drop(kept)

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
            places = F.transform(
                probabilities, lambda value, place: F.when(value >= 0.5, place.cast("double"))
            )
            chosen = F.array_compact(places)
            found = [chosen, vectors[0], F.transform(chosen, name_of), vectors[1]]
        else:
            best = F.array_position(probabilities, F.array_max(probabilities)) - 1
            found = [best.cast("double"), vectors[0], name_of(best), vectors[1]]
        return dict(zip(names, found, strict=True))


class _EstimatorWriter(MLWriter):
    """Metadata, and the network of `set_network` beside it."""

    def __init__(self, instance: SeedlingsEstimator) -> None:
        super().__init__()
        self._instance = instance

    def saveImpl(self, path: str) -> None:
        instance = _plain(self._instance)
        if instance.get_optimizer_config() is not None:
            instance._set(optimizer_config=_writable(instance.get_optimizer_config()))
        DefaultParamsWriter.saveMetadata(instance, path, self.sparkSession)
        if instance._has_network():
            files.write_bytes(files.join(path, networks.FILE), instance._network_content)


class _EstimatorReader(MLReader[SeedlingsEstimator]):
    """The counterpart of `_EstimatorWriter`."""

    def __init__(self, cls: type[SeedlingsEstimator]) -> None:
        super().__init__()
        self._cls = cls

    def load(self, path: str) -> SeedlingsEstimator:
        estimator: SeedlingsEstimator = DefaultParamsReader(self._cls).load(path)
        file = files.join(path, networks.FILE)
        if files.exists(file):
            estimator._take_network(files.read_bytes(file))
        return estimator


class _ModelWriter(MLWriter):
    """Metadata, and the network beside it, whose hash they hold."""

    def __init__(self, instance: SeedlingsModel) -> None:
        super().__init__()
        self._instance = instance

    def saveImpl(self, path: str) -> None:
        instance = self._instance
        content = instance.network_bytes
        extra = {
            "history": instance.history,
            "record": instance.record,
            NETWORK_HASH: fingerprint.content_hash(content),
        }
        DefaultParamsWriter.saveMetadata(_plain(instance), path, self.sparkSession, extraMetadata=extra)
        files.write_bytes(files.join(path, networks.FILE), content)


class _ModelReader(MLReader[SeedlingsModel]):
    """The counterpart of `_ModelWriter`."""

    def load(self, path: str) -> SeedlingsModel:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        model = SeedlingsModel()
        model._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        content = read_network(path, metadata)
        model._take(content, metadata["history"], metadata["record"])
        return model


def keep_network_once(version: str, uid: str) -> None:
    """Move the network out of a saved pipeline to where a version of the store has it, so that it is stored once.

    Args:
        version: Folder of the version, with the pipeline in `model`.
        uid: Of the stage with the network, the last one of the pipeline.
    """
    stages = files.join(version, "model", "stages")
    name = next(name for name in files.list_names(stages) if name.partition("_")[2] == uid)
    files.rename(files.join(stages, name, networks.FILE), files.join(version, networks.FILE))


def read_network(path: str, metadata: Mapping[str, Any]) -> bytes:
    """The network of a saved stage: in its folder, or where `keep_network_once` has put it.

    Args:
        path: Of the stage.
        metadata: Of the stage; what an earlier release wrote has no hash, and its network in the folder.

    Raises:
        NetworkError: It is not there, or is not the one that was saved.
    """
    own, recorded = files.join(path, networks.FILE), metadata.get(NETWORK_HASH)
    place = own
    if recorded and not files.exists(own):
        # VERSION/model/stages/STAGE
        place = files.join(files.parent(files.parent(files.parent(path))), networks.FILE)
    remedy = "Copy the whole version, of which model/ is a part, or save the loaded pipeline anew"
    try:
        content = files.read_bytes(place)
    except FileNotFoundError:
        raise NetworkError(f"no {own} and no {place}", "the network of the stage", remedy) from None
    if recorded and fingerprint.content_hash(content) != recorded:
        raise NetworkError(f"{place}, whose SHA-256 is not {recorded}", "the network of the stage", remedy)
    return content


def _plain(stage: Any) -> Any:
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


def _writable(optimizer: Any) -> Any:
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
        return keras.optimizers.serialize(value)
    if callable(value):
        raise OptionError(
            f"{name}={getattr(value, '__name__', value)!r}, a function",
            "what JSON can hold: a name, numbers, or an object of Keras",
            f"Set {name} anew after loading, or give it by the name of a loss or metric of Keras",
        )
    return _plain_value(value)


def _is_param(name: str) -> bool:
    return name in _ELEPHAS_PARAMS or isinstance(getattr(_SeedlingsParams, name, None), Param)


_ELEPHAS_PARAMS = frozenset(param.name for param in ElephasEstimator().params)


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


def _feature_column(dataset: DataFrame, name: str) -> Column:
    """The features as Spark hands them to Python: bytes, or an array of numbers."""
    if name not in dataset.columns:
        raise CorpusError(
            f"no column {name!r} among {', '.join(dataset.columns)}",
            "the features column",
            "Set featuresCol to the name of the column",
        )
    kind = dataset.schema[name].dataType
    if isinstance(kind, BinaryType):
        return schema.column(name)
    if isinstance(kind, VectorUDT):
        return vector_to_array(schema.column(name))
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, NumericType):
        return schema.column(name).cast("array<double>")
    raise CorpusError(
        f"a column {name!r} of type {kind.simpleString()}",
        "binary (pixels), a vector or an array of numbers",
        "Assemble the features with VectorAssembler, or prepare the images with `prepare`",
    )


def _label_names(dataset: DataFrame, column: str) -> list[str]:
    """The names that StringIndexer left in the label column's metadata, in order."""
    if column not in dataset.columns:
        raise CorpusError(
            f"no column {column!r} among {', '.join(dataset.columns)}",
            "the label column",
            "Set labelCol to its name",
        )
    names = dataset.schema[column].metadata.get("ml_attr", {}).get("vals", [])
    return [str(name) for name in names]


def _label_column(dataset: DataFrame, name: str) -> Column:
    """The label as the engine takes it: a double, or an array of them."""
    if columns.label_type(dataset, name) == columns.NUMBER:
        return schema.column(name).cast("double")
    if isinstance(dataset.schema[name].dataType, VectorUDT):
        return vector_to_array(schema.column(name))
    return schema.column(name).cast("array<double>")


def _is_keras_name(loss: Any, custom_objects: Mapping[str, Any]) -> bool:
    """Whether a loss is a name that every process understands."""
    return isinstance(loss, str) and loss not in custom_objects


def _plain_value(value: Any) -> Any:
    """NumPy's numbers, booleans and strings as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
