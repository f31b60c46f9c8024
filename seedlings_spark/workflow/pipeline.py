"""The pipeline that a corpus is fitted with: its network, optimizer, stages and callbacks."""

import contextlib
import datetime
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.ml import Pipeline
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import files, fingerprint, problems, reproducibility, schema
from seedlings_spark.choices import (
    BACKBONES,
    DEFAULT_LOSS,
    IMAGENET,
    LAST,
    NETWORK_FILES,
    NO_WEIGHTS,
    OWN_NETWORKS,
    SCHEDULES,
)
from seedlings_spark.cluster import runtime
from seedlings_spark.corpus import Corpus
from seedlings_spark.errors import CorpusError, NetworkError, OptionError
from seedlings_spark.estimator import SeedlingsEstimator, features
from seedlings_spark.kinds import Kind
from seedlings_spark.models import networks
from seedlings_spark.reports import plots
from seedlings_spark.reports.evaluation import evaluate
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training.mixing import Mixing
from seedlings_spark.workflow import events, runs

with runtime.quiet_import():
    import keras

_log = logging.getLogger(__name__)
HELD_OUT = "is_validation"
# What the loss by default stands for, where it is not that of species which exclude each other.
_LOSSES = {Kind.MULTILABEL: "binary_crossentropy", Kind.REGRESSION: "mean_squared_error"}
# Of the outputs of a network by name.
_ACTIVATIONS = {Kind.CLASSIFICATION: "softmax", Kind.MULTILABEL: "sigmoid", Kind.REGRESSION: "linear"}
# What a run measures beside its loss. Keras' "accuracy" of lists of species would compare the most probable one only.
_METRICS = {
    Kind.CLASSIFICATION: ("accuracy",),
    Kind.MULTILABEL: ("binary_accuracy",),
    Kind.REGRESSION: ("mean_absolute_error", "RootMeanSquaredError"),
}
# Share of all steps in which the learning rate rises, of the schedules that are known with one (Loshchilov and Hutter
# 2017, arXiv:1608.03983; Smith and Topin 2019, arXiv:1708.07120), and how far one-cycle rises.
_WARM_UPS = {"cosine": 0.05, "one-cycle": 0.3}
_ONE_CYCLE_RISE = 25
# Validation images that are shown with what the network takes them for.
_WATCHED = 12
# Training images that are shown as they may be changed, and how often each.
_SHOWN_IMAGES, _SHOWN_CHANGES = 6, 8
# Pictures of an epoch are drawn when so many times as long as the last took has gone by.
_RESTS = 50
# What the events of a run call the validation images and what they are taken for.
_PICTURES = "pictures"
# What the plateau takes the rate down by, and after how many epochs without a lower validation loss.
_PLATEAU_FACTOR, PLATEAU_EPOCHS = 0.3, 3
# Names of variables that do not decay: biases, scales and centres. One pattern, since Keras joins several in any order.
_NOT_DECAYED = "bias|gamma|beta"


def check_network(name: str, corpus: Corpus) -> None:
    """Refuse a name that no network has, and a corpus whose images are too small for it.

    Raises:
        OptionError: It is so.
    """
    if not name.endswith(NETWORK_FILES):
        networks.check_named(name, corpus.image_size)


def scaler(chosen: str, network: str) -> str:
    """What "auto" stands for with a network: "none" where it has a preprocessing of its own, else "channel"."""
    if chosen != "auto":
        return chosen
    return "none" if network in BACKBONES else "channel"


def named_network(
    name: str, corpus: Corpus, weights: str, seed: int, *, head_on: str = LAST, dropout: float = 1.0
) -> Any:
    """A network by name for a corpus; what `weights` do not give is drawn from a run's seed.

    Args:
        name: One of `choices.NETWORKS`.
        corpus: To train it on.
        weights: "none", "imagenet", or a file on any file system.
        seed: Of the run.
        head_on: One of `choices.HEAD_ON`.
        dropout: As for `networks.scale_dropout`.

    Raises:
        NetworkError: The weights are those of another network, or cannot be had.
    """
    with (
        local_file(weights) as local,
        reproducibility.seeded_initializers(reproducibility.seed_for(seed, "init")),
    ):
        activation = _ACTIVATIONS[corpus.kind]
        outputs = corpus.num_outputs
        built = networks.build(name, corpus.image_size, outputs, local, activation, head_on=head_on)
    networks.scale_dropout(built, dropout)
    return _in_unit(built, corpus)


def _in_unit(network: Any, corpus: Corpus) -> Any:
    return networks.in_unit(network, *corpus.scale) if corpus.kind == Kind.REGRESSION else network


def set_network(
    estimator: SeedlingsEstimator,
    name: str,
    corpus: Corpus,
    weights: str = NO_WEIGHTS,
    fine_tune: str = "",
    dropout: float = 1.0,
) -> None:
    """Give an estimator its network: by name, or from a `.keras` or JSON file on any file system.

    The weights in a `.keras` file, and those of `weights`, are trained on; all others are drawn from the estimator's
    seed.

    Args:
        estimator: That is to train it.
        name: Name or file.
        corpus: To train it on.
        weights: "none", "imagenet", or a file on any file system, for a network by name.
        fine_tune: Which layers are trained, as `networks.freeze` takes it; "" leaves it to the network.
        dropout: As for `networks.scale_dropout`.

    Raises:
        OptionError: The estimator's loss does not fit the labels.
        NetworkError: A file's network takes or gives something else than the corpus has; the weights are those of
            another network, or cannot be had.
    """
    if estimator.isDefined("loss"):
        problems.check_loss(estimator.get_loss(), corpus.kind)
    if not name.endswith(NETWORK_FILES):
        seed = estimator.getOrDefault("seed")
        network = named_network(name, corpus, weights, seed, dropout=dropout)
        networks.freeze(network, fine_tune or "all")
        if name in OWN_NETWORKS:
            estimator.set_keras_model_config(network.to_json())
        else:  # JSON does not hold what layers have adapted, such as EfficientNet's normalization
            estimator.set_network(network)
        return
    loaded, _ = load_network(name)
    expected = (*corpus.image_size, 3)
    if tuple(loaded.input_shape[1:]) != expected or loaded.output_shape[-1] != corpus.num_outputs:
        outputs = f"{corpus.num_outputs} output{'s' * (corpus.num_outputs != 1)}"
        raise NetworkError(
            f"{name}, which takes {loaded.input_shape[1:]} and gives {loaded.output_shape[-1]} outputs",
            f"a network that takes {expected} and gives {outputs}, as this corpus has",
            "Give another --network, or prepare the corpus with another --image-size",
        )
    _check_ends(name, problems.last_activation(loaded), corpus.kind)
    loaded = _in_unit(loaded, corpus)
    networks.scale_dropout(loaded, dropout)
    if fine_tune:
        networks.freeze(loaded, fine_tune)
    if name.endswith(".keras"):
        estimator.set_network(loaded)
    else:
        estimator.set_keras_model_config(loaded.to_json())


def _check_ends(name: str, activation: str, kind: Kind) -> None:
    """Refuse a file whose network ends with probabilities that the labels have not.

    Raises:
        NetworkError: It is so.
    """
    wrong = {Kind.MULTILABEL: ("softmax",), Kind.REGRESSION: ("softmax", "sigmoid")}.get(kind, ())
    if activation in wrong:
        raise NetworkError(
            f"{name}, which ends with a {activation}, for pictures that {kind.of_pictures}",
            f"a network that ends with activation={_ACTIVATIONS[kind]!r}",
            "Give another --network: the probabilities of a softmax are those of species that exclude each other"
            if kind == Kind.MULTILABEL
            else "Give another --network: probabilities are from 0 to 1",
        )


def loss(name: str, label_smoothing: float, corpus: Corpus) -> Any:
    """A loss as the estimator takes it: its name, or its configuration where that says more.

    Args:
        name: Its name; the default of `train` stands for that of the corpus' kind.
        label_smoothing: Share of each label that goes to all species alike; where these do not exclude each other, to
            both 0 and 1.
        corpus: To train on.

    Raises:
        OptionError: It is none for such labels, or none that Keras knows.
    """
    name = _LOSSES.get(corpus.kind, name) if name == DEFAULT_LOSS else name
    problems.check_loss(name, corpus.kind)
    if corpus.kind == Kind.REGRESSION:
        _, deviation = corpus.scale
        return keras.losses.serialize(problems.InDeviations(name, deviation))
    if not label_smoothing:
        return name
    losses = keras.losses
    smoothed = losses.BinaryCrossentropy if corpus.kind == Kind.MULTILABEL else losses.CategoricalCrossentropy
    return losses.serialize(smoothed(label_smoothing=label_smoothing))


def optimizer(
    name: str,
    learning_rate: Any,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    ema: float = 0.0,
    clip_norm: float = 0.0,
) -> dict[str, Any]:
    """An optimizer's configuration.

    Args:
        name: Name of a Keras optimizer.
        learning_rate: A number, or what `learning_rate` gives.
        momentum: Nesterov's, for an optimizer that has one; 0 leaves the optimizer as Keras makes it.
        weight_decay: Decoupled, of kernels only (Loshchilov and Hutter 2019, arXiv:1711.05101); 0 for what the
            optimizer has of its own, as AdamW does.
        ema: Momentum of the average over all steps' weights; 0 for none.
        clip_norm: Longest gradient, of all weights together, in the Euclidean norm; 0 for any.

    Raises:
        OptionError: Keras has no such optimizer, or it cannot do what is asked for.
    """
    given: dict[str, Any] = {"use_ema": True, "ema_momentum": ema} if ema else {}
    given |= {"weight_decay": weight_decay} if weight_decay else {}
    given |= {"global_clipnorm": clip_norm} if clip_norm else {}
    try:
        made = keras.optimizers.get({"class_name": name, "config": {}})
        if momentum and not {"momentum", "nesterov"} <= set(made.get_config()):
            raise OptionError(
                f"--momentum {momentum:g} with --optimizer {name}, which has none",
                "an optimizer with Nesterov momentum",
                "Use --optimizer sgd, or leave --momentum out",
            )
        given |= {"momentum": momentum, "nesterov": True} if momentum else {}
        made = type(made)(**given)
    except (ValueError, TypeError, KeyError):  # unknown, or one that wraps another
        raise OptionError(
            f"--optimizer {name}", "a Keras optimizer, such as adam, sgd or rmsprop", "Correct --optimizer"
        ) from None
    made.learning_rate = learning_rate
    if made.weight_decay:  # AdamW has one of its own
        made.exclude_from_weight_decay(var_names=[_NOT_DECAYED])
    return optimizers.to_config(made)


def learning_rate(highest: float, schedule: str, num_steps: int, warm_up: float = 0.0) -> Any:
    """A learning rate as a number, or as a schedule of Keras.

    Args:
        highest: The highest.
        schedule: One of `choices.SCHEDULES`, as the options tell of them. "plateau" is a number, which a callback
            changes (`callbacks`).
        num_steps: Number of steps of the whole run, after which a schedule is at its end.
        warm_up: Share of the steps in which the rate rises; 0 for the schedule's own.

    Raises:
        OptionError: There is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise OptionError(f"--schedule {schedule}", f"one of {', '.join(SCHEDULES)}", "Correct --schedule")
    rising = round((warm_up or _WARM_UPS.get(schedule, 0.0)) * num_steps)
    if schedule in ("cosine", "one-cycle"):
        # It does not begin at 0, where the first step, and with few steps the only one, would change nothing.
        rising = max(1, rising)
        begin = highest / (rising if schedule == "cosine" else min(rising, _ONE_CYCLE_RISE))
        return keras.optimizers.schedules.CosineDecay(
            begin, max(1, num_steps - rising), warmup_target=highest, warmup_steps=rising
        )
    # Up in ten stairs, as Keras' schedules of steps have no slope.
    stairs = min(rising, 10)
    boundaries = [round(rising * (stair + 1) / stairs) for stair in range(stairs)]
    values = [highest * (stair + 1) / (stairs + 1) for stair in range(stairs)] + [highest]
    if schedule == "step":
        boundaries += [max(rising, num_steps // 2), max(rising, num_steps * 3 // 4)]
        values += [highest / 10, highest / 100]
    if not boundaries:
        return highest
    # Keras keeps a value up to its boundary and on it.
    return keras.optimizers.schedules.PiecewiseConstantDecay([at - 1 for at in boundaries], values)


def num_steps(
    images: DataFrame, num_shards: int, batch_size: int, epochs: int, *, is_shared: bool = False
) -> int:
    """Steps of one optimizer in a whole run: known before it starts, since shards follow from the hashes.

    Args:
        images: Images of the corpus.
        num_shards: Shards of the run.
        batch_size: Batch size of each worker.
        epochs: Epochs of the run.
        is_shared: Whether the optimizer takes a step for each batch of each worker, as the master's does when
            asynchronous workers push gradients; else one for a batch of all workers together.
    """
    digits = F.right(F.col(schema.CONTENT_HASH), F.lit(fingerprint.DIGITS))
    shard = F.pmod(F.conv(digits, 16, 10).cast("long"), F.lit(num_shards))
    counts = images.where(F.col(schema.SPLIT) == schema.TRAIN).groupBy(shard).count()
    steps = F.ceil(F.col("count") / F.lit(batch_size))
    found = counts.agg(F.sum(steps) if is_shared else F.max(steps)).first()
    return epochs * int((found[0] if found is not None else 0) or 0)


def training_images(spark: SparkSession, corpus: Corpus) -> DataFrame:
    """Train and validation images, the latter marked in the column `is_validation`; numbers in the column `label`.

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
    if corpus.kind == Kind.REGRESSION:
        images = images.withColumn(schema.LABEL, schema.number_in(F.col(schema.SPECIES)))
    return images.withColumn(HELD_OUT, F.col(schema.SPLIT) == schema.VALIDATION)


def some_images(
    spark: SparkSession, corpus: Corpus, split: str, count: int
) -> tuple[NDArray[np.uint8], list[Any]]:
    """At most so many images of a split, chosen by their content.

    Returns:
        Their pixels, shape (images, height, width, 3), and their species.
    """
    chosen = corpus.images(spark, split).orderBy(schema.CONTENT_HASH).limit(count)
    rows = chosen.select(schema.IMAGE, schema.SPECIES).collect()
    content = b"".join(bytes(row[0]) for row in rows)
    return np.frombuffer(content, np.uint8).reshape(-1, *corpus.image_size, 3), [row[1] for row in rows]


def records(
    spark: SparkSession,
    corpus: Corpus,
    run: str,
    check: Callable[[], None],
    report: Callable[[Sequence[str]], None],
) -> list[Any]:
    """The callbacks that write down what happens, with pictures where there are validation images of one species each.

    These are fetched now: while training goes on Spark has no slot left.

    Args:
        spark: The session.
        corpus: That is trained on.
        run: Folder of the run.
        check: As for `RunRecord`.
        report: Likewise.
    """
    path = files.join(run, runs.METRICS)
    if corpus.kind != Kind.CLASSIFICATION or not corpus.num_images(schema.VALIDATION):
        return [RunRecord(path, check, report)]
    watched = WatchedPictures(corpus.classes, *some_images(spark, corpus, schema.VALIDATION, _WATCHED))
    return [watched, RunRecord(path, check, report, watched.drawn)]


def show_augmentation(
    spark: SparkSession, corpus: Corpus, run: str, augment: Sequence[str], mixed: tuple[float, float]
) -> None:
    """Draw what training may make of some images, in the run's folder.

    Args:
        spark: The session.
        corpus: Whose training images they are.
        run: Folder of the run.
        augment: As for `networks.augmentation`.
        mixed: MixUp's and CutMix's alpha.
    """
    pixels, _ = some_images(spark, corpus, schema.TRAIN, _SHOWN_IMAGES)
    mixing = Mixing(*mixed) if any(mixed) else None
    changing = networks.augmentation(augment, corpus.image_size)
    place = files.join(run, runs.AUGMENTATION)
    files.write_bytes(
        place, plots.changes(pixels, networks.augmented(changing, pixels, _SHOWN_CHANGES, mixing))
    )
    _log.info("what training may make of images: %s", place)


def pipeline(corpus: Corpus, estimator: SeedlingsEstimator, *, scaler: str, scaler_images: int) -> Pipeline:
    """What makes labels of species, the standardiser (unless scaler is "none") and the estimator.

    Species become labels by a `StringIndexer`, lists of them by a `MultiLabelBinarizer`; numbers are such.
    """
    stages: list[Any] = []
    if corpus.kind == Kind.CLASSIFICATION:
        stages.append(features.species_indexer())
    elif corpus.kind == Kind.MULTILABEL:
        stages.append(features.MultiLabelBinarizer())
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
    """Writes the metrics of each epoch into the run's folder, as a line of JSON and as events for TensorBoard.

    Args:
        path: Path of `metrics.jsonl`, on any file system.
        check: Called before anything is written; raises if the folder is not this run's any more.
        report: Called after each epoch with all lines of the file.
        pictures: What TensorBoard is shown besides, of a network after an epoch; PNGs by name.
    """

    checkpointed = ()  # what it holds stands in the file

    def __init__(
        self,
        path: str,
        check: Callable[[], None] = lambda: None,
        report: Callable[[Sequence[str]], None] = lambda lines: None,
        pictures: Callable[[Any], Mapping[str, bytes]] = lambda network: {},
    ) -> None:
        super().__init__()
        self._path, self._check, self._report, self._pictures = path, check, report, pictures
        self._lines: list[str] = []

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """A run begins, or goes on after some epochs."""
        if files.exists(self._path):
            self._lines = files.read_text(self._path).splitlines()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """An epoch has ended; its checkpoint is not written yet."""
        self._check()
        line = json.dumps({"epoch": epoch + 1, "time": _now(), **finite(dict(logs or {}))})
        self._lines[epoch:] = [line]  # an epoch that is trained again after a crash replaces its line
        files.write_text(self._path, "\n".join(self._lines) + "\n")
        folder = files.join(files.parent(self._path), runs.EVENTS)
        events.write(folder, epoch + 1, logs or {}, self._pictures(self.model))
        self._report(self._lines)


def remove_pictures(run: str) -> list[str]:
    """Write a run's events that have pictures anew without them, by its metrics; the files that had any.

    Args:
        run: Folder of the run.
    """
    metrics, folder = files.join(run, runs.METRICS), files.join(run, runs.EVENTS)
    lines = files.read_text(metrics).splitlines() if files.exists(metrics) else []
    of_epoch = {int(line["epoch"]): line for line in map(json.loads, lines)}
    found = events.with_picture(folder, _PICTURES)
    for epoch in found:
        line = of_epoch.get(epoch, {})
        # What was not finite is null there.
        kept = {
            name: math.nan if value is None else value
            for name, value in line.items()
            if name not in ("epoch", "time")
        }
        events.write(folder, epoch, kept)  # in their place, where there is something to write
    for file in events.with_picture(folder, _PICTURES).values():
        files.delete(file)
    return list(found.values())


class WatchedPictures(keras.callbacks.Callback):  # type: ignore[misc]
    """What the network makes of the validation images after an epoch, as pictures.

    It takes time in which the workers have nothing to do, and so is not done after each epoch of a quick run.

    Args:
        classes: Of the network.
        pixels: Some validation images, shape (images, height, width, 3).
        species: Of each.
        clock: Seconds.
    """

    checkpointed = ()  # a picture less is no loss

    def __init__(
        self,
        classes: Sequence[str],
        pixels: NDArray[np.uint8],
        species: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._classes, self._pixels, self._species, self._clock = classes, pixels, species, clock
        self._confusion: NDArray[np.int64] | None = None
        self._not_before, self._is_last = -math.inf, False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """An epoch begins."""
        self._is_last = epoch + 1 == self.params.get("epochs")

    def on_confusion(self, epoch: int, counts: NDArray[np.int64]) -> None:
        """The validation images of an epoch have been counted."""
        self._confusion = counts

    def drawn(self, network: Any) -> dict[str, bytes]:
        """PNGs by name: `confusion`, and `pictures` with what they are taken for; none if the last are new still.

        Args:
            network: After an epoch, over raw pixels; of a head alone, over features, only the confusion is drawn.
        """
        started = self._clock()
        if started < self._not_before and not self._is_last:
            return {}
        is_whole = tuple(network.input_shape[1:]) == self._pixels.shape[1:]
        found = {_PICTURES: self._answers(network)} if is_whole else {}
        if self._confusion is not None:
            evaluation = evaluate(self._confusion, self._classes)
            found["confusion"] = plots.confusion_matrix(evaluation)
        ended = self._clock()
        self._not_before = ended + _RESTS * (ended - started)
        return found

    def _answers(self, network: Any) -> bytes:
        outputs = np.asarray(network(self._pixels.astype(np.float32), training=False), np.float64)
        if outputs.min() < 0 or outputs.max() > 1:  # logits
            outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs /= outputs.sum(axis=1, keepdims=True)
        best = [self._classes[each] for each in outputs.argmax(axis=1)]
        return plots.answers(self._pixels, self._species, best, outputs.max(axis=1).tolist())


class EpochEnds(keras.callbacks.Callback):  # type: ignore[misc]
    """Asks after each epoch whether training shall stop.

    Args:
        asked: Called with the epoch, from 0, and its metrics; whether it was the last one.
    """

    checkpointed = ()  # a run that is taken up again is asked of its further epochs only

    def __init__(self, asked: Callable[[int, Mapping[str, float]], bool]) -> None:
        super().__init__()
        self._asked = asked

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """An epoch has ended."""
        if self._asked(epoch, logs or {}):
            self.model.stop_training = True


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
    corpus: Corpus,
    *,
    keep: str,
    patience: int,
    epochs: int,
    schedule: str = "",
    plateau_epochs: int = PLATEAU_EPOCHS,
) -> list[Any]:
    """The callbacks that decide which epoch is kept and which is the last, and the learning rate.

    Args:
        corpus: Without validation images no epoch is known to be the best, and nothing stops early.
        keep: Whose weights the network has in the end: those of the "best" epoch, or of the "last".
        patience: Epochs without progress before it is stopped early; 0 for never.
        epochs: Epochs of the whole run.
        schedule: One of `choices.SCHEDULES`, of which "plateau" is a callback.
        plateau_epochs: As for `plateau`.
    """
    made: list[Any] = []
    if not corpus.num_images(schema.VALIDATION):
        if patience or keep == "best":
            _log.warning("there are no validation images: training goes on to the last epoch, which is kept")
    elif patience or keep == "best":
        restored = keep == "best"
        made.append(KeptWeights("val_loss", patience=patience or epochs, restore_best_weights=restored))
    return made + plateau(schedule, plateau_epochs)


def plateau(schedule: str, epochs: int = PLATEAU_EPOCHS) -> list[Any]:
    """The callback that is the schedule "plateau"; none of any other.

    Args:
        schedule: One of `choices.SCHEDULES`.
        epochs: Without a lower validation loss, after which the rate falls.
    """
    if schedule != "plateau":
        return []
    return [keras.callbacks.ReduceLROnPlateau("val_loss", factor=_PLATEAU_FACTOR, patience=epochs)]


def metrics(corpus: Corpus) -> list[str]:
    """The metrics that a run measures beside its loss."""
    return list(_METRICS[corpus.kind])


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


def load_network(file: str) -> tuple[Any, Any]:
    """A network file from any file system, and the configuration of the loss that it was saved with, if any.

    One of the working directory comes first, where --files puts it in a container.
    """

    def read(path: Path) -> tuple[Any, Any]:
        return networks.load(path, file), networks.saved_loss(path) if path.suffix == ".keras" else None

    with local_file(file) as local:
        return read(Path(local))


@contextlib.contextmanager
def local_file(file: str) -> Iterator[str]:
    """A file of any file system on this machine; what is no path stays as it is, and so does one that is not there."""
    if file in (NO_WEIGHTS, IMAGENET) or Path(file).is_file():
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / files.name(file)
        with contextlib.suppress(FileNotFoundError):  # who reads it says so
            files.get(file, local)
        yield str(local)


def finite(value: Any) -> Any:
    """The same mappings, lists and values with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
