"""How fast training is, beside plain Keras and stock Elephas.

All contestants get the same drawn images, network, loss and optimizer. Every fit of ours and of stock Elephas starts
in fresh Python processes, as it would in a job of its own; plain Keras runs in a process of its own on the driver's
machine, where TensorFlow takes all cores.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it

from seedlings_spark import benchmark, display, files, schema
from seedlings_spark.benchmark import MEAN, NUM_CLASSES, STD, speeds, spread
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import ClusterError, OptionError, TrainingError
from seedlings_spark.estimator import features
from seedlings_spark.training.epochs import steps_of_epoch
from seedlings_spark.training.progress import Silent

_log = logging.getLogger(__name__)

_LEARNING_RATE = 0.001
# Of the vectors, that the JVM holds at once for stock Elephas on one machine.
_STOCK_COPIES = 12
STEADY, WHOLE = "images_per_second_steady", "images_per_second_fit"


@dataclass(frozen=True)
class Training:
    """What all contestants train.

    Args:
        num_images: Drawn, of `NUM_CLASSES` classes.
        image_size: Height and width in pixels.
        epochs: At least 2: the first one holds the tracing of the network.
        num_workers: Number of workers of ours and of stock Elephas.
        batch_size: Batch size of one worker; plain Keras takes `num_workers` times as many.
        network: One of `networks.BY_NAME`.
        precision: Precision of the contestants that do not have one of their own.
    """

    num_images: int
    image_size: int
    epochs: int
    num_workers: int
    batch_size: int
    network: str
    precision: str


@dataclass(frozen=True)
class Contestant:
    """Who trains.

    Args:
        engine: "ours", "plain" (Keras) or "stock" (Elephas).
        text: What it is, for a person to read.
        frequency: Frequency of ours.
        precision: Its own, or "" for that of the benchmark.
        exchange: Exchange of ours.
    """

    engine: str
    text: str
    frequency: str = "batch"
    precision: str = ""
    exchange: str = "driver"


CONTESTANTS: Mapping[str, Contestant] = {
    "ours": Contestant("ours", "ours, synchronous, every batch"),
    "plain": Contestant("plain", "one Keras process, all cores of the driver's machine"),
    "stock": Contestant("stock", "stock Elephas, synchronous", "epoch", "float32"),
    "epoch": Contestant("ours", "ours, synchronous, every epoch", "epoch"),
    "workers": Contestant("ours", "as ours, means among the workers", exchange="workers"),
    "auto": Contestant("ours", "as ours, precision auto", precision="auto"),
    "plain-bfloat16": Contestant("plain", "as plain, mixed_bfloat16", precision="mixed_bfloat16"),
}
# Whose speed is divided by whose, and which speed; steady states only where both have the same precision.
_RATIOS = (
    ("ours", "plain", STEADY),
    ("auto", "plain-bfloat16", STEADY),
    ("ours", "stock", WHOLE),
    ("auto", "stock", WHOLE),
)
_NAMES = {STEADY: "steady", WHOLE: "whole fit"}
_SHARES = {
    "share_compute": "compute",
    "share_exchange": "exchange, waiting",
    "share_input": "input",
    "share_outside_compute": "all but compute",
    "share_exchange_of_step": "exchange, waiting of a step",
}
_NUMBERS = (STEADY, WHOLE, "seconds_fit", *_SHARES, "loss")


@dataclass(frozen=True)
class Fit:
    """What was seen of one fit.

    Args:
        precision: That was computed in.
        seconds: From call to return.
        ends: Seconds from the call to the end of each epoch; empty where nobody tells.
        loss: Loss of the training images in the last epoch.
        seconds_of_workers: Sum over the workers of what they spent on "compute", on "exchange" (with the master, and
            waiting for it and for each other), both without the first epoch, and on "input" (reading their rows, once
            for all epochs); empty where nobody tells.
    """

    precision: str
    seconds: float
    ends: tuple[float, ...]
    loss: float
    seconds_of_workers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True)
class Measurement:
    """The numbers of one fit.

    Args:
        round: From 1.
        contestant: One of `CONTESTANTS`.
        precision: That was computed in.
        seconds_fit: From call to return.
        images_per_second_fit: Images per second of the whole fit.
        images_per_second_steady: From the end of the first epoch to that of the last, or None.
        share_compute: Share of the workers' time, or None; the three shares add up to 1.
        share_exchange: Exchange with the master, and waiting for it and for each other.
        share_input: Reading the rows, which happens once, before the first epoch.
        share_outside_compute: Exchange, waiting and input together.
        share_exchange_of_step: Exchange and waiting in the time without input, or None.
        loss: Loss of the training images in the last epoch; None if it was not finite.
        ends: As in `Fit`.
        seconds_of_workers: As in `Fit`.
    """

    round: int
    contestant: str
    precision: str
    seconds_fit: float
    images_per_second_fit: float
    images_per_second_steady: float | None
    share_compute: float | None
    share_exchange: float | None
    share_input: float | None
    share_outside_compute: float | None
    share_exchange_of_step: float | None
    loss: float | None
    ends: tuple[float, ...]
    seconds_of_workers: Mapping[str, float]


def measure_training(
    spark: SparkSession,
    training: Training,
    contestants: Sequence[str],
    *,
    rounds: int,
    folder: str,
    json_file: str = "",
) -> dict[str, Any]:
    """Let contestants train in turns.

    Args:
        spark: The session.
        training: What they train.
        contestants: Some of `CONTESTANTS`; "plain-bfloat16" is left out where the driver's CPU has no bfloat16.
        rounds: How often each trains.
        folder: Where the drawn images are kept meanwhile, on a file system that the executors read too.
        json_file: Written after each round with what there is by then; "" for none.

    Returns:
        What `summary` makes of all measurements, and the setting.

    Raises:
        OptionError: The images are too few.
        ClusterError: Spark cannot run the workers at once, or not as stock Elephas needs it.
        TrainingError: A contestant failed.
    """
    names = [name for name in CONTESTANTS if name in contestants and _can_run(name)]
    _check(spark, training, names)
    setting = _setting(spark, training)
    measurements: list[Measurement] = []
    found = summary(setting, measurements)
    with tables(spark, training, folder, vectors="stock" in names) as (images, vectors):
        for number in range(1, rounds + 1):
            for name in names:
                one = fit(spark, training, CONTESTANTS[name], images, vectors)
                measured = measurement(number, name, one, training.num_images, training.epochs)
                measurements.append(measured)
                _log.info("round %d of %d, %s: %s", number, rounds, name, _in_brief(measured))
            found = summary(setting, measurements)
            benchmark.write_json(json_file, found)
    return found


# Pure: from what was seen to what is said.


def measurement(number: int, contestant: str, fit: Fit, num_images: int, epochs: int) -> Measurement:
    """The numbers of a fit.

    Args:
        number: Number of the round, from 1.
        contestant: Who it was.
        fit: What was seen.
        num_images: Number of images of one epoch.
        epochs: Epochs of the fit.
    """
    work = fit.seconds_of_workers
    total = sum(work.values())
    return Measurement(
        round=number,
        contestant=contestant,
        precision=fit.precision,
        seconds_fit=fit.seconds,
        images_per_second_fit=num_images * epochs / fit.seconds,
        images_per_second_steady=(
            num_images * (epochs - 1) / (fit.ends[-1] - fit.ends[0]) if len(fit.ends) > 1 else None
        ),
        share_compute=work["compute"] / total if work else None,
        share_exchange=work["exchange"] / total if work else None,
        share_input=work["input"] / total if work else None,
        share_outside_compute=1 - work["compute"] / total if work else None,
        share_exchange_of_step=work["exchange"] / (total - work["input"]) if work else None,
        loss=fit.loss if math.isfinite(fit.loss) else None,
        ends=fit.ends,
        seconds_of_workers=work,
    )


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Whose speed is how many times whose, in each round in which both have been measured.

    Returns:
        For each of `_RATIOS` that there is: `of`, `to`, `speed`, `precisions`, `rounds` (one value each), and what
        `spread` makes of them.
    """
    by_round: dict[int, dict[str, Measurement]] = {}
    for one in measurements:
        by_round.setdefault(one.round, {})[one.contestant] = one
    found = []
    for of, to, speed in _RATIOS:
        pairs = [(fits[of], fits[to]) for fits in by_round.values() if of in fits and to in fits]
        if speed == STEADY:
            pairs = [(ours, theirs) for ours, theirs in pairs if ours.precision == theirs.precision]
        if pairs:
            values = [getattr(ours, speed) / getattr(theirs, speed) for ours, theirs in pairs]
            precisions = list(dict.fromkeys(one.precision for pair in pairs for one in pair))
            about = {"of": of, "to": to, "speed": speed, "precisions": precisions}
            found.append({**about, "rounds": values, **spread(values)})
    return found


def summary(setting: Mapping[str, Any], measurements: Sequence[Measurement]) -> dict[str, Any]:
    """All numbers, ready for JSON: the setting, each contestant's over the rounds, the ratios, and each fit's.

    Args:
        setting: What was measured where.
        measurements: In the order in which they were taken.
    """
    contestants: dict[str, Any] = {}
    for name in dict.fromkeys(one.contestant for one in measurements):
        own = [one for one in measurements if one.contestant == name]
        numbers = {
            field: spread(values)
            for field in _NUMBERS
            if (values := [value for one in own if (value := getattr(one, field)) is not None])
        }
        precisions = list(dict.fromkeys(one.precision for one in own))
        contestants[name] = {"text": CONTESTANTS[name].text, "precisions": precisions, **numbers}
    return {
        "setting": dict(setting),
        "contestants": contestants,
        "ratios": ratios(measurements),
        "measurements": [dataclasses.asdict(one) for one in measurements],
    }


def report(found: Mapping[str, Any]) -> str:
    """What `summary` returned, as tables for a person to read."""
    setting, contestants = found["setting"], found["contestants"]
    size = setting["image_size"]
    rounds = max((one["round"] for one in found["measurements"]), default=0)
    opening = (
        f"{setting['network']} network, {setting['num_images']:,} images of {size}x{size},"
        f" {setting['epochs']} epochs, {setting['num_workers']} workers x {setting['batch_size']} images,"
        f" {rounds} round{'s' * (rounds != 1)}\n"
        f"{setting['master']}; the driver's machine: {setting['driver_cores']} cores, {setting['driver']['cpu']}"
    )
    names = display.aligned([[name, numbers["text"]] for name, numbers in contestants.items()], "<<")
    closing = (
        "steady: from the end of the first epoch to that of the last.\n"
        "whole fit: from call to return; ours and stock start Python and TensorFlow in it and read the images,"
        " plain has done both before."
    )
    tables = (speeds(contestants, _NAMES), _shares(contestants), _ratios(found["ratios"]))
    shown = [display.aligned(rows, "<<" + ">" * 6) for rows in tables if len(rows) > 1]
    return "\n\n".join([benchmark.prose(opening), names, *shown, benchmark.prose(closing)])


def _shares(contestants: Mapping[str, Any]) -> list[list[str]]:
    rows = [["of the workers' time after the first epoch (median)", "", *_SHARES.values()]]
    for name, numbers in contestants.items():
        if "share_compute" in numbers:
            rows.append([name, "", *(f"{numbers[share]['median']:.1%}" for share in _SHARES)])
    return rows


def _ratios(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["ratio, taken in each round", "precision", "median", "min", "max"]]
    for one in found:
        name = f"{one['of']} / {one['to']}, {_NAMES[one['speed']]}"
        values = [f"{one[number]:.2f}" for number in ("median", "min", "max")]
        rows.append([name, ", ".join(one["precisions"]), *values])
    return rows


def _in_brief(one: Measurement) -> str:
    steady = one.images_per_second_steady
    return (
        f"{steady:,.0f} images/s after the first epoch, " if steady else ""
    ) + f"{one.images_per_second_fit:,.0f} images/s in the whole fit, {one.seconds_fit:.1f} s"


# What can run, and where it runs.


def _can_run(name: str) -> bool:
    if name != "plain-bfloat16" or runtime.resolve_precision("auto") == "mixed_bfloat16":
        return True
    _log.info("no bfloat16 in this processor: %s is left out", name)
    return False


def _check(spark: SparkSession, training: Training, names: Sequence[str]) -> None:
    engines = {CONTESTANTS[name].engine for name in names}
    least = 2 * training.num_workers * training.batch_size
    if training.num_images < least:
        raise OptionError(
            f"--num-images {training.num_images} for {training.num_workers} workers and a batch of"
            f" {training.batch_size}",
            f"at least {least}: stock Elephas trains nothing where a worker has no more than one batch",
            "Use more images, or a smaller --batch-size",
        )
    if "stock" in engines:
        check_heap_for_stock(spark, training.num_images, training.image_size, "train")
    if engines != {"plain"}:
        session.require_slots(spark, training.num_workers)
    cpus = session.task_cpus(spark)
    if "stock" in engines and cpus != 1:
        raise ClusterError(
            f"spark.task.cpus={cpus} with stock Elephas among the contestants",
            "1: its workers do not heed it",
            "Leave the setting out, or name other --contestants",
        )
    busy = training.num_workers * cpus
    if "plain" in engines and session.is_local(spark) and busy != benchmark.cores():
        _log.warning(
            "%d workers of %d thread%s, and %d cores for plain Keras: the two are not comparable",
            training.num_workers,
            cpus,
            "s" * (cpus != 1),
            benchmark.cores(),
        )


def check_heap_for_stock(spark: SparkSession, num_images: int, image_size: int, action: str) -> None:
    """Refuse images for stock Elephas that would not fit into the JVM of one machine.

    Raises:
        ClusterError: The JVM has too little memory: stock Elephas holds them several times over, as pickled doubles.
    """
    if not session.is_local(spark):
        return
    needed = _STOCK_COPIES * num_images * image_size**2 * 3 * 8 / 2**30
    heap = int(spark._jvm.Runtime.getRuntime().maxMemory()) / 2**30  # type: ignore[union-attr]
    if heap < needed:
        raise ClusterError(
            f"{heap:.1f} GiB of memory for the JVM, with stock Elephas among the contestants",
            f"{needed:.1f} GiB, since it holds {num_images:,} images several times as vectors of doubles",
            f"Call {display.command()} --driver-memory {math.ceil(needed) + 1}g benchmark {action} ...,"
            " use fewer images, or name other contestants",
        )


def _setting(spark: SparkSession, training: Training) -> dict[str, Any]:
    return {
        **dataclasses.asdict(training),
        **benchmark.where(spark),
    }


# The images.


def _draw_rows(image_size: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        drawn = [benchmark.draw(index, image_size) for index in batch.column(0).to_pylist()]
        contents = [image.tobytes() for image, _ in drawn]
        yield pa.RecordBatch.from_pydict(
            {
                schema.CONTENT_HASH: [hashlib.sha256(content).hexdigest() for content in contents],
                schema.LABEL: [float(label) for _, label in drawn],
                schema.IMAGE: contents,
            }
        )


def _vector_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Labels, and pixels as doubles."""
    for batch in batches:
        pixels = [
            np.frombuffer(content, np.uint8).astype(np.float64) for content in batch.column(1).to_pylist()
        ]
        yield pa.RecordBatch.from_arrays(
            [batch.column(0), pa.array(pixels, pa.list_(pa.float64()))], [schema.LABEL, "pixels"]
        )


@contextlib.contextmanager
def tables(
    spark: SparkSession, training: Training, folder: str, *, vectors: bool
) -> Iterator[tuple[DataFrame, DataFrame | None]]:
    """The images as a table of ours, and if asked for as vectors; both are written once, and removed afterwards."""
    num_values = training.image_size**2 * 3
    with benchmark.scratch(folder) as path:
        with session.arrow_batches(spark, num_values):
            drawn = spark.range(training.num_images).mapInArrow(
                partial(_draw_rows, training.image_size),
                f"{schema.CONTENT_HASH} string, {schema.LABEL} double, {schema.IMAGE} binary",
            )
            drawn.write.parquet(files.join(path, "images"))
        images = schema.with_content_hash(spark.read.parquet(files.join(path, "images")))
        table = None
        if vectors:
            with session.arrow_batches(spark, 8 * num_values):
                as_vectors(images, schema.LABEL).write.parquet(files.join(path, "vectors"))
            table = spark.read.parquet(files.join(path, "vectors"))
        yield images, table


def as_vectors(images: DataFrame, label: str) -> DataFrame:
    """Images as stock Elephas takes them: `features`, a vector of doubles, and the label."""
    kind = f"{schema.LABEL} double, pixels array<double>"
    rows = images.select(label, schema.IMAGE).mapInArrow(_vector_rows, kind)  # type: ignore[arg-type]
    return rows.select(array_to_vector(F.col("pixels")).alias("features"), schema.LABEL)


# The contestants.


def fit(
    spark: SparkSession,
    training: Training,
    contestant: Contestant,
    images: DataFrame,
    vectors: DataFrame | None,
) -> Fit:
    """One fit of a contestant, in fresh processes; `vectors` are stock Elephas' images."""
    precision = contestant.precision or training.precision
    if contestant.engine == "plain":
        return _fit_plain_beside(spark, training, runtime.resolve_precision(precision))
    environment = benchmark.fresh()
    if contestant.engine == "ours":
        with session.python_environment(spark, environment, across_threads=True):
            return _fit_ours(training, contestant, precision, images)
    assert vectors is not None
    with session.python_environment(spark, {**environment, **benchmark.hidden_gpus(spark)}):
        return _fit_stock(training, vectors)


class _Stopwatch(Silent):
    """Notes when each epoch ends."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.ends: list[float] = []
        self.loss = float("nan")

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        """An epoch has ended."""
        self.ends.append(time.perf_counter() - self.started)
        self.loss = float(logs["loss"])


def _fit_ours(training: Training, contestant: Contestant, precision: str, images: DataFrame) -> Fit:
    from seedlings_spark.estimator import SeedlingsEstimator
    from seedlings_spark.models import networks

    size = training.image_size
    standardizer = features.ImageStandardizerModel(
        inputCol=schema.IMAGE, outputCol="pixels", imageSize=[size, size], mean=[MEAN] * 3, std=[STD] * 3
    )
    estimator = SeedlingsEstimator(
        keras_model_config=networks.build(training.network, (size, size), NUM_CLASSES).to_json(),
        loss="sparse_categorical_crossentropy",
        optimizer_config=_optimizer(),
        mode="synchronous",
        frequency=contestant.frequency,
        exchange=contestant.exchange,
        num_workers=training.num_workers,
        epochs=training.epochs,
        batch_size=training.batch_size,
        precision=precision,
        featuresCol="pixels",
        labelCol=schema.LABEL,
        verbose=0,
    )
    table = standardizer.transform(images)
    stopwatch = _Stopwatch()
    estimator.set_progress(stopwatch)
    record = estimator.fit(table).record
    seconds = time.perf_counter() - stopwatch.started
    if record["stage_failures"]:
        _log.warning("a stage of workers failed in this fit: its numbers are not worth much")
    workers = record["workers"]
    of_workers = {
        name: sum(
            float(worker[f"seconds_{column}"]) - float(worker.get(f"seconds_{column}_first", 0.0))
            for worker in workers
        )
        for name, column in (("compute", "compute"), ("exchange", "outside"), ("input", "input"))
    }
    precision = record["precision"]
    steps = steps_of_epoch(record["rows"], training.batch_size)
    return Fit(
        precision, seconds, tuple(stopwatch.ends), stopwatch.loss, of_workers if workers else {}, steps
    )


def _fit_stock(training: Training, vectors: DataFrame) -> Fit:
    with runtime.quiet_import():
        import keras

        from seedlings_spark.estimator.stock import ElephasEstimator

    size = training.image_size
    network = keras.Sequential(
        [
            keras.Input((size * size * 3,)),
            keras.layers.Reshape((size, size, 3)),
            benchmark.network(training.network, training.image_size),
        ]
    )
    estimator = ElephasEstimator(
        keras_model_config=network.to_json(),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        optimizer_config=_optimizer(),
        mode="synchronous",
        frequency="epoch",
        categorical=True,
        nb_classes=NUM_CLASSES,
        num_workers=training.num_workers,
        epochs=training.epochs,
        batch_size=training.batch_size,
        validation_split=0.0,  # by default it trains on nine tenths of the images only
        featuresCol="features",
        labelCol=schema.LABEL,
        verbose=0,
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        model = estimator.fit(vectors)
    seconds = time.perf_counter() - started
    if None in model.history:
        raise TrainingError(
            "a worker of stock Elephas that trained nothing",
            "more than one batch of images on each worker",
            "Use more images, or a smaller --batch-size",
        )
    losses = [float(history["loss"][-1]) for history in model.history[-training.num_workers :]]
    return Fit("float32", seconds, (), statistics.fmean(losses))


def _optimizer() -> dict[str, Any]:
    import keras

    config: dict[str, Any] = keras.optimizers.serialize(keras.optimizers.Adam(_LEARNING_RATE))
    return config


def _fit_plain_beside(spark: SparkSession, training: Training, precision: str) -> Fit:
    """`_fit_plain` in a fresh process: TensorFlow's threads cannot change once it has started in this one."""
    request = {"training": dataclasses.asdict(training), "precision": precision}
    with benchmark.Beside(spark, __name__, request, "plain Keras") as process:
        fit = process.hear()
    return Fit(**{**fit, "ends": tuple(fit["ends"])})


def _fit_plain(training: Training, precision: str) -> Fit:
    with runtime.quiet_import():
        import keras
        import tensorflow as tf

    network = benchmark.network(training.network, training.image_size)
    runtime.set_precision(network, precision)
    network.compile(
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        optimizer=keras.optimizers.deserialize(_optimizer()),
    )
    drawn = [benchmark.draw(index, training.image_size) for index in range(training.num_images)]
    images = np.stack([image for image, _ in drawn])
    labels = np.array([label for _, label in drawn])
    data = tf.data.Dataset.from_tensor_slices((images, labels)).cache().shuffle(training.num_images)
    data = data.batch(training.num_workers * training.batch_size).prefetch(tf.data.AUTOTUNE)
    ends: list[float] = []
    started = time.perf_counter()
    stopwatch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter() - started)
    )
    started = time.perf_counter()
    history = network.fit(data, epochs=training.epochs, verbose=0, callbacks=[stopwatch]).history
    seconds = time.perf_counter() - started
    return Fit(precision, seconds, tuple(ends), float(history["loss"][-1]))


def _main() -> None:
    """The process of `_fit_plain_beside`."""
    request = json.loads(benchmark.heard())
    benchmark.said(dataclasses.asdict(_fit_plain(Training(**request["training"]), request["precision"])))


if __name__ == "__main__":
    _main()
