"""How long a step takes on a network that is narrow on purpose, beside what the model of `training.capacity` says.

Master and workers are processes with the training's own code (no Spark task around them), each on a machine of its own
as `benchmark.machines` makes them. They share this machine's cores, so a worker does not compute: it sleeps for as long
as one that had a core for itself was seen to compute for a step of a network of that size, and then hands in a drawn
gradient. All that comes after it is real: TLS, sums, the optimizer, the weights on their way back.
"""

import gc
import json
import logging
import math
import pickle
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from seedlings_spark import benchmark, display
from seedlings_spark.benchmark import scale
from seedlings_spark.benchmark.machines import Machines, bits_per_second
from seedlings_spark.cluster import runtime
from seedlings_spark.training import worker
from seedlings_spark.training.capacity import Costs, Plan, step_on_one_machine
from seedlings_spark.training.launcher import Attempt, Ended
from seedlings_spark.training.messages import Begin

_log = logging.getLogger(__name__)

WORKERS = (2, 4, 8)
# The options that make a `Setting`.
SETTING = ("bandwidth", "exchange", "rounds", "image_size", "batch_size")
# Steps before those that count: in the first the optimizer is traced.
_WARM = 3
# A cell whose step would take longer by the model is left out: so many seconds.
LONGEST = 30.0
# What the others are given to end by themselves when one has ended.
_WORDS_SECONDS = 20.0


@dataclass(frozen=True)
class Size:
    """A network of some size.

    Args:
        parameters: How many.
        network: Whose computing is measured.
        classes: Of that network, with which it has about so many parameters; 0 for the benchmarks' own.
    """

    parameters: int
    network: str
    classes: int = 0


# By their bytes in float32.
SIZES = {
    "2 MB": Size(500_000, "plain"),
    "18.6 MB": Size(4_650_000, "EfficientNetB0", 480),
    "100 MB": Size(25_000_000, "ResNet50", 690),
}


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        bandwidth: Some, as `tc` writes them.
        rounds: Steps of each cell that count.
        image_size: Of the network whose computing is measured.
        batch_size: The same.
        exchange: "driver" or others.
        sizes: Some of `SIZES`.
        workers: Numbers of workers.
    """

    bandwidth: Sequence[str]
    rounds: int
    image_size: int
    batch_size: int
    exchange: Sequence[str] = ("driver",)
    sizes: Sequence[str] = tuple(SIZES)
    workers: Sequence[int] = WORKERS


@dataclass(frozen=True)
class Cell:
    """One entry of the table; `seconds` of a step, None where it was left out.

    Args:
        size: One of `SIZES`.
        bandwidth: As `tc` writes it.
        num_workers: Number of workers.
        exchange: "driver" or another.
        compute: Seconds that a worker slept for a step.
        model: Seconds of a step by the model.
        seconds: Median, least and most.
        processor: Seconds of a processor that a worker spends on one step beside its computing; None as `seconds`.
        memory: MB of the `master` and of a `worker` at most, above what they had before they had a network; the same.
    """

    size: str
    bandwidth: str
    num_workers: int
    exchange: str
    compute: float
    model: float
    seconds: Mapping[str, float] | None
    processor: float | None = None
    memory: Mapping[str, float] | None = None


def measure(spark: SparkSession, setting: Setting, json_file: str = "") -> dict[str, Any]:
    """Measure all cells, the exchanges of one next to each other.

    Args:
        spark: The session; only whether it has GPUs counts.
        setting: What is measured.
        json_file: Written after each size with what there is by then; "" for none.

    Returns:
        `setting`, `costs` by size, and `cells`.

    Raises:
        OptionError: A bandwidth that is none.
        ClusterError: This process may not make namespaces, or a process has died.
    """
    rates = {text: bits_per_second(text) for text in setting.bandwidth}
    most = max(setting.workers)
    costs: dict[str, Costs] = {}
    cells: list[Cell] = []
    found: dict[str, Any] = {}
    with Machines(1 + most) as machines, ExitStack() as stack:

        def process(number: int, role: str) -> benchmark.Beside:
            request = {"role": role, "rank": number - 1, "host": machines.address(number)}
            beside = benchmark.Beside(
                spark, __name__, request, f"the {role} on machine {number}", machines.command(number)
            )
            return stack.enter_context(beside)

        cluster = _Cluster(process(0, "master"), [process(number + 1, "worker") for number in range(most)])
        for size in setting.sizes:
            costs[size] = _costs_beside(spark, size, setting)
            for bandwidth, count in product(setting.bandwidth, setting.workers):
                machines.limit(rates[bandwidth])
                for exchange in setting.exchange:
                    cells.append(_cell(cluster, setting, costs[size], (size, bandwidth, count, exchange)))
            found = {
                "setting": {**asdict(setting), **benchmark.where(spark)},
                "costs": {name: asdict(each) for name, each in costs.items()},
                "cells": [asdict(cell) for cell in cells],
            }
            benchmark.write_json(json_file, found)
    return found


def _cell(cluster: "_Cluster", setting: Setting, costs: Costs, of: tuple[str, str, int, str]) -> Cell:
    size, bandwidth, count, exchange = of
    plan = Plan(count, bits_per_second(bandwidth) / 8, owners=exchange == "workers")
    model = step_on_one_machine(costs, plan, benchmark.cores())
    seconds = processor = memory = None
    if model <= LONGEST:
        steps, memory = cluster.run(size, count, exchange, setting.rounds, costs.compute)
        seconds = benchmark.spread([step for step, _ in steps])
        processor = statistics.median(each for _, each in steps)
    cell = Cell(size, bandwidth, count, exchange, costs.compute, model, seconds, processor, memory)
    _log.info("%s, %s, %d workers, %s: %s", size, bandwidth, count, exchange, _said(asdict(cell)))
    return cell


def _costs_beside(spark: SparkSession, size: str, setting: Setting) -> Costs:
    """What training costs with a network of this size: in a process of its own, which leaves no memory behind."""
    computing = {"image_size": setting.image_size, "batch_size": setting.batch_size}
    request = {"role": "costs", "size": size, **computing}
    with benchmark.Beside(spark, __name__, request, "the measurement of costs") as beside:
        return Costs(batch_size=setting.batch_size, **beside.hear())


class _Cluster:
    """The processes on the machines."""

    def __init__(self, master: benchmark.Beside, workers: Sequence[benchmark.Beside]) -> None:
        self._master, self._workers = master, workers

    def run(
        self, size: str, count: int, exchange: str, rounds: int, sleep: float
    ) -> tuple[list[tuple[float, float]], dict[str, float]]:
        """Of each step that counts its seconds, and those of a processor that one worker spends on it; the memory."""
        warm = _WARM
        if exchange != "driver":
            # Workers that average among themselves hand in their state after 1 step, after 2 more, after 4 more:
            # what counts lies within one such piece.
            while warm < rounds:
                warm = 2 * warm + 1
        steps = warm + rounds + 1
        self._master.say(json.dumps({"size": size, "workers": count, "exchange": exchange, "steps": steps}))
        task = self._master.hear()
        for process in self._workers[:count]:
            process.say(json.dumps({"task": task, "sleep": sleep, "steps": steps}))
        with ThreadPoolExecutor(count + 1) as pool:
            heard = [pool.submit(process.hear) for process in (self._master, *self._workers[:count])]
            done, _ = wait(heard[1:], return_when=FIRST_EXCEPTION)
            failed = [each for each in done if each.exception() is not None]
            if failed:
                wait(heard, _WORDS_SECONDS)  # what goes wrong in one ends the others' connections
                errors = [error for each in heard if each.done() and (error := each.exception()) is not None]
                for process in (self._master, *self._workers):
                    process.kill()
                raise min(errors, key=lambda error: "ConnectionError" in str(error))
            self._master.say()  # they have ended
            memory = {"master": heard[0].result(), "worker": max(each.result()[1] for each in heard[1:])}
        slept: list[tuple[float, float]] = heard[1].result()[0]
        spent = [(then - now, later - before) for (now, before), (then, later) in pairwise(slept[warm:])]
        return spent, memory


# What is printed.


def measured(spark: SparkSession, setting: Setting, json_file: str) -> str:
    """Measure, and what to say of it: see `measure` and `report`."""
    return report(measure(spark, setting, json_file))


def report(found: Mapping[str, Any]) -> str:
    """What `measure` returned, as tables for a person to read."""
    setting = found["setting"]
    opening = (
        f"Steps on a narrow network: master and workers are processes of this machine ({setting['driver_cores']} cores,"
        f" {setting['driver']['cpu']}), each in a network namespace whose link lets pass so much in each direction."
        " Workers do not compute: they sleep for as long as a step of a real network of about that size took one of"
        f" them, alone, in one thread ({setting['batch_size']} images of {setting['image_size']}x"
        f"{setting['image_size']}, float32). {setting['rounds']} steps of each, medians."
    )
    computed = [["network", "computing measured of", "ms of a step"]]
    computed += [
        [name, SIZES[name].network, f"{costs['compute'] * 1e3:,.0f}"]
        for name, costs in found["costs"].items()
    ]
    tables = [display.aligned(computed, "<<>"), display.aligned(_rows(found["cells"]), "<>><>>>>>>>")]
    closing = (
        "model: of machines that share these cores. ms of CPU: that one worker spends on a step"
        " beside its computing. MB: of the driver, and of a worker, at most, with the network and Adam's two slots for"
        " each of its weights, above what the process takes without. Workers that average among themselves also"
        " hand in their state now and then, which is not in a step."
        f" Left out (-): where a step would take more than {LONGEST:.0f} s by the model."
    )
    return "\n\n".join([benchmark.prose(opening), *tables, benchmark.prose(closing)])


def _rows(cells: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    heads = [
        "network",
        "bandwidth",
        "workers",
        "exchange",
        "s of a step",
        "model",
        "measured/model",
        "ms of CPU",
        "driver MB",
        "worker MB",
    ]
    rows = [[*heads, "times driver"]]
    of_driver = {
        (cell["size"], cell["bandwidth"], cell["num_workers"]): cell["seconds"]
        for cell in cells
        if cell["exchange"] == "driver"
    }
    for cell in cells:
        place = (cell["size"], cell["bandwidth"], cell["num_workers"])
        row = [place[0], place[1], str(place[2]), cell["exchange"]]
        seconds = cell["seconds"]
        if seconds is None:
            rows.append([*row, "-", f"{cell['model']:,.2f}", *"-----"])
            continue
        median, driver = seconds["median"], of_driver.get(place)
        numbers = [f"{median:,.2f}", f"{cell['model']:,.2f}", f"{median / cell['model']:.2f}"]
        times = "" if driver is None or cell["exchange"] == "driver" else f"{driver['median'] / median:.2f}"
        numbers += [f"{cell['processor'] * 1e3:,.0f}"]
        numbers += [f"{cell['memory'][name]:,.0f}" for name in ("master", "worker")]
        rows.append([*row, *numbers, times])
    return rows


def _said(cell: Mapping[str, Any]) -> str:
    if cell["seconds"] is None:
        return f"left out, {cell['model']:.0f} s a step by the model"
    return f"{cell['seconds']['median']:.3f} s a step, {cell['model']:.3f} s by the model"


# In the processes.


class _Asleep(worker.Computation):
    """A worker that sleeps instead of computing, and hands in a drawn gradient.

    Args:
        seconds: To sleep.
        slept: Of each time is told when it began, and how long the process had computed by then, in seconds.
        recipe: See `worker.Computation`.
        begin: The same.
        tf: The same.
    """

    def __init__(
        self,
        seconds: float,
        slept: list[tuple[float, float]],
        recipe: worker.Recipe,
        begin: Begin,
        tf: Any,
    ) -> None:
        super().__init__(recipe, begin, tf)
        rng = np.random.default_rng(0)
        drawn = rng.standard_normal(self.vectors.model_layout.size, np.float32) * np.float32(1e-4)
        answer = tf.constant(drawn), tf.constant(1.0), tf.zeros([0], tf.float64)

        def sleep(*_inputs: Any) -> tuple[Any, Any, Any]:
            slept.append((time.perf_counter(), time.process_time()))
            time.sleep(seconds)
            return answer

        self._gradient = sleep


class _Remote:
    """Workers that another process starts. A `launcher.Launcher`, and the attempt.

    Args:
        host: Address of the master.
        folder: Where the task lies for them: as text it would take more memory than the training.
    """

    def __init__(self, host: str, folder: Path) -> None:
        self.addresses = (host, host)
        self._path = folder / "task"

    def slots(self) -> int:
        """Not asked: the number of workers stays."""
        return 0

    def launch(self, task: worker.TrainTask, ended: Ended) -> Attempt:
        """Say what the workers are to do."""
        with self._path.open("wb") as file:
            pickle.dump(task, file)
        benchmark.said(str(self._path))
        return self

    def cancel(self) -> None:
        """Whoever has started them ends them."""

    def join(self, seconds: float) -> bool:
        """It is over when whoever has started them says so."""
        benchmark.heard()
        return True


def _stand_in(size: str) -> Any:
    """A network of so many parameters, in a few matrices; nothing is computed with it."""
    import keras

    width = math.isqrt(SIZES[size].parameters // 4)
    layers = [keras.layers.Dense(width) for _ in range(5)]
    network = keras.Sequential([keras.Input((width,)), *layers[:4]])
    network.compile(optimizer="adam", loss="mean_squared_error")
    return network


class _Memory:
    """The memory of this process, in MB above what it has now."""

    def __init__(self) -> None:
        self._base = _kilobytes("VmRSS")

    def forget(self) -> None:
        """What counts begins now."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def most(self) -> float:
        """That it has had at most since then."""
        return (_kilobytes("VmHWM") - self._base) / 1024


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _be_master(request: Mapping[str, Any]) -> None:
    runtime.start(benchmark.cores())
    with tempfile.TemporaryDirectory() as folder:
        remote, memory = _Remote(str(request["host"]), Path(folder)), _Memory()
        while line := benchmark.heard():
            memory.forget()
            _train(remote, json.loads(line))
            benchmark.said(memory.most())


def _say_costs(request: Mapping[str, Any]) -> None:
    """The fields of `Costs` but for the batch: see `scale`."""
    tf, size = runtime.start(benchmark.cores()), str(request["size"])
    from seedlings_spark.training.master import Master

    compute = _seconds_of_step(SIZES[size], int(request["image_size"]), int(request["batch_size"]), tf)
    master = Master(_stand_in(size))
    found = scale.costs_of_master(master)
    # Both ends at once, in this process: either has half of it. A worker also takes the weights over.
    take = scale.seconds_of_exchange(master.weights()) / 2
    exchange = {"take": take, "exchange": take + found["adopt"] / 3, "cores": benchmark.cores()}
    benchmark.said({**found, **exchange, "compute": compute})


def _train(remote: _Remote, asked: Mapping[str, Any]) -> None:
    from seedlings_spark.training import network as carried
    from seedlings_spark.training import optimizer as optimizers
    from seedlings_spark.training.engine import Engine, RunOptions
    from seedlings_spark.training.master import build_metrics

    network = _stand_in(str(asked["size"]))
    recipe = worker.Recipe(
        num_shards=int(asked["workers"]),
        network=carried.to_bytes(network),
        loss="mean_squared_error",
        metrics=[],
        optimizer=optimizers.to_config(network.optimizer),
        labels="number",
        num_classes=0,
        row_shape=tuple(network.input_shape[1:]),
        row_dtype="float32",
        augmentation=None,
        batch_size=1,
        seed=0,
        threads=1,
        budget_bytes=10**8,
    )
    build_metrics(network, np.zeros((2, 1)))
    options = RunOptions(
        "synchronous",
        "batch",
        num_epochs=1,
        num_workers=int(asked["workers"]),
        exchange=str(asked["exchange"]),
    )
    Engine(options, recipe, network, remote).run()
    gc.collect()  # networks refer to themselves: those of cells that are over would fill the memory


def _be_worker(request: Mapping[str, Any]) -> None:
    tf = runtime.start(1)
    rank, memory = int(request["rank"]), _Memory()
    while line := benchmark.heard():
        asked = json.loads(line)
        task: worker.TrainTask = pickle.loads(Path(asked["task"]).read_bytes())
        rows = _rows_of(rank, int(asked["steps"]), task.recipe.row_shape[0])
        slept: list[tuple[float, float]] = []
        memory.forget()
        worker.work(task, rank, 0, rows, tf, make=partial(_Asleep, float(asked["sleep"]), slept))
        gc.collect()
        benchmark.said((slept, memory.most()))


def _rows_of(rank: int, count: int, width: int) -> Iterator[pa.RecordBatch]:
    features = pa.array(np.zeros(count * width))
    yield pa.RecordBatch.from_pydict(
        {
            worker.SHARD: np.full(count, rank, np.int32),
            worker.FEATURES: pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * width, features),
            worker.LABEL: np.zeros(count),
            worker.WEIGHT: np.ones(count),
            worker.HELD_OUT: np.zeros(count, bool),
        }
    )


def _seconds_of_step(size: Size, image_size: int, batch_size: int, tf: Any) -> float:
    """Of a processor, for a gradient of a real network of that size."""
    import keras

    shape = (image_size, image_size, 3)
    if size.classes:
        network = getattr(keras.applications, size.network)(
            weights=None, input_shape=shape, classes=size.classes
        )
    else:
        network = benchmark.network(size.network, image_size)
    pictures = np.stack([benchmark.draw(index, image_size)[0] for index in range(batch_size)])
    labels = np.arange(batch_size) % benchmark.NUM_CLASSES
    variables = [variable.value for variable in network.trainable_variables]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def gradient(features: Any, classes: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = network(features, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(classes, outputs))
        return tape.gradient(loss, variables)

    features = tf.constant(pictures, "float32")
    seconds = []
    for _ in range(5):
        started = time.process_time()  # as long as it takes with one core for itself
        gradient(features, labels)[0].numpy()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    _request = json.loads(benchmark.heard())
    {"master": _be_master, "worker": _be_worker, "costs": _say_costs}[_request["role"]](_request)
