"""How fast training is with 1, 2 and 4 workers here, and what a model says of more of them elsewhere.

Measured are synchronous runs that exchange at every batch; and of the driver, alone, what it costs to take one worker's
vector (seconds of one core for the encrypted exchange of a gradient for weights), to merge it, and to apply one update.
From these numbers `training.capacity` predicts other numbers of workers, other networks and other modes. How far the
prediction is to be trusted is seen where both are known: at the largest number of workers that was measured.

Not measured are machines at a distance: the latency between two of them is assumed. On one machine, workers beyond its
cores take turns, and the driver's work takes its turn too.
"""

import dataclasses
import json
import logging
import math
import queue
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from seedlings_spark import benchmark, display
from seedlings_spark.benchmark import spread, train
from seedlings_spark.cluster import runtime, session
from seedlings_spark.errors import OptionError
from seedlings_spark.training import rules
from seedlings_spark.training.capacity import Costs, Plan, Prediction, predict, predict_on_one_machine
from seedlings_spark.training.client import ParameterClient
from seedlings_spark.training.server import Listener, ParameterServer
from seedlings_spark.training.tree import Mean, mean_of
from seedlings_spark.training.wire import Credentials, Kind, Message

_log = logging.getLogger(__name__)

MEASURED = (1, 2, 4)
PREDICTED = (2, 4, 8, 16, 32, 64, 128, 256)
# In Gb/s.
NETWORKS = (1, 10, 100)
FREQUENCIES = ("batch", "10", "epoch")
# Of the predictions at frequency `epoch`: images of the corpus, shared by the workers.
CORPUS_IMAGES = 100_000
# Where remedies are compared.
_REMEDIED_WORKERS = 64
REMEDIES: Mapping[str, Mapping[str, Any]] = {
    "exchange driver": {},
    "exchange workers": {"owners": True},
    "4 shards of the server, on executors": {"shards": 4},
    "16 shards": {"shards": 16},
    "a ring of the workers": {"is_ring": True},
    "vectors in bfloat16 (2x)": {"compression": 2.0},
    "vectors in int8 (4x)": {"compression": 4.0},
    "16 shards and bfloat16": {"shards": 16, "compression": 2.0},
    "a ring and bfloat16": {"is_ring": True, "compression": 2.0},
}
# Of the driver alone.
_EXCHANGES, _REPEATS, _VECTORS = 50, 15, 8


@dataclass(frozen=True)
class Measurement:
    """What was measured of one run.

    Args:
        round: From 1.
        num_workers: Number of workers of the run.
        precision: That was computed in.
        images_per_second: From the end of the first epoch to that of the last.
        compute: Seconds that a worker computed for one step, on the average.
        outside: Seconds that it spent on one exchange: its own work, the driver's, and waiting.
    """

    round: int
    num_workers: int
    precision: str
    images_per_second: float
    compute: float
    outside: float


def measure_scaling(
    spark: SparkSession, training: train.Training, *, rounds: int, folder: str, json_file: str = ""
) -> dict[str, Any]:
    """Train with 1, 2 and 4 workers in turns, as far as there are slots, and predict the rest.

    Args:
        spark: The session.
        training: What is trained; its number of workers does not count.
        rounds: How often.
        folder: Where the drawn images are kept meanwhile, on a file system that the executors read too.
        json_file: Written after each round with what there is by then; "" for none.

    Returns:
        What `summary` makes of it, with the setting.

    Raises:
        OptionError: The images are too few.
    """
    slots = session.num_slots(spark)
    counts = [count for count in MEASURED if count <= slots]
    least = 2 * counts[-1] * training.batch_size
    if training.num_images < least:
        raise OptionError(
            f"--num-images {training.num_images} for {counts[-1]} workers and a batch of {training.batch_size}",
            f"at least {least}, two batches of each worker",
            "Use more images, or a smaller --batch-size",
        )
    if counts != list(MEASURED):
        _log.info(
            "%d slots: more workers are left out; on one machine --master 'local[%d]' lets them share cores",
            slots,
            MEASURED[-1],
        )
    shared = session.is_local(spark) and counts[-1] * session.task_cpus(spark) > benchmark.cores()
    if shared:
        _log.warning("%d workers on %d cores take turns", counts[-1], benchmark.cores())
    setting = {
        **dataclasses.asdict(training),
        **benchmark.where(spark),
        "workers": counts,
        "is_local": session.is_local(spark),
        "corpus_images": CORPUS_IMAGES,
    }
    of_driver = _costs_of_driver(spark, training)
    measurements: list[Measurement] = []
    found: dict[str, Any] = {}
    with train.tables(spark, training, folder, vectors=False) as (images, _):
        for number in range(1, rounds + 1):
            for count in counts:
                of_run = dataclasses.replace(training, num_workers=count)
                fit = train.fit(spark, of_run, train.CONTESTANTS["ours"], images, None)
                measurements.append(measurement(number, of_run, fit))
                _log.info(
                    "round %d of %d, %d workers: %.0f images/s",
                    number,
                    rounds,
                    count,
                    measurements[-1].images_per_second,
                )
            found = summary(setting, of_driver, measurements)
            benchmark.write_json(json_file, found)
    return found


# Pure: from what was seen to what is said.


def measurement(number: int, training: train.Training, fit: train.Fit) -> Measurement:
    """The numbers of a run."""
    exchanges = training.num_workers * fit.steps * (training.epochs - 1)
    return Measurement(
        round=number,
        num_workers=training.num_workers,
        precision=fit.precision,
        images_per_second=training.num_images * (training.epochs - 1) / (fit.ends[-1] - fit.ends[0]),
        compute=fit.seconds_of_workers["compute"] / exchanges,
        outside=fit.seconds_of_workers["exchange"] / exchanges,
    )


def costs(of_driver: Mapping[str, Any], measurements: Sequence[Measurement], batch_size: int) -> Costs:
    """What training costs: the driver's part as measured alone, a worker's from the runs with one worker."""
    alone = [one for one in measurements if one.num_workers == 1]
    compute, outside = (
        statistics.median(getattr(one, name) for one in alone) for name in ("compute", "outside")
    )
    of_master = sum(float(of_driver[name]) for name in ("take", "merge", "apply"))
    return Costs(compute=compute, exchange=max(0.0, outside - of_master), batch_size=batch_size, **of_driver)


def plans(num_workers: int, gigabits: float, batch_size: int) -> Iterator[tuple[str, str, Plan]]:
    """Mode, frequency and plan of all that is predicted for so many workers on such a network."""
    steps = {"batch": 1, "10": 10, "epoch": math.ceil(CORPUS_IMAGES / (num_workers * batch_size))}
    for is_synchronous, frequency in product((True, False), FREQUENCIES):
        mode = "synchronous" if is_synchronous else "asynchronous"
        yield mode, frequency, Plan(num_workers, gigabits * 1e9 / 8, steps[frequency], is_synchronous)


def summary(
    setting: Mapping[str, Any], of_driver: Mapping[str, Any], measurements: Sequence[Measurement]
) -> dict[str, Any]:
    """All numbers, ready for JSON: the setting, costs, what was measured, what is predicted, remedies, each run.

    Args:
        setting: What was measured where.
        of_driver: The fields of `Costs` that are the driver's.
        measurements: In the order in which they were taken.
    """
    batch_size = int(setting["batch_size"])
    found = costs(of_driver, measurements, batch_size)
    measured = []
    one_worker = statistics.median(one.images_per_second for one in measurements if one.num_workers == 1)
    for count in setting["workers"]:
        own = [one for one in measurements if one.num_workers == count]
        speeds = spread([one.images_per_second for one in own])
        cores = setting["driver_cores"] // setting["task_cpus"] if setting["is_local"] else count
        model = predict_on_one_machine(found, count, max(1, cores))
        measured.append(
            {
                "num_workers": count,
                **{
                    name: statistics.median(getattr(one, name) for one in own)
                    for name in ("compute", "outside")
                },
                "images_per_second": speeds,
                "speedup": speeds["median"] / one_worker,
                "model": model,
                "measured_by_model": speeds["median"] / model,
            }
        )
    predictions = [
        {
            "mode": mode,
            "frequency": frequency,
            "gigabits": gigabits,
            "num_workers": count,
            **_numbers(found, plan),
        }
        for gigabits, count in product(NETWORKS, PREDICTED)
        for mode, frequency, plan in plans(count, gigabits, batch_size)
    ]
    remedies = [
        {"remedy": text, "gigabits": gigabits, "num_workers": _REMEDIED_WORKERS, **_numbers(found, plan)}
        for (text, changes), gigabits in product(REMEDIES.items(), NETWORKS)
        for plan in [Plan(_REMEDIED_WORKERS, gigabits * 1e9 / 8, **changes)]
    ]
    return {
        "setting": dict(setting),
        "costs": dataclasses.asdict(found),
        "measured": measured,
        "predictions": predictions,
        "remedies": remedies,
        "measurements": [dataclasses.asdict(one) for one in measurements],
    }


def _numbers(of: Costs, plan: Plan) -> dict[str, Any]:
    found: Prediction = predict(of, plan)
    return {"steps": plan.steps, **dataclasses.asdict(found)}


def report(found: Mapping[str, Any]) -> str:
    """What `summary` returned, as tables for a person to read."""
    setting = found["setting"]
    cores, most = setting["driver_cores"], max(setting["workers"])
    rounds = max(one["round"] for one in found["measurements"])
    size = setting["image_size"]
    opening = (
        f"{setting['network']} network, {setting['num_images']:,} images of {size}x{size}, {setting['epochs']} epochs,"
        f" {setting['batch_size']} images a worker and step, {rounds} round{'s' * (rounds != 1)}\n"
        f"{setting['master']}; the driver's machine: {cores} cores, {setting['driver']['cpu']}"
    )
    if setting["is_local"] and most * setting["task_cpus"] > cores:
        opening += f"\nmore workers than the {cores} cores take turns: they show the exchange, not a speedup"
    tables = [
        (_cost_rows(found["costs"]), "<>"),
        (_measured_rows(found["measured"]), ">" * 9),
        *[
            (_predicted_rows(found["predictions"], mode), "<" + ">" * 3)
            for mode in ("synchronous", "asynchronous")
        ],
        (_saturation_rows(found["predictions"]), "<" + ">" * 3),
        (_remedy_rows(found["remedies"]), "<" + ">" * 3),
    ]
    closing = (
        "of work: share of the speed that the workers would have if they only computed. Epoch: of a corpus of"
        f" {setting['corpus_images']:,} images.\n"
        "Asynchronous numbers are upper bounds. The latency is assumed; compression is said to cost one more pass over"
        " each vector; what large batches or short numbers do to accuracy is not in the model."
    )
    return "\n\n".join(
        [
            benchmark.prose(opening),
            *[display.aligned(rows, sides) for rows, sides in tables],
            benchmark.prose(closing),
        ]
    )


def _cost_rows(of: Mapping[str, Any]) -> list[list[str]]:
    milliseconds = {
        "compute": "a worker computes for one step",
        "exchange": "a worker's own part of an exchange",
        "take": "one core of the driver: to receive a worker's vector and send the next one",
        "merge": "the driver: to add a worker's vector to the mean",
        "apply": "the driver: one step of the optimizer",
        "adopt": "the driver: to take over a mean of states",
        "rule": "the driver: to apply an asynchronous worker's own steps",
        "latency": "between two machines (assumed)",
    }
    rows = [
        ["measured costs", "ms"],
        *([text, f"{of[name] * 1e3:.2f}"] for name, text in milliseconds.items()),
    ]
    rows.append(["vector of weights or gradient", f"{of['vector_bytes'] / 1e6:.2f} MB"])
    return [*rows, ["the same with the optimizer's slots", f"{of['state_bytes'] / 1e6:.2f} MB"]]


def _measured_rows(measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    heads = [
        "workers",
        "images/s",
        "min",
        "max",
        "speedup",
        "compute ms",
        "outside ms",
        "model",
        "measured/model",
    ]
    rows = [heads]
    for one in measured:
        speeds = [f"{one['images_per_second'][name]:,.0f}" for name in ("median", "min", "max")]
        parts = [f"{one[name] * 1e3:.1f}" for name in ("compute", "outside")]
        model = [f"{one['model']:,.0f}", f"{one['measured_by_model']:.2f}"]
        rows.append([str(one["num_workers"]), *speeds, f"{one['speedup']:.2f}", *parts, *model])
    return rows


def _said(one: Mapping[str, Any]) -> str:
    return f"{one['images_per_second']:,.0f} {one['efficiency']:.0%} {one['bound']}"


def _predicted_rows(predictions: Sequence[Mapping[str, Any]], mode: str) -> list[list[str]]:
    rows = [[f"{mode}: images/s, of work, bound, by workers", *(f"{gigabits} Gb/s" for gigabits in NETWORKS)]]
    chosen = {
        (one["frequency"], one["num_workers"], one["gigabits"]): one
        for one in predictions
        if one["mode"] == mode
    }
    for frequency, count in product(FREQUENCIES, PREDICTED):
        name = frequency if frequency in ("batch", "epoch") else f"{frequency} steps"
        said = [_said(chosen[frequency, count, gigabits]) for gigabits in NETWORKS]
        rows.append([f"{name if count == PREDICTED[0] else '':<9}{count:>4}", *said])
    return rows


def _saturated(one: Mapping[str, Any]) -> str:
    return f"{one['saturates_at']:,.0f}, {one['saturates']}"


def _saturation_rows(predictions: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["full from so many workers on, what is full", *(f"{gigabits} Gb/s" for gigabits in NETWORKS)]]
    for mode, frequency in product(("synchronous", "asynchronous"), FREQUENCIES):
        own = [one for one in predictions if (one["mode"], one["frequency"]) == (mode, frequency)]
        said = []
        for gigabits in NETWORKS:
            of_network = [one for one in own if one["gigabits"] == gigabits]
            # At frequency `epoch` a worker's steps, and so the point, depend on the number of workers.
            full = [one for one in of_network if one["num_workers"] >= one["saturates_at"]]
            if frequency != "epoch":
                said.append(_saturated(of_network[0]))
            else:
                said.append(f"{full[0]['num_workers']:,}, {full[0]['saturates']}" if full else "never here")
        rows.append([f"{mode}, {frequency}{' steps' * frequency.isdigit()}", *said])
    return rows


def _remedy_rows(remedies: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    heads = [f"{gigabits} Gb/s" for gigabits in NETWORKS]
    rows = [[f"synchronous, batch, {_REMEDIED_WORKERS} workers: images/s, of work, bound, full at", *heads]]
    for text in REMEDIES:
        said = [f"{_said(one)} {one['saturates_at']:,.0f}" for one in remedies if one["remedy"] == text]
        rows.append([text, *said])
    return rows


# The driver's part, in a process of its own.


class _Answering:
    """Answers every result with weights; a `server.Coordinator`.

    Args:
        weights: Bytes of a vector.
    """

    def __init__(self, weights: Any) -> None:
        self._weights = weights

    @property
    def max_payload_bytes(self) -> int:
        """The longest payload that a worker may send."""
        return int(self._weights.nbytes)

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is."""
        return object(), _queue(Message(Kind.BEGIN))

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """The worker wants its first work."""
        return _queue(Message(Kind.WORK, {}, self._weights))

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """The worker hands in a result."""
        return self.ready(ticket)

    def error(self, ticket: object, text: str) -> None:
        """The worker's own computation failed."""

    def lost(self, ticket: object, why: str) -> None:
        """The connection to the worker ended."""

    def stop(self) -> None:
        """There is nobody to tell."""


def _queue(message: Message) -> "queue.SimpleQueue[Message]":
    answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
    answers.put(message)
    return answers


def _costs_of_driver(spark: SparkSession, training: train.Training) -> dict[str, Any]:
    """The driver's fields of `Costs`, of a master and server in a process beside; this one is the worker."""
    credentials = Credentials.make()
    request = {
        "network": training.network,
        "image_size": training.image_size,
        "pem": credentials.pem.decode(),
    }
    with benchmark.Beside(spark, __name__, request, "the measurement of the driver's costs") as process:
        ready = process.hear()
        gradient = np.zeros(ready["vector_bytes"], np.uint8)
        with ParameterClient(("127.0.0.1", ready["port"]), credentials) as client:
            client.open({})
            client.expect(ready["vector_bytes"])
            client.ready()
            process.say()
            process.hear()  # its clock is running
            for number in range(_EXCHANGES):
                client.result({"number": number}, gradient)
            process.say()
            take = float(process.hear()) / _EXCHANGES
        of_driver = {name: ready[name] for name in ready if name != "port"}
        return {**of_driver, "take": take, "cores": benchmark.cores()}


def _serve(request: Mapping[str, Any]) -> None:
    """In a process of its own: what a master costs, and then a server for one worker."""
    runtime.start(benchmark.cores())
    import keras

    from seedlings_spark.training.master import Master

    network = benchmark.network(request["network"], int(request["image_size"]))
    network.compile(optimizer=keras.optimizers.Adam(), loss="sparse_categorical_crossentropy")
    master = Master(network)
    credentials = Credentials(request["pem"].encode())
    with ParameterServer(_Answering(master.weights()), Listener("127.0.0.1"), credentials) as server:
        benchmark.said({**costs_of_master(master), "port": server.port})
        benchmark.heard()
        before = time.process_time()  # of all threads
        benchmark.said("ready")
        benchmark.heard()
        benchmark.said(time.process_time() - before)


def costs_of_master(master: Any) -> dict[str, Any]:
    """Sizes of vectors, and what a `Master` does in one process without any network: fields of `Costs`."""
    weights, state = master.weights(), master.state()
    vectors = [weights + np.float32(number) for number in range(_VECTORS)]

    def of_one(node: range) -> Mean | None:
        return Mean(vectors[node.start], 1) if len(node) == 1 else None

    trainable = sum(master.model_layout.sizes[: len(master.vectors.trainable)])
    push = rules.Push(weights[:trainable], vectors[0][:trainable], vectors[1][:trainable], 10, 3, 0.1)
    return {
        "vector_bytes": weights.nbytes,
        "state_bytes": state.nbytes,
        "merge": _median_seconds(partial(mean_of, range(_VECTORS), of_one)) / _VECTORS,
        "apply": _median_seconds(partial(master.apply_gradient, np.zeros_like(weights))),
        "adopt": _median_seconds(partial(master.set_state, state)),
        "rule": _median_seconds(partial(rules.RULES[rules.DEFAULT], push)),
    }


def seconds_of_exchange(weights: Any) -> float:
    """Of one core, for both ends of the encrypted exchange of a vector for another one."""
    credentials = Credentials.make()
    with (
        ParameterServer(_Answering(weights), Listener("127.0.0.1"), credentials) as server,
        ParameterClient(("127.0.0.1", server.port), credentials) as client,
    ):
        client.open({})
        client.expect(weights.nbytes)
        client.ready()
        before = time.process_time()  # of all threads
        for _ in range(_REPEATS):
            client.result({}, weights)
        return (time.process_time() - before) / _REPEATS


def _median_seconds(work: Callable[[], object]) -> float:
    """Of some times, after two that do not count."""
    taken = []
    for _ in range(_REPEATS + 2):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


if __name__ == "__main__":
    _serve(json.loads(benchmark.heard()))
