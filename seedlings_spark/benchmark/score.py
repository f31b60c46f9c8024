"""How fast scoring is, beside what decoding and the forward pass alone allow, and beside other ways to do it.

All contestants score the same pictures with the same network. *From PNG files* is the whole of `score`: listing,
reading, hashing, decoding, forward pass, predictions, rejects and manifest on disk. *From the prepared table* the
pixels are decoded already, and what comes out is thrown away, for all contestants alike.

Two speeds are taken. *Whole call*: a call whose Python processes start for it, as in a job of its own; all of its
images by all of its seconds. *Steady*: what one more image costs once everything runs. The call is made again in the
same processes, with a quarter of the images (twice; the second counts) and with all of them; the difference in images
by the difference in seconds has neither the start of Python and TensorFlow in it nor what Spark and the manifests cost
once a call, but everything that grows with the number of images. Caches are warm by then for everybody.

In float32 ours compute by ONNX Runtime, as `score` does unless it is told otherwise, and so does the limit; in bfloat16
by OpenVINO where it is installed, else by TensorFlow. *Auto* is what `score` chooses for a version that has been
quantised: int8, by ONNX Runtime.

The *limit* is the number of cores by the seconds of one decoding and one forward pass, each measured alone, in one
thread of a warm process, on bytes that are in memory. A machine whose cores share caches, memory and clock cannot
reach it: *busy* is the same measured on all cores at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import resource
import statistics
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as all of Spark's users write it
from pyspark.sql.types import ArrayType, FloatType

from seedlings_spark import benchmark, choices, display, files, images, schema, scoring
from seedlings_spark.benchmark import NUM_CLASSES, speeds, spread, train
from seedlings_spark.choices import ONNXRUNTIME, OPENVINO, TENSORFLOW
from seedlings_spark.cluster import runtime, session
from seedlings_spark.config import ScoringOptions
from seedlings_spark.corpus import listings, tables
from seedlings_spark.errors import ImageError, InputError, OptionError
from seedlings_spark.models import prediction
from seedlings_spark.models.store import INT8, NETWORK, ONNX, ModelStore, ModelVersion
from seedlings_spark.scoring import tasks

_log = logging.getLogger(__name__)

# Of the pictures, height and width; different ones at most, the others are the same files by other names.
PICTURE_SIZE, _MOST_DIFFERENT = 224, 1000
# Images of one forward pass, as `score` has it, and pictures that the limit is measured on.
_BATCH_SIZE, _LIMIT_PICTURES = 64, 512
# Share of the images in the smaller of the two calls of a steady state.
_SMALLER = 4
# Images in one partition, between which a worker's memory must not grow.
MEMORY_IMAGES = (2_000, 20_000)
_SIZES = SMALL, LARGE = "small", "large"
STEADY, WHOLE = "images_per_second_steady", "images_per_second_whole"
_PNG = b"\x89PNG\r\n\x1a\n"

SCORERS: Mapping[str, str] = {
    "limit": "cores by the seconds of decoding and forward pass, each alone in one thread",
    "busy": "the same measured on all cores at once",
    "png": "ours: score, from PNG files",
    "png-tensorflow": "as png, by TensorFlow",
    "png-auto": "as png, of a quantised version in precision auto",
    "png-store": "as png, from copies beside --images, where that is in an object store",
    "table": "ours: score's forward pass over the prepared table",
    "table-auto": "as table, of a quantised version in precision auto",
    "transform": "ours: SeedlingsModel.transform over the prepared table",
    "udf": "Spark's predict_batch_udf with model.predict, as documented, over the prepared table",
    "udf-tuned": "the same with one thread a process and one traced function",
    "stock": "stock Elephas' ElephasTransformer over prepared vectors",
    "tf.data": "one process, tf.data (decode_png, resize) and Keras' predict, all cores, from PNG files",
}
# Ours of a quantised version.
_AUTO = ("png-auto", "table-auto")
# What one measurement of the limit says of the forward pass without decoding.
_ALONE = {"limit": "limit-forward", "busy": "busy-forward"}
_TEXTS = {
    **SCORERS,
    **{alone: f"{name} of the forward pass without decoding" for name, alone in _ALONE.items()},
}


@dataclass(frozen=True)
class Scoring:
    """What all contestants score.

    Args:
        num_images: PNG files, and rows of the prepared table.
        image_size: Height and width in pixels that the network takes.
        network: One of `networks.BY_NAME`.
        precision: "float32" (ours by ONNX Runtime) or "auto", of all but those that have one of their own.
        images: Folder of pictures, or "" to draw some.
        stock_images: That stock Elephas scores, since it is slow; at most `num_images`.
        memory_images: In one partition: few, many; empty for no measurement of a worker's memory.
    """

    num_images: int
    image_size: int
    network: str
    precision: str
    images: str = ""
    stock_images: int = 1000
    memory_images: tuple[int, ...] = MEMORY_IMAGES


@dataclass(frozen=True)
class Measurement:
    """What was measured of one contestant in one round.

    Args:
        round: From 1.
        contestant: One of `SCORERS`, or what it says of the forward pass alone.
        precision: That was computed in.
        images_per_second_steady: See the module; None where there were too few images to tell.
        images_per_second_whole: See the module; None where nothing is started. Stock Elephas' is scaled to as many
            images as the others': what it took to start once, the rest in proportion.
        seconds: What was measured, by name.
    """

    round: int
    contestant: str
    precision: str
    images_per_second_steady: float | None
    images_per_second_whole: float | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Ratio:
    """Whose speed is to be how many times whose.

    Args:
        of: Some of `SCORERS`.
        to: To whose speed.
        speed: Which speed.
        target: What the ratio is meant to be at least, or None where it only explains others.
        same_precision: Whether it is taken only where both have the same.
    """

    of: str
    to: str
    speed: str
    target: float | None = None
    same_precision: bool = True


RATIOS = (
    Ratio("png", "limit", STEADY, 0.88),
    Ratio("table", "limit-forward", STEADY, 0.92),
    Ratio("table", "udf-tuned", STEADY, 1.3),
    Ratio("table-auto", "stock", WHOLE, 15, same_precision=False),
    Ratio("png", "tf.data", STEADY, 1.4),
    Ratio("png-auto", "tf.data", STEADY, 2.2, same_precision=False),
    Ratio("busy", "limit", STEADY),
    Ratio("png", "busy", STEADY),
    Ratio("table", "busy-forward", STEADY),
    Ratio("transform", "limit-forward", STEADY),
    Ratio("table", "udf", STEADY),
    Ratio("table", "stock", WHOLE, same_precision=False),
)
MOST_MEMORY_GROWTH = 0.10


def measure_scoring(
    spark: SparkSession,
    task: Scoring,
    scorers: Sequence[str],
    *,
    rounds: int,
    folder: str,
    json_file: str = "",
) -> dict[str, Any]:
    """Let contestants score in turns.

    Args:
        spark: The session.
        task: What they score.
        scorers: Some of `SCORERS`.
        rounds: How often each scores.
        folder: Where pictures and tables are kept meanwhile: local, and shared with the executors if there are others.
        json_file: Written after each round with what there is by then; "" for none.

    Returns:
        What `summary` makes of all measurements, and the setting.

    Raises:
        OptionError: The folder is not local.
        InputError: There are no pictures in the given folder.
        ClusterError: The JVM has too little memory for stock Elephas, or a process beside the driver failed.
    """
    if not files.is_local(files.qualify(folder)):
        raise OptionError(
            f"--output {folder}",
            "a folder on this machine, or mounted alike on all: tf.data and Python processes read from it",
            "Give another --output",
        )
    if "stock" in scorers:
        train.check_heap_for_stock(spark, min(task.stock_images, task.num_images), task.image_size, "score")
    names = _can_run(task, scorers)
    measurements: list[Measurement] = []
    with contextlib.ExitStack() as held:
        path = held.enter_context(benchmark.scratch(files.qualify(folder)))
        held.enter_context(_quiet_scoring())
        stored = ""
        if "png-store" in names:
            stored = files.join(files.parent(files.qualify(task.images)), f".benchmark-{uuid.uuid4().hex}")
            held.callback(files.delete, stored)
        stand = _Stand(spark, task, path, names, stored=stored)
        memory = _memory(stand) if task.memory_images else {}
        setting = {**_setting(spark, task), **stand.about()}
        found = summary(setting, measurements, memory)
        for number in range(1, rounds + 1):
            for name in names:
                for one in _measure(stand, name, number):
                    measurements.append(one)
                    _log.info("round %d of %d, %s: %s", number, rounds, one.contestant, _in_brief(one))
            found = summary(setting, measurements, memory)
            benchmark.write_json(json_file, found)
    return found


# Pure: from what was seen to what is said.


def steady(num_small: int, small: float, num_large: int, large: float) -> float | None:
    """Images a second between two calls; None where the larger one took no longer.

    Args:
        num_small: Images of the smaller call.
        small: Its seconds.
        num_large: Images of the larger call.
        large: Its seconds.
    """
    return (num_large - num_small) / (large - small) if large > small else None


def scaled_whole(first: float, second: float, num_measured: int, num_images: int) -> float:
    """Images a second of a whole call with another number of images.

    Args:
        first: Seconds of a call that starts its processes.
        second: Seconds of the same call in processes that are there.
        num_measured: Images of both.
        num_images: Number of images of the call that is asked about.
    """
    return num_images / (max(0.0, first - second) + second * num_images / num_measured)


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Whose speed is how many times whose, in each round in which both have been measured.

    Args:
        measurements: Measurements of all rounds.

    Returns:
        For each of `RATIOS` that there is: `of`, `to`, `speed`, `target`, `is_met`, `precisions`, `rounds` (one value
        each), and what `spread` makes of them.
    """
    by_round: dict[int, dict[str, Measurement]] = {}
    for one in measurements:
        by_round.setdefault(one.round, {})[one.contestant] = one
    found = []
    for ratio in RATIOS:
        values, precisions = [], dict[str, None]()
        for fits in by_round.values():
            ours, theirs = fits.get(ratio.of), fits.get(ratio.to)
            if ours is None or theirs is None:
                continue
            of, to = getattr(ours, ratio.speed), getattr(theirs, ratio.speed)
            if of and to and not (ratio.same_precision and ours.precision != theirs.precision):
                values.append(of / to)
                precisions |= dict.fromkeys((ours.precision, theirs.precision))
        if values:
            is_met = None if ratio.target is None else statistics.median(values) >= ratio.target
            about = {name: getattr(ratio, name) for name in ("of", "to", "speed", "target")}
            found.append(
                {
                    **about,
                    "is_met": is_met,
                    "precisions": list(precisions),
                    "rounds": values,
                    **spread(values),
                }
            )
    return found


def memory_growth(peaks: Mapping[str, int]) -> dict[str, Any]:
    """Peaks of a worker's memory by number of images (as text), with their growth and whether it is little enough."""
    if not peaks:
        return {}
    few, many = (peaks[number] for number in sorted(peaks, key=int))
    growth = many / few - 1
    return {
        "peak_bytes": dict(peaks),
        "growth": growth,
        "target": MOST_MEMORY_GROWTH,
        "is_met": growth <= MOST_MEMORY_GROWTH + 1e-9,  # rounding
    }


def summary(
    setting: Mapping[str, Any], measurements: Sequence[Measurement], memory: Mapping[str, int]
) -> dict[str, Any]:
    """All numbers, ready for JSON: the setting, each contestant's over the rounds, ratios, memory, measurements.

    Args:
        setting: What was measured where.
        measurements: In the order in which they were taken.
        memory: Peak bytes of a worker by number of images; empty where it was not measured.
    """
    contestants: dict[str, Any] = {}
    for name in dict.fromkeys(one.contestant for one in measurements):
        own = [one for one in measurements if one.contestant == name]
        numbers: dict[str, Any] = {
            speed: spread(values)
            for speed in (STEADY, WHOLE)
            if (values := [value for one in own if (value := getattr(one, speed)) is not None])
        }
        seconds = {part: statistics.median(one.seconds[part] for one in own) for part in own[0].seconds}
        precisions = list(dict.fromkeys(one.precision for one in own))
        contestants[name] = {"text": _TEXTS[name], "precisions": precisions, **numbers, "seconds": seconds}
    return {
        "setting": dict(setting),
        "contestants": contestants,
        "ratios": ratios(measurements),
        "memory": memory_growth(memory),
        "measurements": [dataclasses.asdict(one) for one in measurements],
    }


def report(found: Mapping[str, Any]) -> str:
    """What `summary` returned, as tables for a person to read."""
    setting, contestants = found["setting"], found["contestants"]
    size = setting["image_size"]
    rounds = max((one["round"] for one in found["measurements"]), default=0)
    opening = (
        f"{setting['network']} network, {setting['num_images']:,} PNG files of {PICTURE_SIZE}x{PICTURE_SIZE}"
        f" ({setting['picture_bytes'] / 1e3:,.0f} kB each; {setting['pictures']}), scored at {size}x{size},"
        f" {rounds} round{'s' * (rounds != 1)}\n"
        f"{setting['master']}: {setting['cores']} cores; the driver's machine: {setting['driver_cores']} cores,"
        f" {setting['driver']['cpu']}"
    )
    names = display.aligned([[name, numbers["text"]] for name, numbers in contestants.items()], "<<")
    tables = [
        (speeds(contestants, {STEADY: "steady", WHOLE: "whole call"}), "<<" + ">" * 6),
        (_parts(contestants), "<>>>"),
        (_ratios(found["ratios"]), "<<>>>>>"),
        (_memory_rows(found["memory"]), "<>"),
    ]
    closing = (
        "steady: three quarters of the images, by the seconds that a warm call with all takes longer than one with"
        " a quarter.\n"
        "whole call: fresh Python processes; stock's is scaled to as many images as the others'."
    )
    shown = [display.aligned(rows, sides) for rows, sides in tables if len(rows) > 1]
    return "\n\n".join([benchmark.prose(opening), names, *shown, benchmark.prose(closing)])


def _parts(contestants: Mapping[str, Any]) -> list[list[str]]:
    rows = [["ms an image in one thread (median)", "decoding", "forward", "both"]]
    for name in _ALONE:
        if name in contestants:
            parts = [contestants[name]["seconds"][part] * 1e3 for part in ("decode", "forward")]
            rows.append([name, *(f"{value:.2f}" for value in (*parts, sum(parts)))])
    return rows


def _ratios(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    names = {STEADY: "steady", WHOLE: "whole call"}
    rows = [["ratio, taken in each round", "precision", "median", "min", "max", "target", ""]]
    for one in found:
        name = f"{one['of']} / {one['to']}, {names[one['speed']]}"
        values = [f"{one[number]:.2f}" for number in ("median", "min", "max")]
        target = "-" if one["target"] is None else f">= {one['target']:g}"
        verdict = {True: "met", False: "missed", None: ""}[one["is_met"]]
        rows.append([name, ", ".join(one["precisions"]), *values, target, verdict])
    return rows


def _memory_rows(memory: Mapping[str, Any]) -> list[list[str]]:
    rows = [["peak memory of a Python worker", ""]]
    if memory:
        rows += [
            [f"{int(number):,} images in one partition", f"{peak / 2**20:,.0f} MiB"]
            for number, peak in memory["peak_bytes"].items()
        ]
        verdict = "met" if memory["is_met"] else "missed"
        rows.append([f"growth (target <= {memory['target']:.0%}: {verdict})", f"{memory['growth']:+.1%}"])
    return rows


def _in_brief(one: Measurement) -> str:
    speeds = ((one.images_per_second_steady, "steady"), (one.images_per_second_whole, "in a whole call"))
    return (
        ", ".join(f"{speed:,.0f} images/s {name}" for speed, name in speeds if speed)
        or "too few images to tell"
    )


# What is scored.


def picture(index: int, size: int = PICTURE_SIZE) -> NDArray[np.uint8]:
    """Smooth patches of colour under the noise of a camera's sensor. A pure function of its arguments.

    As a PNG it takes about as many bytes, and as long to decode, as a photograph of a seedling.
    """
    generator = np.random.default_rng(index)
    patches = generator.integers(0, 256, (8, 8, 3)).astype(np.float32)
    at = np.linspace(0, 7, size, dtype=np.float32)
    lower = np.minimum(at.astype(np.int64), 6)
    part = at - lower
    rows = patches[lower] * (1 - part)[:, None, None] + patches[lower + 1] * part[:, None, None]
    smooth = rows[:, lower] * (1 - part)[None, :, None] + rows[:, lower + 1] * part[None, :, None]
    noise = generator.normal(0, 4, smooth.shape)
    noisy: NDArray[np.uint8] = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return noisy


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A compressed PNG file, as cameras and annotation tools write it: `images.encode_png` stores the pixels.

    Args:
        pixels: uint8, shape (height, width, 3).
    """
    height, width, _ = pixels.shape
    here = pixels.reshape(height, width * 3).astype(np.int16)
    left, above, corner = (np.zeros_like(here) for _ in range(3))
    left[:, 3:], above[1:], corner[1:, 3:] = here[:, :-3], here[:-1], here[:-1, :-3]
    # The predictor of Paeth: PNG specification, 9.4.
    guess = left + above - corner
    to_left, to_above, to_corner = (np.abs(guess - each) for each in (left, above, corner))
    is_above = to_above <= to_corner
    nearest = np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(is_above, above, corner)
    )
    rows = np.empty((height, 1 + width * 3), np.uint8)
    rows[:, 0], rows[:, 1:] = 4, (here - nearest).astype(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


class _Stand:
    """What is scored: pictures, tables and model versions in a folder.

    Args:
        spark: The session.
        task: What it is to hold.
        path: Path of the folder, which is made.
        names: Who will score.
        stored: URI of a folder in an object store for the pictures too; "" for none.
    """

    def __init__(
        self, spark: SparkSession, task: Scoring, path: str, names: Sequence[str], *, stored: str = ""
    ) -> None:
        from seedlings_spark.models import export, networks

        self.spark, self.task, self.path, self.stored = spark, task, path, stored
        self.num_images = {SMALL: max(1, task.num_images // _SMALLER), LARGE: task.num_images}
        self.num_stock = min(task.stock_images, task.num_images)
        different = min(_MOST_DIFFERENT, task.num_images)
        sources = _sources(task.images, different)
        self.pictures = [
            files.join(path, "different", f"{number:06d}.png") for number in range(len(sources) or different)
        ]
        files.make_directory(files.join(path, "different"))
        store = _store_of(task.images)
        _run(spark.range(len(self.pictures)), partial(_write_pictures, self.pictures, sources, store))
        for size, count in self.num_images.items():
            files.make_directory(files.join(path, size))
            for number in range(count):
                os.link(files.local_path(self.picture(number)), files.local_path(self.named(size, number)))
            if store is not None and stored:
                copy = partial(_store_pictures, store, files.join(path, size), files.join(stored, size))
                _run(spark.range(count), copy)
        built = benchmark.network(task.network, task.image_size)
        self.network = networks.to_bytes(built)
        self.onnx, _ = export.to_onnx(self.network)
        self.versions = {precision: self._publish(precision) for precision in ("float32", "mixed_bfloat16")}
        if set(names) & set(_AUTO):
            contents = [files.read_bytes(path) for path in self.pictures[:_BATCH_SIZE]]
            pixels = np.stack([images.decode(content, self.size) for content in contents])
            quantised = {INT8: export.to_int8(self.onnx, pixels)}
            self.versions[choices.INT8] = self._publish("float32", quantised)
        self.tables = {size: self._prepared(size) for size in _SIZES}
        self.vectors = self._vectors() if "stock" in names else None

    def about(self) -> dict[str, Any]:
        """The pictures, for the setting."""
        num_bytes = statistics.fmean(files.local_path(path).stat().st_size for path in self.pictures)
        text = f"{len(self.pictures):,} different ones {'given' if self.task.images else 'drawn'}"
        return {"pictures": text, "picture_bytes": num_bytes}

    @property
    def precision(self) -> str:
        """Of those that have none of their own."""
        return runtime.resolve_precision(self.task.precision)

    @property
    def network_path(self) -> str:
        """The file of the network that ours compute."""
        version = self.versions[self.precision]
        return version.network_path if _engine(self.precision) == TENSORFLOW else version.onnx_path

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels that the network takes."""
        return self.task.image_size, self.task.image_size

    def picture(self, number: int) -> str:
        """The file behind an image."""
        return self.pictures[number % len(self.pictures)]

    def named(self, size: str, number: int) -> str:
        """The path of an image."""
        return files.join(self.path, size, f"{number:08d}.png")

    def forward(self, precision: str) -> prediction.ForwardTask:
        """The forward pass of ours."""
        return tasks.forward_task(self.spark, self.versions[precision], _BATCH_SIZE, _engine(precision))

    def _publish(self, precision: str, more: Mapping[str, bytes] | None = None) -> ModelVersion:
        contents = {NETWORK: self.network, ONNX: self.onnx, **(more or {})}

        def build(folder: str) -> None:
            for name, content in contents.items():
                files.write_bytes(files.join(folder, name), content)

        return ModelStore(files.join(self.path, "store"), "benchmark").publish(
            build,
            {
                "classes": [f"species {number}" for number in range(NUM_CLASSES)],
                "image_size": list(self.size),
                "aspect": "crop",
                "precision": precision,
            },
        )

    def _prepared(self, size: str) -> DataFrame:
        """The pictures as a prepared table: a few tasks of equal size for each slot."""
        path = files.join(self.path, f"table-{size}")
        rows = self.spark.range(0, self.num_images[size], 1, 4 * session.num_slots(self.spark))
        decode = partial(_decoded_rows, self.pictures, self.size)
        with session.arrow_batches(self.spark, self.size[0] * self.size[1] * 3):
            rows.mapInArrow(decode, schema.DECODED).write.parquet(path)
        return self.spark.read.schema(schema.DECODED).parquet(path)

    def _vectors(self) -> DataFrame:
        path = files.join(self.path, "vectors")
        rows = self.spark.range(0, self.num_stock, 1, session.num_slots(self.spark))
        decode = partial(_decoded_rows, self.pictures, self.size)
        with session.arrow_batches(self.spark, 8 * self.size[0] * self.size[1] * 3):
            decoded = rows.mapInArrow(decode, schema.DECODED).withColumn(schema.LABEL, F.lit(0.0))
            train.as_vectors(decoded, schema.LABEL).write.parquet(path)
        return self.spark.read.parquet(path)


def _sources(folder: str, most: int) -> list[str]:
    """Paths of given pictures, evenly from all over the folder; none where they are drawn."""
    if not folder:
        return []
    found = [listed.path for listed in listings.walk(folder, by_folder=False) if listed.length > 0]
    if not found:
        raise InputError(
            f"{folder}, which is empty", "pictures", "Check --images, or leave it out to draw some"
        )
    return [found[number * len(found) // most] for number in range(most)] if len(found) > most else found


def _write_pictures(
    targets: Sequence[str],
    sources: Sequence[str],
    store: files.Store | None,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for number in batch.column(0).to_pylist():
            content = _as_picture(sources[number], store) if sources else encode_png(picture(number))
            files.local_path(targets[number]).write_bytes(content)
        yield batch


def _store_pictures(
    store: files.Store, source: str, target: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for number in batch.column(0).to_pylist():
            name = f"{number:08d}.png"
            store.write(files.join(target, name), files.read_bytes(files.join(source, name)))
        yield batch


def _as_picture(path: str, store: files.Store | None) -> bytes:
    """A given picture as a PNG of the size that is measured; as it is if it is one already."""
    content = files.read_bytes(path) if store is None else store.read(path)
    if content[:8] == _PNG and struct.unpack(">II", content[16:24]) == (PICTURE_SIZE, PICTURE_SIZE):
        return content
    try:
        return encode_png(images.decode(content, (PICTURE_SIZE, PICTURE_SIZE)))
    except ImageError as error:
        raise InputError(
            f"{path}, which is no usable picture ({error})",
            "pictures only",
            "Remove it from the folder of --images",
        ) from None


def _decoded_rows(
    pictures: Sequence[str], size: tuple[int, int], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Rows of `schema.DECODED` by their numbers."""
    for batch in batches:
        rows = []
        for number in batch.column(0).to_pylist():
            content = files.local_path(pictures[number % len(pictures)]).read_bytes()
            rows.append(_row(number, len(content), images.decode(content, size).tobytes()))
        yield pa.RecordBatch.from_pylist(rows, schema=tables.arrow_schema(schema.DECODED))


def _row(number: int, length: int, content: bytes) -> dict[str, Any]:
    return {
        schema.PATH: f"file:///prepared/{number:08d}.png",
        schema.SPECIES: None,
        schema.CONTENT_HASH: hashlib.sha256(content).hexdigest(),
        schema.LENGTH: length,
        schema.IMAGE: content,
        schema.REASON: None,
        schema.STAGE: None,
        schema.DETAIL: None,
    }


def _run(rows: DataFrame, function: Any) -> None:
    rows.mapInArrow(function, rows.schema).write.format("noop").mode("overwrite").save()


# Who scores.


def _can_run(task: Scoring, scorers: Sequence[str]) -> list[str]:
    names = [name for name in SCORERS if name in scorers]
    if "png" in names and _store_of(task.images):
        names.insert(names.index("png") + 1, "png-store")
    return names


def _engine(precision: str) -> str:
    """Of ours."""
    if precision != "mixed_bfloat16":
        return ONNXRUNTIME
    return OPENVINO if find_spec(OPENVINO) else TENSORFLOW


def _store_of(folder: str) -> files.Store | None:
    return files.store_of(files.qualify(folder)) if folder else None


def _setting(spark: SparkSession, task: Scoring) -> dict[str, Any]:
    return {
        **dataclasses.asdict(task),
        **benchmark.where(spark),
        "cores": _cores(spark),
    }


def _cores(spark: SparkSession) -> int:
    """Those that all tasks together have: on one machine no more than it has."""
    of_tasks = session.num_slots(spark) * session.task_cpus(spark)
    return min(of_tasks, benchmark.cores()) if session.is_local(spark) else of_tasks


@contextlib.contextmanager
def _quiet_scoring() -> Iterator[None]:
    """Without what each run of `score` says of itself."""
    logger = logging.getLogger("seedlings_spark.scoring")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _measure(stand: _Stand, name: str, number: int) -> list[Measurement]:
    """One contestant's turn."""
    if name in _ALONE:
        return _measure_limit(stand, name, number)
    own = {**dict.fromkeys(_AUTO, choices.INT8), "stock": "float32", "tf.data": "float32"}
    precision = own.get(name, stand.precision)
    if name == "stock":
        return [_measure_stock(stand, number)]
    if name == "tf.data":
        seconds = _tf_data_beside(stand)
    else:
        call = _CALLS[name](stand, precision)
        seconds = {"whole": _seconds(call, LARGE)}
        call(SMALL)  # what a first look at its files costs would count for the others
        seconds |= {size: _seconds(call, size) for size in _SIZES}
    counts = stand.num_images
    return [
        Measurement(
            round=number,
            contestant=name,
            precision=precision,
            images_per_second_steady=steady(counts[SMALL], seconds[SMALL], counts[LARGE], seconds[LARGE]),
            images_per_second_whole=counts[LARGE] / seconds["whole"] if "whole" in seconds else None,
            seconds=seconds,
        )
    ]


def _seconds(call: Callable[[str], None], size: str) -> float:
    started = time.perf_counter()
    call(size)
    return time.perf_counter() - started


def _ours_from_png(
    stand: _Stand, precision: str, *, is_stored: bool = False, engine: str = ""
) -> Callable[[str], None]:
    environment, place = benchmark.fresh(), stand.stored if is_stored else stand.path

    def call(size: str) -> None:
        output = files.join(stand.path, "scores")
        options = ScoringOptions(
            files.join(place, size),
            output=output,
            engine=engine or _engine(precision),
            batch_size=_BATCH_SIZE,
            review=0,
        )
        with session.python_environment(stand.spark, environment):
            run = scoring.score(stand.spark, stand.versions[precision], options)
        if run.manifest["scored"] != stand.num_images[size]:
            raise InputError(
                f"{run.manifest['rejected']:,} of {run.manifest['listed']:,} pictures that score rejects",
                "pictures that can be scored",
                "Give other ones with --images",
            )
        files.delete(output)

    return call


def _over_table(
    stand: _Stand,
    environment: Mapping[str, str],
    scored: Callable[[DataFrame], DataFrame],
    *,
    short_batches: bool = False,
) -> Callable[[str], None]:
    """Calls that throw away what comes out of a table, with Spark's own length of Arrow batches or with `score`'s."""
    row_bytes = stand.size[0] * stand.size[1] * 3
    with session.python_environment(stand.spark, {**benchmark.fresh(), **environment}):
        made = {size: scored(table) for size, table in stand.tables.items()}

    def call(size: str) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_file_by_file(stand.spark))
            if short_batches:
                stack.enter_context(session.arrow_batches(stand.spark, row_bytes))
            made[size].write.format("noop").mode("overwrite").save()

    return call


@contextlib.contextmanager
def _file_by_file(spark: SparkSession) -> Iterator[None]:
    """One task for each file of a table: Spark packs them by size, and two of four would leave a core without work."""
    name = "spark.sql.files.openCostInBytes"
    before = spark.conf.get(name)
    spark.conf.set(name, str(2**30))
    try:
        yield
    finally:
        spark.conf.set(name, str(before))


def _ours_from_table(stand: _Stand, precision: str) -> Callable[[str], None]:
    forward = stand.forward(precision)
    return _over_table(
        stand,
        runtime.worker_environment(forward.threads),
        lambda table: table.mapInArrow(partial(tasks.score_decoded, forward), tasks.SCORED),
        short_batches=True,
    )


def _ours_as_transformer(stand: _Stand, precision: str) -> Callable[[str], None]:
    from seedlings_spark.estimator import SeedlingsModel
    from seedlings_spark.models import networks

    classes = stand.versions[precision].classes
    model = SeedlingsModel.from_network(networks.from_bytes(stand.network), classes)
    model.set(model.precision, precision)
    model.use_onnx()
    model.set(model.engine, _engine(precision))
    return _over_table(stand, {}, lambda table: model.transform(table.select(schema.PATH, schema.IMAGE)))


def _batch_udf(stand: _Stand, precision: str, *, tuned: bool = False) -> Callable[[str], None]:
    udf = predict_batch_udf(
        partial(_make_predict, stand.network, precision, tuned=tuned),
        return_type=ArrayType(FloatType()),
        batch_size=_BATCH_SIZE,
    )
    threads = str(session.task_cpus(stand.spark))
    one_thread = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "1"} if tuned else {}
    return _over_table(
        stand,
        {"TF_CPP_MIN_LOG_LEVEL": "3", **benchmark.hidden_gpus(stand.spark), **one_thread},
        lambda table: table.select(schema.PATH, udf(schema.IMAGE).alias(schema.PROBABILITIES)),
    )


def _make_predict(content: bytes, precision: str, *, tuned: bool) -> Callable[[Any], Any]:
    """What `predict_batch_udf` is given: it loads the network once a process and predicts batches of bytes."""
    with runtime.quiet_import():
        import tensorflow as tf

        from seedlings_spark.models import networks

    network = networks.from_bytes(content)
    runtime.set_precision(network, precision)
    row_shape = network.input_shape[1:]
    traced = tf.function(
        lambda batch: network(tf.cast(batch, network.inputs[0].dtype), training=False),
        autograph=False,
        reduce_retracing=True,
    )

    def predict(inputs: Any) -> Any:
        pixels = np.frombuffer(b"".join(inputs.ravel()), np.uint8).reshape(-1, *row_shape)
        return traced(pixels).numpy() if tuned else network.predict(pixels, verbose=0)

    return predict


_CALLS: Mapping[str, Callable[[_Stand, str], Callable[[str], None]]] = {
    "png": _ours_from_png,
    "png-tensorflow": partial(_ours_from_png, engine=TENSORFLOW),
    "png-auto": _ours_from_png,
    "png-store": partial(_ours_from_png, is_stored=True),
    "table": _ours_from_table,
    "table-auto": _ours_from_table,
    "transform": _ours_as_transformer,
    "udf": _batch_udf,
    "udf-tuned": partial(_batch_udf, tuned=True),
}


def _measure_stock(stand: _Stand, number: int) -> Measurement:
    with runtime.quiet_import():
        import keras

        from seedlings_spark.estimator.stock import ElephasTransformer, ModelType
        from seedlings_spark.models import networks

    size = stand.task.image_size
    network = keras.Sequential(
        [
            keras.Input((size * size * 3,)),
            keras.layers.Reshape((size, size, 3)),
            networks.from_bytes(stand.network),
        ]
    )
    assert stand.vectors is not None
    with session.python_environment(stand.spark, {**benchmark.fresh(), **benchmark.hidden_gpus(stand.spark)}):
        model = ElephasTransformer(
            keras_model_config=network.to_json(),
            weights=network.get_weights(),
            model_type=ModelType.CLASSIFICATION,
            featuresCol="features",
            labelCol=schema.LABEL,
            outputCol=schema.PREDICTION,
        )

        def call(_: str) -> None:
            model.transform(stand.vectors).write.format("noop").mode("overwrite").save()

        seconds = {"first": _seconds(call, LARGE), "second": _seconds(call, LARGE)}
    return Measurement(
        round=number,
        contestant="stock",
        precision="float32",
        images_per_second_steady=stand.num_stock / seconds["second"],
        images_per_second_whole=scaled_whole(
            seconds["first"], seconds["second"], stand.num_stock, stand.num_images[LARGE]
        ),
        seconds=seconds,
    )


def _memory(stand: _Stand) -> dict[str, int]:
    """Peak bytes of a Python worker by the number of images in its one partition."""
    forward = stand.forward(stand.precision)
    peaks = {}
    for number in stand.task.memory_images:
        environment = {**benchmark.fresh(), **runtime.worker_environment(forward.threads)}
        with (
            session.python_environment(stand.spark, environment),
            session.arrow_batches(stand.spark, stand.size[0] * stand.size[1] * 3),
        ):
            rows = stand.spark.range(0, number, 1, 1).mapInArrow(
                partial(_repeated_rows, stand.pictures[:_BATCH_SIZE], stand.size), schema.DECODED
            )
            (row,) = rows.mapInArrow(partial(_peak, forward), "images long, peak_bytes long").collect()
        if int(row["images"]) != number:
            raise AssertionError(f"{row['images']} of {number} images were scored")
        peaks[str(number)] = int(row["peak_bytes"])
        _log.info(
            "%s images in one partition: a worker needs %.0f MiB", f"{number:,}", peaks[str(number)] / 2**20
        )
    return peaks


def _repeated_rows(
    pictures: Sequence[str], size: tuple[int, int], batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """As `_decoded_rows`, of a few pictures that are decoded once."""
    contents = [files.local_path(path).read_bytes() for path in pictures]
    pixels = [images.decode(content, size).tobytes() for content in contents]
    for batch in batches:
        rows = [
            _row(number, len(contents[number % len(pixels)]), pixels[number % len(pixels)])
            for number in batch.column(0).to_pylist()
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=tables.arrow_schema(schema.DECODED))


def _peak(forward: prediction.ForwardTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score, and tell how many images it were and how much memory this process has needed at most."""
    number = sum(batch.num_rows for batch in tasks.score_decoded(forward, batches))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kB on Linux
    yield pa.RecordBatch.from_pydict({"images": [number], "peak_bytes": [peak]})


# Beside the driver.


def _measure_limit(stand: _Stand, name: str, number: int) -> list[Measurement]:
    """One process, or as many as there are cores, at the same time: first they all decode, then they all predict."""
    request = {
        "what": "limit",
        "network": files.local_path(stand.network_path).as_posix(),
        "engine": stand.forward(stand.precision).engine,
        "precision": stand.precision,
        "size": stand.size,
        "pictures": [files.local_path(path).as_posix() for path in stand.pictures[:_LIMIT_PICTURES]],
    }
    num_processes = 1 if name == "limit" else benchmark.cores()
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                benchmark.Beside(stand.spark, __name__, request, "the measurement of the limit")
            )
            for _ in range(num_processes)
        ]
        parts = {}
        for part in ("decode", "forward"):
            for process in processes:
                process.hear()  # it is warm
            for process in processes:
                process.say()
            parts[part] = [float(process.hear()) for process in processes]
    cores = _cores(stand.spark)
    decode, forward = (statistics.fmean(parts[part]) for part in ("decode", "forward"))
    seconds = {"decode": decode, "forward": forward}
    return [
        Measurement(number, name, stand.precision, cores / (decode + forward), None, seconds),
        Measurement(number, _ALONE[name], stand.precision, cores / forward, None, {"forward": forward}),
    ]


def _limit(request: Mapping[str, Any]) -> None:
    """In a process of its own: seconds of decoding a picture, and of its forward pass, in one thread."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    size = (int(request["size"][0]), int(request["size"][1]))
    contents = [files.read_bytes(path) for path in request["pictures"]]
    few = max(1, len(contents) // 8)

    def decode(chosen: Sequence[bytes]) -> list[NDArray[np.uint8]]:
        return [images.decode(content, size) for content in chosen]

    decode(contents[:few])
    _say_seconds(lambda: decode(contents), len(contents))

    content = files.read_bytes(request["network"])
    task = prediction.ForwardTask(content, request["precision"], _BATCH_SIZE, 1, engine=request["engine"])
    network = prediction.forward(task)
    pixels = np.stack(decode((contents * _BATCH_SIZE)[:_BATCH_SIZE]))
    num_batches = max(2, len(contents) // _BATCH_SIZE)

    def forward(count: int) -> None:
        for _ in range(count):
            network.predict(pixels)

    forward(2)
    _say_seconds(lambda: forward(num_batches), num_batches * _BATCH_SIZE)


def _say_seconds(work: Callable[[], object], num_images: int) -> None:
    """Say that all is warm, wait for the word, and say how long an image takes."""
    benchmark.said("ready")
    benchmark.heard()
    started = time.perf_counter()
    work()
    benchmark.said((time.perf_counter() - started) / num_images)


def _tf_data_beside(stand: _Stand) -> dict[str, float]:
    request = {
        "what": "tf.data",
        "network": files.local_path(stand.versions["float32"].network_path).as_posix(),
        "size": stand.size,
        "pictures": {size: files.local_path(files.join(stand.path, size)).as_posix() for size in _SIZES},
    }
    with benchmark.Beside(stand.spark, __name__, request, "tf.data") as process:
        return {str(size): float(seconds) for size, seconds in process.hear().items()}


def _tf_data(request: Mapping[str, Any]) -> None:
    """In a process of its own: seconds of two calls of Keras' `predict` over PNG files, with all cores."""
    with runtime.quiet_import():
        import tensorflow as tf

        from seedlings_spark.models import networks

    network = networks.from_bytes(files.read_bytes(request["network"]))

    def load(path: Any) -> Any:
        return tf.image.resize(tf.io.decode_png(tf.io.read_file(path), channels=3), request["size"])

    def predict(size: str) -> None:
        paths = sorted(entry.path for entry in os.scandir(request["pictures"][size]))
        data = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=tf.data.AUTOTUNE)
        network.predict(data.batch(_BATCH_SIZE).prefetch(tf.data.AUTOTUNE), verbose=0)

    predict(SMALL)  # traces the network, and fills the caches
    benchmark.said({size: _seconds(predict, size) for size in _SIZES})


def _main() -> None:
    """The processes beside the driver."""
    request = json.loads(benchmark.heard())
    {"limit": _limit, "tf.data": _tf_data}[request["what"]](request)


if __name__ == "__main__":
    _main()
