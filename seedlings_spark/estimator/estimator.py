"""SeedlingsEstimator: Elephas' estimator on our own engine.

It keeps the class, the params and the setters of Elephas, so that what was written for those runs unchanged, and it is
an ordinary Spark ML stage: it can be saved, copied, put into a `Pipeline` and searched over by a `CrossValidator`. What
is underneath is `seedlings_spark.training`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWriter
from pyspark.sql import DataFrame
from pyspark.sql.types import BinaryType

from seedlings_spark import choices, files, reproducibility, schema
from seedlings_spark.cluster import connect, runtime, session
from seedlings_spark.errors import NetworkError, OptionError
from seedlings_spark.estimator import columns, features
from seedlings_spark.estimator.columns import feature_column, label_names
from seedlings_spark.estimator.params import (
    SeedlingsParams,
    SparkColumns,
    check_class_weights,
    check_reductions,
    given_class_weights,
    is_param,
    plain,
    writable_optimizer,
)
from seedlings_spark.estimator.rows import TrainingColumns, rows_of_workers
from seedlings_spark.training import mixing
from seedlings_spark.training import network as carried
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training.checkpoint import RunIdentity
from seedlings_spark.training.epochs import ON_CONFUSION
from seedlings_spark.training.master import build_metrics, check_metrics_add_up, made_metrics, metric_recipes
from seedlings_spark.training.progress import Progress, ProgressLine
from seedlings_spark.training.stage import StageLauncher
from seedlings_spark.training.worker import Recipe

with runtime.quiet_import():
    from seedlings_spark import problems
    from seedlings_spark.estimator.model import SeedlingsModel
    from seedlings_spark.estimator.stock import ElephasEstimator
    from seedlings_spark.models import networks
    from seedlings_spark.problems import Problem
    from seedlings_spark.training.engine import Engine, RunOptions, check_shards

_log = logging.getLogger(__name__)
# Params that a run's identity has only where they are not this.
_LATER = {"layer_decay": 1.0, "mixup": 0.0, "cutmix": 0.0}
# Numbers of all shards' confusion together, above which it is not counted while training: they travel in one header.
_MOST_CONFUSED = 250_000


class SeedlingsEstimator(SparkColumns, ElephasEstimator, SeedlingsParams, MLReadable["SeedlingsEstimator"]):
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

    Rows are dealt to shards by the hash of their content (the column `content_hash` of a corpus that `prepare`
    has made; one of your own that is called so is not looked at), so that the same rows and params with the same number
    of shards give the same weights, bit for bit, with any number of workers.

    Args:
        keras_model_config: JSON of the network (`model.to_json()`); or use `set_network`.
        mode: "synchronous", "asynchronous", or "hogwild" (asynchronous without a lock around an update).
        frequency: "batch" (every step is one step of the master's optimizer on the gradient's mean over all
            workers), "epoch" or a number of steps that workers take on their own before they exchange weights.
        rule: How the work of an asynchronous worker enters the model; see `training.rules`.
        num_workers: Tasks that train at once; "auto" for as many as there is room for, from 1 to `shards`.
        min_workers: The fewest of them with which a synchronous run begins and goes on; 0 for all of them.
        shards: Parts that the rows are dealt to; 0 for as many as workers. See the params.
        epochs: Times that all rows are trained on.
        batch_size: Rows of one shard at one step, at most; a step of all workers together takes as many of each shard.
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
        outputCol: Name of the prediction (a double) that the model will add; "prediction" by default.
        seed: Seed of everything that is drawn.
        threads: Threads of TensorFlow in each worker; part of what a result depends on.
        precision: "float32" (default), "mixed_bfloat16" or "auto".
        class_weight: See the params.
        augmentation: See the params and `networks.augmentation`.
        mixup: See the params and `training.mixing`.
        cutmix: The same.
        curriculum: See the params and `training.curriculum`; "" by default, for none.
        curriculum_epochs: See the params.
        layer_decay: See the params; 1 by default, for one rate in all layers.
        memory_budget_mb: See the params.
        exchange: "driver" (default), "workers" or "auto": where the mean of each synchronous step is made.
        drop_slow: See the params; 0 by default, so that all workers hold as many shards whatever their speed.
        verbose: 0 is silent, 1 shows progress.

    What is no plain value, such as callbacks and initial weights, is given by a `set_...` method; it is not a
    Spark `Param` and is not saved with the estimator.
    """

    __module__ = "seedlings_spark.estimator"  # as saved pipelines name it

    def __init__(self, **kwargs: Any) -> None:
        self._callbacks: list[Any] = []
        self._network_content = b""
        self._progress: Progress | None = None
        custom_objects = kwargs.pop("custom_objects", None)
        unknown = [name for name in kwargs if not is_param(name)]
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
            shards=0,
            min_workers=0,
            validation_split=0.0,
            metrics=["accuracy"],
            nb_classes=0,
            seed=0,
            threads=0,
            precision="float32",
            class_weight="",
            problem="",
            augmentation="",
            curriculum="",
            curriculum_epochs=0,
            **_LATER,
            memory_budget_mb=1024,
            rule="",
            elasticity=0.0,
            checkpoint_path="",
            server_port="0",
            exchange="driver",
            worker_port="0",
            drop_slow=0.0,
            encrypt=True,
            predicted_species_col=schema.PREDICTED_SPECIES,
        )
        if custom_objects:
            self.set_custom_objects(custom_objects)

    # What is no Param.

    def set_callbacks(self, callbacks: Sequence[Any]) -> "SeedlingsEstimator":
        """Keras callbacks: they run on the driver, at epoch level, on the master model. Not saved.

        One with a method `on_confusion(epoch, counts)` is told, before each epoch ends, how many held-out rows of each
        class (rows) were taken for which (columns), of classes that exclude each other, of which the square times the
        number of shards is at most 250,000.
        """
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
        connect.refuse(spark, "training")
        options = self._options(dataset)
        session.require_slots(spark, options.num_workers, least=options.min_workers)
        network = self._network(dataset, options)
        problem = self._problem(dataset, network)
        recipe = self._recipe(dataset, network, problem, session.task_cpus(spark))
        check_class_weights(options.class_weight, problem)
        chosen = self._training_columns()
        chosen.check(dataset, recipe, problem)
        _log.info(
            "training %s: %s parameters, %d shard%s, workers of %d thread%s, %s, every %s",
            network.name,
            f"{network.count_params():,}",
            *(recipe.num_shards, "s" * (recipe.num_shards != 1)),
            *(recipe.threads, "s" * (recipe.threads != 1)),
            *(options.mode, options.frequency),
        )
        are_classes = bool(problem.num_classes) and problem.labels != "vector"
        rows = chosen.deal(dataset, recipe.num_shards, options.held_out_share, are_classes=are_classes)
        engine = Engine(
            options,
            recipe,
            network,
            StageLauncher(partial(rows_of_workers, rows, recipe.num_shards), spark, f"train {network.name}"),
            identity=self._identity(recipe),
            callbacks=self._callbacks,
            progress=self._progress or (ProgressLine(options.num_epochs) if self.get_verbosity() else None),
        )
        record = engine.run()
        labels = label_names(dataset, self.getLabelCol())
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
        if self.get_num_workers() == choices.AUTO:
            return self._between_one_and_shards()._options(dataset)
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("num_workers", 1),
            ("shards", 0),
            ("min_workers", 0),
            ("memory_budget_mb", 1),
            ("curriculum_epochs", 0),
        ):
            value = self.getOrDefault(name)
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r}", f"an integer of at least {least}", f"Correct {name}")
        split = self.get_validation_split()
        options = RunOptions(
            mode=self.get_mode(),
            frequency=self._frequency(),
            num_epochs=self.get_epochs(),
            num_workers=self.get_num_workers(),
            min_workers=self.getOrDefault("min_workers"),
            rule=self.getOrDefault("rule"),
            elasticity=self.getOrDefault("elasticity"),
            precision=self.getOrDefault("precision"),
            class_weight=given_class_weights(self.getOrDefault("class_weight")),
            held_out_share=split,
            checkpoint_path=self.getOrDefault("checkpoint_path"),
            has_given_weights=self._has_network(),
            ports=session.ports(self.getOrDefault("server_port")),
            encrypt=self.getOrDefault("encrypt"),
            exchange=self.getOrDefault("exchange"),
            worker_ports=session.ports(self.getOrDefault("worker_port"), "worker_port"),
            drop_slow=self.getOrDefault("drop_slow"),
        )
        check_shards(self._num_shards(), options)
        feature_column(dataset, self.getFeaturesCol())
        label_names(dataset, self.getLabelCol())
        return replace(options, held_out_share=0.0) if self._has_column("validationIndicatorCol") else options

    def _between_one_and_shards(self) -> "SeedlingsEstimator":
        """A copy with numbers in the place of `num_workers="auto"`."""
        shards, least = self.getOrDefault("shards"), self.getOrDefault("min_workers")
        if not shards:
            raise OptionError(
                "num_workers='auto' without shards",
                "shards, which says how many there may be, and which the result depends on",
                "Set it, as in num_workers='auto', shards=8",
            )
        numbers = {"num_workers": shards, "min_workers": least or 1}
        return self.copy({self.getParam(name): value for name, value in numbers.items()})

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
        network = self._built()
        carried.check_trained(network)
        check_reductions(
            self._loss(),
            is_mean_of_shards=options.is_synchronous
            and not options.exchanged.is_local
            and self._num_shards() > 1,
            has_weights=self._has_column("weightCol") or options.class_weight != {},
        )
        scaling = features.standardization(dataset, self.getFeaturesCol())
        if scaling is not None:
            network = networks.fold_standardization(network, *scaling)
        with runtime.float_type_of(network):
            network.compile(
                loss=self._loss(),
                metrics=made_metrics(metric_recipes(self.get_metrics()), self.get_custom_objects()),
                optimizer=optimizers.from_config(self.get_optimizer_config(), self.get_custom_objects()),
            )
        optimizers.check_layer_decay(network.optimizer, self.getOrDefault("layer_decay"))
        optimizers.check_exchange(
            network.optimizer,
            is_synchronous=options.is_synchronous,
            is_local=options.exchanged.is_local,
            rule=options.rule,
        )
        return network

    def _built(self) -> Any:
        if self._has_network():
            return carried.from_bytes(self._network_content, self.get_custom_objects())
        seed = reproducibility.seed_for(self.getOrDefault("seed"), "init")
        with reproducibility.seeded_initializers(seed):
            network = carried.from_json(self.get_keras_model_config(), self.get_custom_objects())
        carried.check_adapted(network)
        return network

    def _num_shards(self) -> int:
        return int(self.getOrDefault("shards") or self.get_num_workers())

    def _has_network(self) -> bool:
        """Whether the network of `set_network` is that of the params."""
        return bool(self._network_content) and (
            carried.to_json(self._network_content) == self.get_keras_model_config()
        )

    def _loss(self) -> Any:
        return problems.resolve_loss(self.get_loss(), self.get_custom_objects())

    def _loss_of_workers(self) -> Any:
        """The loss as it travels: a name where every process understands it."""
        loss = self.get_loss()
        return loss if isinstance(loss, str) and loss not in self.get_custom_objects() else self._loss()

    def _problem(self, dataset: DataFrame, network: Any) -> Problem:
        """The kind of problem that loss, label and outputs make."""
        names = label_names(dataset, self.getLabelCol())
        problem = problems.decide(
            self._loss(),
            network,
            label=columns.label_type(dataset, self.getLabelCol()),
            problem=self.getOrDefault("problem"),
            has_names=bool(names),
            nb_classes=self.get_nb_classes() or 0,
        )
        num_classes = problem.num_outputs if problem.kind == problems.MULTILABEL else problem.num_classes
        if names and num_classes and len(names) != num_classes:
            raise NetworkError(
                f"a network of {problem.num_outputs} outputs for {len(names)} classes",
                f"{len(names)} outputs",
                "Build the network for the classes of this corpus",
            )
        return problem

    def _training_columns(self) -> TrainingColumns:
        return TrainingColumns(
            self.getFeaturesCol(),
            self.getLabelCol(),
            self.getWeightCol() if self._has_column("weightCol") else "",
            self.getValidationIndicatorCol() if self._has_column("validationIndicatorCol") else "",
            self.getOrDefault("curriculum"),
        )

    def _curriculum_epochs(self) -> int:
        """Epochs before all rows are in; 0 without a curriculum."""
        if not self.getOrDefault("curriculum"):
            return 0
        found = int(self.getOrDefault("curriculum_epochs") or max(1, self.get_epochs() // 2))
        if found >= self.get_epochs():
            raise OptionError(
                f"curriculum_epochs={self.getOrDefault('curriculum_epochs')!r} with epochs={self.get_epochs()}",
                "fewer epochs before all rows are in than epochs: else the hardest are never trained on",
                "Give more epochs, or fewer curriculum_epochs",
            )
        return found

    def _has_column(self, param: str) -> bool:
        """Whether a column is given that need not be; "" stands for none, as in Spark."""
        return self.isDefined(param) and bool(self.getOrDefault(param))

    def _recipe(self, dataset: DataFrame, network: Any, problem: Problem, task_cpus: int) -> Recipe:
        is_image = isinstance(dataset.schema[self.getFeaturesCol()].dataType, BinaryType)
        # Without what it is compiled with: workers have their own, and a loss may be a function.
        content = carried.to_bytes(network, compiled=False)
        optimizer = optimizers.to_config(network.optimizer)
        # Of rows uint8 stands for the bytes of an image.
        dtype = network.inputs[0].dtype
        recipe = Recipe(
            num_shards=self._num_shards(),
            network=content,
            loss=self._loss_of_workers(),
            metrics=metric_recipes(self.get_metrics()),
            optimizer=optimizer,
            labels=problem.labels,
            num_classes=problem.num_classes,
            row_shape=tuple(network.input_shape[1:]),
            row_dtype="uint8" if is_image else dtype if dtype != "uint8" else "float32",
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
            curriculum_epochs=self._curriculum_epochs(),
            counts_confusion=problem.num_classes == problem.num_outputs
            and self._num_shards() * problem.num_classes**2 <= _MOST_CONFUSED
            and any(hasattr(each, ON_CONFUSION) for each in self._callbacks),
            **{name: self.getOrDefault(name) for name in _LATER},
        )
        mixing.check(recipe.mixup, recipe.cutmix, recipe.row_shape, str(dtype))
        with runtime.float_type_of(network):
            examples = recipe.example_labels(network.outputs[0].dtype)
            build_metrics(network, examples)
            check_metrics_add_up(network, examples)
        return recipe

    def _identity(self, recipe: Recipe) -> RunIdentity:
        # The order counts: shards stand where earlier releases had the number of workers.
        same = ("mode", "frequency", "rule", "elasticity", "validation_split", "class_weight", "metrics")
        computed = ("batch_size", "seed", "threads", "labels")
        return RunIdentity(
            {
                **{name: str(self.getOrDefault(name)) for name in same},
                "shards": str(recipe.num_shards),
                **{name: str(getattr(recipe, name)) for name in computed},
                "network": carried.to_json(recipe.network),
                "loss": problems.described(recipe.loss),
                "optimizer": json.dumps(recipe.optimizer, sort_keys=True, default=str),
                "augmentation": recipe.augmentation or "",
                # Only if it is used: checkpoints of earlier releases do not have it.
                **{
                    name: str(getattr(recipe, name))
                    for name, unused in _LATER.items()
                    if getattr(recipe, name) != unused
                },
                # Which column it goes by is in the fingerprint of the rows, which have their levels.
                **({"curriculum": str(recipe.curriculum_epochs)} if recipe.curriculum_epochs else {}),
            }
        )


class _EstimatorWriter(MLWriter):
    """Metadata, and the network of `set_network` beside it."""

    def __init__(self, instance: SeedlingsEstimator) -> None:
        super().__init__()
        self._instance = instance

    def saveImpl(self, path: str) -> None:
        instance = plain(self._instance)
        if instance.get_optimizer_config() is not None:
            instance._set(optimizer_config=writable_optimizer(instance.get_optimizer_config()))
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
