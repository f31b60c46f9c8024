"""From a corpus to a published version: the pipeline that is fitted, and what is kept with its model."""

import contextlib
import datetime
import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import display, files, fingerprint, problems, reproducibility, schema, scoring
from seedlings_spark.choices import SCHEDULES
from seedlings_spark.cluster import runtime, session
from seedlings_spark.corpus import Corpus, look_alikes
from seedlings_spark.errors import CorpusError, NetworkError, OptionError, SeedlingsError, StoreError
from seedlings_spark.estimator import SeedlingsEstimator, SeedlingsModel, elephas, features, keep_network_once
from seedlings_spark.models import networks, prediction, stages
from seedlings_spark.models.store import PROFILE, ModelStore, ModelVersion
from seedlings_spark.reports import drift, evaluation
from seedlings_spark.reports import page as report
from seedlings_spark.workflow import runs

with runtime.quiet_import():
    import keras

_log = logging.getLogger(__name__)

HELD_OUT = "is_validation"
# Share of all steps in which the learning rate rises, where it falls with a cosine afterwards.
_WARM_UP = 0.05
# Images of a split that a profile is made of: its shares are then exact to less than a percent.
_PROFILE_IMAGES = 20_000
# What `import_network` may be told of a network's outputs.
OUTPUTS = ("auto", "probabilities", "logits")


def set_network(estimator: SeedlingsEstimator, name: str, corpus: Corpus) -> None:
    """Give an estimator its network: by name, or from a `.keras` or JSON file on any file system.

    The weights in a `.keras` file are trained on; all others are drawn from the estimator's seed.

    Raises:
        OptionError: The estimator's loss does not fit species.
        NetworkError: A file's network takes or gives something else than the corpus has.
    """
    if estimator.isDefined("loss"):
        problems.check_species_loss(estimator.get_loss())
    if not name.endswith((".keras", ".json")):
        estimator.set_keras_model_config(
            networks.build(name, corpus.image_size, len(corpus.classes)).to_json()
        )
        return
    loaded, _ = _load_network(name)
    expected = (*corpus.image_size, 3)
    if tuple(loaded.input_shape[1:]) != expected or loaded.output_shape[-1] != len(corpus.classes):
        raise NetworkError(
            f"{name}, which takes {loaded.input_shape[1:]} and gives {loaded.output_shape[-1]} outputs",
            f"a network that takes {expected} and gives {len(corpus.classes)} outputs, as this corpus has",
            "Give another --network, or prepare the corpus with another --image-size",
        )
    if name.endswith(".keras"):
        estimator.set_network(loaded)
    else:
        estimator.set_keras_model_config(loaded.to_json())


def optimizer(
    name: str, learning_rate: float, schedule: str, num_steps: int, momentum: float = 0.0
) -> dict[str, Any]:
    """An optimizer's configuration.

    Args:
        name: Of a Keras optimizer.
        learning_rate: The highest.
        schedule: "constant", or "cosine": the rate rises over the first steps, and then falls to 0.
        num_steps: Of the whole run, after which the cosine reaches 0.
        momentum: Nesterov's, for an optimizer that has one; 0 leaves the optimizer as Keras makes it.
    """
    if schedule not in SCHEDULES:
        raise OptionError(f"--schedule {schedule}", f"one of {', '.join(SCHEDULES)}", "Correct --schedule")
    rate: Any = learning_rate
    if schedule == "cosine":
        # It does not begin at 0, where the first step, and with few steps the only one, would change nothing.
        warm_up = max(1, round(_WARM_UP * num_steps))
        rate = keras.optimizers.schedules.CosineDecay(
            learning_rate / warm_up,
            max(1, num_steps - warm_up),
            warmup_target=learning_rate,
            warmup_steps=warm_up,
        )
    try:
        made = keras.optimizers.get({"class_name": name, "config": {}})
        if momentum:
            if not {"momentum", "nesterov"} <= set(made.get_config()):
                raise OptionError(
                    f"--momentum {momentum:g} with --optimizer {name}, which has none",
                    "an optimizer with Nesterov momentum",
                    "Use --optimizer sgd, or leave --momentum out",
                )
            made = type(made)(momentum=momentum, nesterov=True)
    except (ValueError, TypeError, KeyError):  # unknown, or one that wraps another
        raise OptionError(
            f"--optimizer {name}", "a Keras optimizer, such as adam, sgd or rmsprop", "Correct --optimizer"
        ) from None
    made.learning_rate = rate
    config: dict[str, Any] = keras.optimizers.serialize(made)
    return config


def num_steps(
    images: DataFrame, num_workers: int, batch_size: int, epochs: int, *, is_shared: bool = False
) -> int:
    """Steps of one optimizer in a whole run: known before it starts, since shards follow from the hashes.

    Args:
        images: Of the corpus.
        num_workers: Of the run.
        batch_size: Of each worker.
        epochs: Of the run.
        is_shared: Whether the optimizer takes a step for each batch of each worker, as the master's does when
            asynchronous workers push gradients; else one for a batch of all workers together.
    """
    digits = F.right(F.col(schema.CONTENT_HASH), F.lit(fingerprint.DIGITS))
    shard = F.pmod(F.conv(digits, 16, 10).cast("long"), F.lit(num_workers))
    counts = images.where(F.col(schema.SPLIT) == schema.TRAIN).groupBy(shard).count()
    steps = F.ceil(F.col("count") / F.lit(batch_size))
    found = counts.agg(F.sum(steps) if is_shared else F.max(steps)).first()
    return epochs * int((found[0] if found is not None else 0) or 0)


def training_images(spark: SparkSession, corpus: Corpus) -> DataFrame:
    """Train and validation images, the latter marked in the column `is_validation`.

    Raises:
        CorpusError: A species has no image to train on.
    """
    absent = [
        name for name, splits in corpus.manifest["images_of_species"].items() if not splits[schema.TRAIN]
    ]
    if absent:
        raise CorpusError(
            f"no training image of {', '.join(absent)}",
            "at least one of every species",
            "Prepare the corpus with more images of it, or with --split-policy stratified",
        )
    images = corpus.images(spark, schema.TRAIN, schema.VALIDATION)
    return images.withColumn(HELD_OUT, F.col(schema.SPLIT) == schema.VALIDATION)


def pipeline(corpus: Corpus, estimator: SeedlingsEstimator, *, scaler: str, scaler_images: int) -> Pipeline:
    """`StringIndexer`, the standardiser (unless scaler is "none") and the estimator."""
    stages: list[Any] = [features.species_indexer()]
    column = schema.IMAGE
    if scaler != "none":
        standardizer = features.ImageStandardizer(
            inputCol=schema.IMAGE,
            imageSize=list(corpus.image_size),
            poolBy=scaler,
            maxImages=scaler_images,
            heldOutCol=HELD_OUT,
        )
        stages.append(standardizer)
        column = standardizer.getOrDefault("outputCol")
    estimator._set(featuresCol=column, labelCol=schema.LABEL, validationIndicatorCol=HELD_OUT)
    return Pipeline(stages=[*stages, estimator])


class RunRecord(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the metrics of each epoch into the run's folder, one JSON object a line.

    Args:
        path: Of `metrics.jsonl`, on any file system.
        check: Called before anything is written; raises if the folder is not this run's any more.
    """

    checkpointed = ()  # what it holds stands in the file

    def __init__(self, path: str, check: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._path, self._check = path, check
        self._lines: list[str] = []

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """A run begins, or goes on after some epochs."""
        if files.exists(self._path):
            self._lines = files.read_text(self._path).splitlines()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """An epoch has ended; its checkpoint is not written yet."""
        self._check()
        line = json.dumps({"epoch": epoch + 1, "time": _now(), **_finite(dict(logs or {}))})
        self._lines[epoch:] = [line]  # an epoch that is trained again after a crash replaces its line
        files.write_text(self._path, "\n".join(self._lines) + "\n")


class KeptWeights(keras.callbacks.EarlyStopping):  # type: ignore[misc]
    """Gives the network the weights of its best epoch when training ends; Keras' own, for which no number is worst.

    Keras takes a loss that is not a number in the first epoch for the best one, whatever follows. With an optimizer
    that averages weights (`use_ema`) these are the weights that the loss was measured with, as in Keras: not averages.
    """

    def get_monitor_value(self, logs: Mapping[str, float] | None) -> float | None:
        """The validation loss, infinite where it is no number."""
        value = super().get_monitor_value(logs)
        return math.inf if value is not None and math.isnan(value) else value


def callbacks(
    run: str,
    corpus: Corpus,
    *,
    keep: str,
    patience: int,
    epochs: int,
    check: Callable[[], None] = lambda: None,
) -> list[Any]:
    """The callbacks of a run.

    Args:
        run: Its folder, for the record.
        corpus: Without validation images no epoch is known to be the best, and nothing stops early.
        keep: Whose weights the network has in the end: those of the "best" epoch, or of the "last".
        patience: Epochs without progress before it is stopped early; 0 for never.
        epochs: Of the whole run.
        check: As for `RunRecord`.
    """
    made: list[Any] = [RunRecord(files.join(run, runs.METRICS), check)]
    if not corpus.num_images(schema.VALIDATION):
        if patience or keep == "best":
            _log.warning("there are no validation images: training goes on to the last epoch, which is kept")
    elif patience or keep == "best":
        restored = keep == "best"
        made.append(KeptWeights("val_loss", patience=patience or epochs, restore_best_weights=restored))
    return made


def about(corpus: Corpus, options: Mapping[str, Any], run: str) -> dict[str, Any]:
    """What a version's manifest says of where it comes from."""
    names = ("aspect", "formats", "max_pixels", "max_bytes", "split_policy", "split_shares", "sample")
    return {
        "image_size": list(corpus.image_size),
        "aspect": corpus.manifest["aspect"],
        "corpus": {
            "path": corpus.path,
            "fingerprint": corpus.fingerprint,
            "images_of_split": corpus.manifest["images_of_split"],
            **{name: corpus.manifest[name] for name in names},
        },
        "options": dict(options),
        "seed": options["seed"],
        "run_path": run,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def predictions(spark: SparkSession, version: ModelVersion, corpus: Corpus, split: str) -> DataFrame:
    """A version's predictions for a split of a corpus, beside the true species.

    Raises:
        CorpusError: The images have another size than the model takes, or there are none.
    """
    if corpus.image_size != version.image_size:
        found, expected = ("x".join(map(str, size)) for size in (corpus.image_size, version.image_size))
        raise CorpusError(
            f"{corpus.path} with images of {found} pixels for {version.name} {version.version}",
            f"images of {expected}, as that model takes",
            f"Prepare the corpus with --image-size {version.image_size[0]}, or choose another --model-version",
        )
    if not corpus.num_images(split):
        raise CorpusError(
            f"no image in the split {split!r} of {corpus.path}", "at least one", "Choose another --split"
        )
    strange = [
        name
        for name, images_of_split in corpus.manifest["images_of_species"].items()
        if images_of_split.get(split) and name not in version.classes
    ]
    if strange:
        pair = look_alikes([*version.classes, *strange])
        alike = f" ({pair[0]} and {pair[1]} only look alike)" if pair else ""
        raise CorpusError(
            f"images of {', '.join(strange)} in the split {split!r} of {corpus.path}{alike}",
            f"species that {version.name} {version.version} knows: {', '.join(version.classes)}",
            "Choose another --model-version, or train one on this corpus",
        )
    model = load(version)
    return model.transform(corpus.images(spark, split))


def evaluated(
    predicted: DataFrame, corpus: Corpus, split: str, classes: Sequence[str]
) -> evaluation.Evaluation:
    """The numbers of a model on a split of a corpus, of which each image counts once.

    Args:
        predicted: As `predictions` gives it.
        corpus: That the images are of.
        split: Of the corpus.
        classes: Of the model.

    Raises:
        SeedlingsError: The model leaves out images, or gives probabilities that are not numbers.
    """
    probability = schema.PROBABILITY if schema.PROBABILITY in predicted.columns else ""
    matrix = evaluation.confusion_matrix(predicted, classes, probability=probability)
    if int(matrix.sum()) != corpus.num_images(split):
        raise SeedlingsError(
            f"predictions for {matrix.sum():,} images",
            f"one for each of the {corpus.num_images(split):,} in the split {split!r} of {corpus.path}",
            "A stage of the model's pipeline leaves rows out or doubles them (see its handleInvalid): publish one that"
            " does not",
        )
    return evaluation.evaluate(matrix, classes)


def load(version: ModelVersion) -> PipelineModel:
    """The fitted pipeline of a version.

    What Spark would make of a version from elsewhere is looked at first: see `stages`.

    Raises:
        StoreError: A file of it is not as it was published, or holds a stage that we do not know to be harmless.
    """
    version.check_files()
    _check_stages(version.pipeline_path)
    return PipelineModel.load(version.pipeline_path)


def _check_stages(folder: str) -> None:
    own = (SeedlingsModel, elephas.ElephasTransformer, features.ImageStandardizerModel)
    names = {f"{each.__module__}.{each.__name__}": each for each in own}
    networks_of = [name for name, each in names.items() if issubclass(each, SeedlingsModel)]
    stages.check(folder, names, dict.fromkeys(networks_of, ("network.keras",)))


def about_evaluation(version: ModelVersion, corpus: Corpus, split: str) -> dict[str, object]:
    """What a report says of where its numbers come from."""
    return {
        "model": version.name,
        "model_version": version.version,
        "split": split,
        "corpus": corpus.path,
        "corpus_fingerprint": corpus.fingerprint,
        "trained_on_this_corpus": version.manifest.get("corpus", {}).get("fingerprint") == corpus.fingerprint,
    }


@dataclass(frozen=True)
class Promotion:
    """Whether a new version is to become the current one.

    Args:
        is_due: Whether it is.
        reason: Why, where something was compared.
    """

    is_due: bool
    reason: str


def summary(version: ModelVersion, run: str, promotion: Promotion) -> list[tuple[str, object]]:
    """What `train` prints at its end."""
    metrics, kept = version.manifest["metrics"], version.manifest["kept"]
    promoted = "now current" if promotion.is_due else "not promoted"
    return [
        ("version", f"{version.name} {version.version} ({promoted})"),
        *([("compared", promotion.reason)] if promotion.reason else []),
        ("epoch", f"{kept['epoch']}, the {kept['keep']} one"),
        ("stored in", display.Whole(version.path)),
        ("run", display.Whole(run)),
        ("precision", version.manifest["precision"]),
        *[(name, _shown(value)) for name, value in metrics.items()],
    ]


def _shown(value: Any) -> str:
    """A metric's value, or its values, for a person to read."""
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return "not finite" if value is None else f"{value:.4f}"


def profile(spark: SparkSession, model: PipelineModel, corpus: Corpus) -> drift.Profile:
    """What scoring runs are compared with: statistics of the corpus' images, predictions for its validation split.

    The training split's own predictions would be surer than those for any new image; they are taken where there is
    no validation split. At most `_PROFILE_IMAGES` images of a split are looked at, chosen by their content.

    Args:
        spark: The session.
        model: A fitted pipeline whose last stage is a `SeedlingsModel`.
        corpus: That it was trained on.
    """
    last = model.stages[-1]
    assert isinstance(last, SeedlingsModel)
    task = prediction.ForwardTask(
        network=last.network_bytes,
        precision=last.getOrDefault("precision"),
        batch_size=64,
        threads=session.task_cpus(spark),
    )

    def of(split: str) -> drift.Profile:
        share = min(1.0, _PROFILE_IMAGES / max(1, corpus.num_images(split)))
        place = F.conv(F.substring(schema.CONTENT_HASH, 9, 8), 16, 10).cast("long")
        chosen = corpus.images(spark, split).where(place <= int(share * 0xFFFFFFFF))
        return scoring.profile_of_images(spark, chosen, task, corpus.image_size, last.getOrDefault("labels"))

    train, validation = of(schema.TRAIN), of(schema.VALIDATION)
    predicted = validation if validation.species else train
    confidence = predicted.histograms[drift.CONFIDENCE]
    return drift.Profile(predicted.species, {**(train + validation).histograms, drift.CONFIDENCE: confidence})


def promotion(
    spark: SparkSession, store: ModelStore, model: PipelineModel, corpus: Corpus, when: str
) -> Promotion:
    """Decide whether a new version becomes the current one.

    Args:
        spark: The session.
        store: Where the current version is.
        model: The new one, not yet published.
        corpus: With the validation images that both are compared on.
        when: "always", "never", or "better": if more of them are named rightly than by the current version.
    """
    if when != "better":
        return Promotion(when == "always", "")
    try:
        version = store.verify() if store.current() else None
    except StoreError as error:
        return Promotion(False, f"the current version cannot be compared with: {error}")
    if version is None:
        return Promotion(True, "there was no current version")
    if not corpus.num_images(schema.VALIDATION):
        return Promotion(False, f"there are no validation images to compare with {version.version} on")
    classes = model.stages[-1].getOrDefault("labels")
    if others := sorted({*classes} ^ {*version.classes}):
        return Promotion(False, f"{version.version} has other classes; not in both are {', '.join(others)}")

    def accuracy(predicted: DataFrame) -> float:
        return evaluated(predicted, corpus, schema.VALIDATION, classes).accuracy

    try:
        theirs = accuracy(predictions(spark, version, corpus, schema.VALIDATION))
    except SeedlingsError as error:
        return Promotion(False, f"{version.version} cannot be compared with: {error}")
    ours = accuracy(model.transform(corpus.images(spark, schema.VALIDATION)))
    return Promotion(
        ours > theirs,
        f"accuracy {ours:.4f} on the validation images, {theirs:.4f} of {version.version}",
    )


def publish(
    store: ModelStore,
    model: PipelineModel,
    *,
    about: Mapping[str, Any],
    promote: bool,
    profile: drift.Profile | None = None,
) -> ModelVersion:
    """Publish a fitted pipeline whose last stage is a `SeedlingsModel`.

    Args:
        store: Where to.
        model: The fitted pipeline.
        about: What the manifest shall say of corpus, options and classes.
        promote: Whether it becomes the current version.
        profile: Of the corpus, with which scoring runs are compared.
    """
    last = model.stages[-1]
    assert isinstance(last, SeedlingsModel)
    if last.getOrDefault("kind") in (problems.BINARY, problems.MULTILABEL, problems.REGRESSION):
        raise StoreError(
            f"a model of kind {last.getOrDefault('kind')!r}",
            "one of classification: scoring gives each image one species",
            "Train a network with an output for each species and a categorical loss",
        )
    history = last.history
    # JSON has no NaN; what is not finite is null there.
    written = _finite(history)
    keep = about.get("options", {}).get("keep", "last")
    epoch = _kept_epoch(history, keep)

    def build(folder: str) -> None:
        model.write().save(files.join(folder, "model"))
        _check_stages(files.join(folder, "model"))  # or it would be refused when it is wanted
        keep_network_once(folder, last.uid)
        if profile is not None:
            files.write_text(files.join(folder, PROFILE), json.dumps(profile.to_json()) + "\n")
        if history:
            files.write_bytes(
                files.join(folder, "report", "learning_curves.png"),
                report.learning_curves(history, epoch + 1),
            )
            files.write_text(files.join(folder, "report", "history.json"), json.dumps(written) + "\n")

    manifest = {
        **about,
        "classes": last.getOrDefault("labels"),
        "precision": last.getOrDefault("precision"),
        "metrics": {name: values[epoch] for name, values in written.items()},
        "history": written,
        **({"kept": {"keep": keep, "epoch": epoch + 1}} if history else {}),
        "training": _finite(last.record),
        "versions": reproducibility.package_versions(),
    }
    version = store.publish(build, manifest, promote=promote)
    _log.info(
        "published %s %s%s: a network of %s bytes for %d classes",
        version.name,
        version.version,
        " (now current)" if promote else "",
        f"{len(last.network_bytes):,}",
        len(version.classes),
    )
    return version


def publish_trained(
    spark: SparkSession,
    store: ModelStore,
    model: PipelineModel,
    corpus: Corpus,
    *,
    about: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
) -> tuple[ModelVersion, Promotion]:
    """Publish what was trained on a corpus with a profile of that, and promote it if its options say so.

    Args:
        spark: The session.
        store: Where to.
        model: The fitted pipeline.
        corpus: That it was fitted to.
        about: Of `about`.
        check: Called before anything is published; raises if the run is not ours any more.
    """
    made = profile(spark, model, corpus)
    decided = promotion(spark, store, model, corpus, about["options"]["promote"])
    check()
    told = {**about, "promotion": {"is_due": decided.is_due, "reason": decided.reason}}
    return publish(store, model, about=told, promote=decided.is_due, profile=made), decided


def import_network(
    store: ModelStore,
    file: str,
    classes: Sequence[str],
    *,
    aspect: str,
    promote: bool,
    outputs: str = "auto",
) -> ModelVersion:
    """Publish a `.keras` file that was trained elsewhere, over raw pixels.

    What is published gives probabilities: a network that gives logits gets a softmax.

    Args:
        store: Where to.
        file: Path on any file system.
        classes: Names, in the order of the network's outputs.
        aspect: How images are brought to the network's size.
        promote: Whether it becomes the current version.
        outputs: "probabilities", "logits", or "auto": logits where the loss that it was saved with says so.

    Raises:
        NetworkError: It is no image classifier of so many classes.
    """
    if not file.endswith(".keras"):
        raise NetworkError(
            f"{file}, whose name does not end in .keras",
            "a network with its weights",
            "Save it with model.save('name.keras')",
        )
    if not all(classes) or len(set(classes)) != len(classes):
        raise OptionError(
            f"--classes {' '.join(map(repr, classes))}", "different names, none empty", "Correct --classes"
        )
    if pair := look_alikes(classes):
        raise OptionError(
            f"--classes with two names that look alike, {pair[0]} and {pair[1]}",
            "names that a person can tell apart",
            "Correct --classes",
        )
    loaded, loss = _load_network(file)
    shape, given = tuple(loaded.input_shape[1:]), tuple(loaded.output_shape[1:])
    if len(shape) != 3 or shape[2] != 3 or given != (len(classes),):
        raise NetworkError(
            f"{file}, which takes {shape} and gives {given}, for {len(classes)} class names",
            "a network that takes (height, width, 3) and gives one output for each class name",
            "Correct --classes, or give a network of another shape",
        )
    if outputs == "logits" or (outputs == "auto" and problems.config_takes_logits(loss)):
        loaded = problems.with_head(loaded, ("softmax",))
    problems.check_probabilities(loaded, file)
    model = PipelineModel([SeedlingsModel.from_network(loaded, classes)])
    about = {"image_size": list(shape[:2]), "aspect": aspect, "imported_from": file}
    return publish(store, model, about=about, promote=promote)


def _load_network(file: str) -> tuple[Any, Any]:
    """A network file from any file system, and the configuration of the loss that it was saved with, if any.

    One of the working directory comes first, where --files puts it in a container.
    """

    def read(path: Path) -> tuple[Any, Any]:
        return networks.load(path, file), networks.saved_loss(path) if path.suffix == ".keras" else None

    if Path(file).is_file():
        return read(Path(file))
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / files.name(file)
        with contextlib.suppress(FileNotFoundError):  # `load` says so
            files.get(file, local)
        return read(local)


def _kept_epoch(history: Mapping[str, Sequence[float]], keep: str) -> int:
    """The epoch, from 0, whose weights `KeptWeights` has left in the network."""
    losses = history.get("val_loss", [])
    if keep != "best" or not losses:
        return max(map(len, history.values()), default=0) - 1
    return min(range(len(losses)), key=lambda epoch: (math.isnan(losses[epoch]), losses[epoch]))


def _finite(value: Any) -> Any:
    """The same mappings, lists and values with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
