"""One image at a time or in batches: how fast each engine computes a network, with what memory and accuracy.

Each engine computes in a fresh process, in each precision and with each number of threads, for each number of images in
one call: as many calls as fit into some seconds, after one that counts nothing. Images are in memory: what reading and
decoding cost is `benchmark score`'s to say.
"""

import dataclasses
import logging
import os
import resource
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from seedlings_spark import benchmark, corpus, display, files, schema
from seedlings_spark.choices import INT8, ONNXRUNTIME, OPENVINO, TENSORFLOW
from seedlings_spark.errors import CorpusError, NetworkError
from seedlings_spark.exports import litert
from seedlings_spark.models import engines
from seedlings_spark.models import store as stores

_log = logging.getLogger(__name__)

BATCHES = (1, 8, 64, 256)
# Images that a quantised network is calibrated with, where the version has none.
_CALIBRATION = 256
# What an accuracy may be lower by for an engine to be recommended.
_MOST_LOST = 0.005
_FLOAT32, _BFLOAT16 = "float32", "mixed_bfloat16"
# The engine of phones, which nothing is scored with here; it takes one picture after the other.
_LITERT = "litert"


@dataclass(frozen=True)
class Inference:
    """What is computed.

    Args:
        network: One of `networks.BY_NAME`, which is drawn, where no store is given.
        image_size: Height and width in pixels of that.
        store: Folder of a model store; "" for none.
        name: Name of the model in it.
        model_version: Its version, or `current`.
        corpus: Folder of the corpus whose validation images accuracies are of; "" for none.
        batches: Numbers of images of one call.
        seconds: Of the calls with one such number, about.
    """

    network: str = "plain"
    image_size: int = 64
    store: str = ""
    name: str = "seedlings"
    model_version: str = "current"
    corpus: str = ""
    batches: tuple[int, ...] = BATCHES
    seconds: float = 2.0


@dataclass(frozen=True)
class Measurement:
    """What was measured of one engine in one precision, with one number of threads and of images in a call.

    Args:
        engine: One of `choices.ENGINES` but auto, or "litert".
        precision: "float32", "mixed_bfloat16" or "int8".
        threads: Threads of a call.
        batch: Images of a call.
        images_per_second: By the median of the calls.
        p50: Seconds of a call, median.
        p99: The same, 99 of 100 calls at most.
        start: Seconds to import the engine and to load the network.
        memory: Peak bytes of the process.
        disk: Bytes of the network's file.
        accuracy: On the validation images; None where there are none.
    """

    engine: str
    precision: str
    threads: int
    batch: int
    images_per_second: float
    p50: float
    p99: float
    start: float
    memory: int
    disk: int
    accuracy: float | None = None


def measure_inference(
    spark: SparkSession, task: Inference, *, folder: str, json_file: str = ""
) -> dict[str, Any]:
    """Let each engine that is installed compute a network.

    Args:
        spark: The session.
        task: What is computed.
        folder: Local folder for what is made meanwhile.
        json_file: All numbers are written to it, and a plot beside it, with the ending .png; "" for neither.

    Returns:
        `setting`, and the `measurements`.

    Raises:
        CorpusError: The corpus has images of another size, or no validation images.
        ClusterError: An engine's process failed.
    """
    with benchmark.scratch(files.qualify(folder)) as path:
        place = files.local_path(path)
        place.mkdir(parents=True)
        _write_inputs(spark, task, place)
        measurements = []
        for request in _requests(task, place):
            text = f"{request['engine']} in {request['precision']}, threads: {request['threads']}"
            with benchmark.Beside(spark, __name__, request, text) as process:
                said = process.hear()
            if isinstance(said, str):
                _log.warning("%s: %s", text, said)
                continue
            found = [Measurement(**each) for each in said]
            measurements += found
            _log.info("%s: %s images/s", text, ", ".join(f"{each.images_per_second:,.0f}" for each in found))
    about = {**benchmark.where(spark), **dataclasses.asdict(task)}
    result = {"setting": about, "measurements": [dataclasses.asdict(each) for each in measurements]}
    benchmark.write_json(json_file, result)
    if json_file:
        from seedlings_spark.reports import plots

        plot = plots.inference(_curves(measurements))
        files.write_bytes(f"{files.qualify(json_file).removesuffix('.json')}.png", plot)
    return result


# Pure: from what was seen to what is said.


def report(found: Mapping[str, Any]) -> str:
    """What `measure_inference` returned, as a table for a person to read, with a recommendation."""
    setting = found["setting"]
    measurements = [Measurement(**each) for each in found["measurements"]]
    rows = [["engine", "precision", "threads", "batch", "images/s", "p50 ms", "p99 ms"]]
    costs = [["engine", "precision", "threads", "start s", "memory MiB", "disk MB", "accuracy"]]
    for each in measurements:
        who = [each.engine, each.precision, str(each.threads)]
        speed, times = f"{each.images_per_second:,.0f}", (f"{each.p50 * 1e3:.2f}", f"{each.p99 * 1e3:.2f}")
        rows.append([*who, str(each.batch), speed, *times])
        if who != costs[-1][:3]:
            accuracy = "-" if each.accuracy is None else f"{each.accuracy:.4f}"
            memory, disk = f"{each.memory / 2**20:,.0f}", f"{each.disk / 1e6:.1f}"
            costs.append([*who, f"{each.start:.2f}", memory, disk, accuracy])
    what = (
        f"{setting['name']} {setting['model_version']} of {setting['store']}"
        if setting["store"]
        else f"the network {setting['network']}, {setting['image_size']}x{setting['image_size']}"
    )
    head = f"{what}; {setting['driver_cores']} cores, {setting['driver']['cpu']}"
    shown = [display.aligned(each, "<<" + ">" * 5) for each in (rows, costs)]
    return "\n\n".join([benchmark.prose(head), *shown, benchmark.prose(recommendation(measurements))])


def recommendation(measurements: Sequence[Measurement]) -> str:
    """What to take for many images, and what for one at a time, in words.

    Engines whose accuracy is more than half a point below the best one's are left out, and so is LiteRT, which neither
    `score` nor `serve` computes with. In bulk each core has a process
    of its own, with one thread.
    """
    best = max((each.accuracy for each in measurements if each.accuracy is not None), default=0.0)
    good = [
        each
        for each in measurements
        if each.engine != _LITERT and (each.accuracy is None or each.accuracy >= best - _MOST_LOST)
    ]
    bulk = max((each for each in good if each.threads == 1), key=lambda each: each.images_per_second)
    online = min((each for each in good if each.batch == 1), key=lambda each: each.p99)
    return (
        f"Bulk: {bulk.engine} in {bulk.precision}, a process of one thread for each core, {bulk.batch} images a call:"
        f" {bulk.images_per_second:,.0f} images/s a core with {bulk.memory / 2**20:,.0f} MiB.\n"
        f"Online: {online.engine} in {online.precision} with {online.threads} thread{'s' * (online.threads != 1)}:"
        f" {online.p50 * 1e3:.1f} ms an image, 99 of 100 within {online.p99 * 1e3:.1f} ms."
    )


def _curves(measurements: Sequence[Measurement]) -> dict[str, list[tuple[int, float, float, float]]]:
    """Of each engine, precision and number of threads for each batch: images/s, p50 and p99 in ms."""
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for each in measurements:
        name = f"{each.engine} {each.precision}, {each.threads} thread{'s' * (each.threads != 1)}"
        numbers = (each.batch, each.images_per_second, each.p50 * 1e3, each.p99 * 1e3)
        found.setdefault(name, []).append(numbers)
    return found


# What is computed.


def _write_inputs(spark: SparkSession, task: Inference, place: Path) -> None:
    """The network's files, images, and of validation images the classes."""
    from seedlings_spark.models import export, networks
    from seedlings_spark.training import network as carried
    from seedlings_spark.workflow import publication

    validation, wanted = None, None
    version = (
        stores.ModelStore(files.qualify(task.store), task.name).verify(task.model_version)
        if task.store
        else None
    )
    size = version.image_size if version is not None else (task.image_size, task.image_size)
    if version is not None:
        keras, classes = files.read_bytes(version.network_path), version.classes
        onnx = files.read_bytes(version.onnx_path) if version.has_onnx else export.to_onnx(keras)[0]
        if task.corpus:
            validation, wanted = _validation(spark, task.corpus, size, classes)
    else:
        keras = networks.to_bytes(benchmark.network(task.network, task.image_size))
        onnx, _ = export.to_onnx(keras)
    drawn = [benchmark.draw(number, max(size))[0][: size[0], : size[1]] for number in range(_CALIBRATION)]
    rows = np.stack(drawn) if validation is None else validation
    # Validation is what a quantised network is judged on: images of training tell the ranges of its numbers.
    training = None
    if validation is not None:
        training = publication.some_pixels(spark, corpus.load(files.qualify(task.corpus)), schema.TRAIN)
    ranges = rows[:_CALIBRATION] if training is None else training
    if version is not None and version.has_int8:
        int8 = files.read_bytes(files.join(version.path, stores.INT8))
    else:
        int8 = export.to_int8(onnx, ranges)
    made = {stores.NETWORK: keras, stores.ONNX: onnx, stores.INT8: int8}
    if find_spec("ai_edge_litert") is not None:
        try:
            for name, images in ((litert.FILE, None), (litert.INT8_FILE, ranges)):
                network = export.with_plain_names(carried.from_bytes(keras))
                made[name] = litert.converted(network, size, images)
        except NetworkError as error:
            _log.warning("%s: %s", _LITERT, error)
    for name, content in made.items():
        (place / name).write_bytes(content)
    np.save(place / "rows.npy", np.resize(rows, (max(task.batches), *size, 3)))
    if validation is not None and wanted is not None:
        np.savez(place / "validation.npz", rows=validation, classes=wanted)


def _validation(
    spark: SparkSession, folder: str, size: tuple[int, int], classes: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    prepared = corpus.load(files.qualify(folder)).require_one_species("benchmark inference")
    if prepared.image_size != size or not prepared.num_images(schema.VALIDATION):
        raise CorpusError(
            f"{folder} with {prepared.num_images(schema.VALIDATION)} validation images of {prepared.image_size}",
            f"some of {size}, as the version takes them",
            "Give the corpus that the version was trained on",
        )
    chosen = prepared.images(spark, schema.VALIDATION).select(schema.IMAGE, schema.SPECIES).collect()
    pixels = np.frombuffer(b"".join(bytes(row[0]) for row in chosen), np.uint8)
    return pixels.reshape(-1, *size, 3), np.array([classes.index(row[1]) for row in chosen])


def _requests(task: Inference, place: Path) -> Iterator[dict[str, Any]]:
    """What each process is told."""
    kinds = [(ONNXRUNTIME, _FLOAT32), (ONNXRUNTIME, INT8)]
    if find_spec("openvino") is not None:
        kinds += [(OPENVINO, _FLOAT32), (OPENVINO, _BFLOAT16), (OPENVINO, INT8)]
    kinds += [(TENSORFLOW, _FLOAT32), (TENSORFLOW, _BFLOAT16)]
    if (place / litert.INT8_FILE).exists():
        kinds += [(_LITERT, _FLOAT32), (_LITERT, INT8)]
    cores = benchmark.cores()
    for engine, precision in kinds:
        for threads in dict.fromkeys([*(2**power for power in range(cores.bit_length())), cores]):
            yield {
                "engine": engine,
                "precision": precision,
                "threads": threads,
                "batches": task.batches,
                "seconds": task.seconds,
                "place": str(place),
            }


# In a process beside the driver.


def _engine(request: Mapping[str, Any], content: bytes, batch: int) -> engines.Engine | litert.LiteRt:
    engine, precision, threads = request["engine"], request["precision"], request["threads"]
    if engine == ONNXRUNTIME:
        return engines.OnnxRuntime(content, threads)
    if engine == _LITERT:
        return litert.LiteRt(content, threads)
    if engine == OPENVINO:
        return engines.OpenVino(content, threads, precision=precision, rows=batch)
    return engines.TensorFlow(content, threads, precision=precision, custom_objects={})


def _accuracy(request: Mapping[str, Any], content: bytes, place: Path) -> float | None:
    if not (place / "validation.npz").exists():
        return None
    batch = 16
    loaded = _engine(request, content, batch)
    with np.load(place / "validation.npz") as found:
        rows, classes = found["rows"], found["classes"]
    padded = np.concatenate([rows, np.zeros((-len(rows) % batch, *rows.shape[1:]), np.uint8)])
    parts = [loaded.run(padded[start : start + batch]) for start in range(0, len(padded), batch)]
    return float(np.mean(np.concatenate(parts)[: len(rows)].argmax(axis=1) == classes))


def _measure(request: Mapping[str, Any]) -> list[Measurement]:
    place = Path(request["place"])
    int8 = request["precision"] == INT8
    names = {
        TENSORFLOW: (stores.NETWORK, stores.NETWORK),
        _LITERT: (litert.FILE, litert.INT8_FILE),
    }
    name = names.get(request["engine"], (stores.ONNX, stores.INT8))[int8]
    content, rows = (place / name).read_bytes(), np.load(place / "rows.npy")
    began = time.perf_counter()
    loaded = _engine(request, content, request["batches"][0])
    start = time.perf_counter() - began
    accuracy = _accuracy(request, content, place)
    found = []
    for batch in request["batches"]:
        if request["engine"] == OPENVINO:  # which is compiled for one number
            loaded = _engine(request, content, batch)
        images = rows[:batch]
        loaded.run(images)
        seconds = list[float]()
        while sum(seconds) < request["seconds"] or len(seconds) < 3:
            began = time.perf_counter()
            loaded.run(images)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds)
        found.append(
            Measurement(
                request["engine"],
                request["precision"],
                request["threads"],
                batch,
                batch / median,
                median,
                float(np.quantile(seconds, 0.99)),
                start,
                _peak_memory(),
                len(content),
                accuracy,
            )
        )
    return found


def _peak_memory() -> int:
    """Of this process, in bytes; what getrusage says begins with that of the process which has started this one."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # Linux only
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _main() -> None:
    import json

    request = json.loads(benchmark.heard())
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        benchmark.said([dataclasses.asdict(each) for each in _measure(request)])
    except NetworkError as error:  # an engine has its faults, and the others are measured
        benchmark.said(str(error))


if __name__ == "__main__":
    _main()
