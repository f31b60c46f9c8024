"""Updates on the wire: a worker that dies at any point of an exchange, and what its successor is told."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from seedlings_spark.training.asynchronous import FreeRunning
from seedlings_spark.training.client import ParameterClient, RefusedError
from seedlings_spark.training.coordination import Size, WorkerGroup
from seedlings_spark.training.master import Master, build_metrics
from seedlings_spark.training.messages import Begin, Exchanged, Steps, Work
from seedlings_spark.training.server import Listener, ParameterServer
from seedlings_spark.training.updates import Center, Snapshots
from seedlings_spark.training.wire import Credentials, Kind, Message, send
from tests.conftest import HANG_SECONDS

ROOT = Path(__file__).parents[2]
RUN = "this run"
NUM_UPDATES = 5
ROWS: dict[str, Any] = {"train": 20, "held_out": 0, "fingerprint": ""}
PART: dict[str, Any] = {"samples": 4, "loss": 1.0, "metrics": []}
# A worker process that pushes its second update and is killed before it can hear that it has been taken.
WORKER = """
import os, signal, sys
from seedlings_spark.training import client
from seedlings_spark.training.wire import Credentials, Kind, Message, send

port, steps = int(sys.argv[1]), int(sys.argv[2])
credentials = Credentials(sys.stdin.buffer.read())
worker = client.ParameterClient(("127.0.0.1", port), credentials)
rows = {"train": 20, "held_out": 0, "fingerprint": ""}
worker.open({"run": "this run", "generation": 0, "rank": 0, "shards": [rows]})
worker.expect(1 << 20)
work = worker.ready()
for number in range(steps):
    header = {"number": work.header["number"], "seconds": 0.1}
    header |= {"parts": [{"samples": 4, "loss": 1.0, "metrics": []}]}
    payload = bytes(work.payload)
    if number == steps - 1:
        send(worker._connection, Message(Kind.RESULT, header, payload))
        os.kill(os.getpid(), signal.SIGKILL)
    work = worker.result(header, payload)
"""


class NoWorkers:
    """An attempt of which the test makes the workers."""

    def cancel(self) -> None: ...

    def join(self, seconds: float) -> bool:
        return True


class Bench:
    """A master that counts, and its server."""

    def __init__(self) -> None:
        network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
        network.compile("sgd", "sparse_categorical_crossentropy")
        build_metrics(network, np.zeros(2, np.int64))
        self.master = Master(network)
        self.credentials = Credentials.make()
        self.group = WorkerGroup(RUN, Size(1, 1), 1, lambda generation, num_workers, ended: NoWorkers(), 0)
        center = Center(self.master, rule="downpour", elasticity=0.5, local=True, locked=True)
        self.running = FreeRunning(self.group, center)
        self.port = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator["Bench"]:
        with ParameterServer(self.running, Listener("127.0.0.1"), self.credentials) as server:
            self.port = server.port
            self.group.start()
            rounds = [[(number, number + 1) for number in range(NUM_UPDATES)]]
            self.running.begin(Begin(0, "float32", Exchanged.WEIGHTS), rounds)
            self.running.start(Snapshots(4 * NUM_UPDATES), 1)
            try:
                yield self
            finally:
                self.running.stop()

    def worker(self) -> ParameterClient:
        client = ParameterClient(("127.0.0.1", self.port), self.credentials)
        client.open({"run": RUN, "generation": 0, "rank": 0, "shards": [ROWS]})
        client.expect(1 << 20)
        return client

    def applied(self) -> int:
        with self.group.condition:
            return sum(self.running._turns.applied)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench().serving() as bench:
        yield bench


def _result(work: Message) -> dict[str, Any]:
    return {
        "number": work.header["number"],
        "parts": [PART],
        "seconds": 0.1,
    }


def _plus_one(work: Message) -> bytes:
    return (np.frombuffer(work.payload, np.float32) + 1).tobytes()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_worker_killed_between_push_and_acknowledgement_is_followed_by_the_next_update(
    bench: Bench, steps: int
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", WORKER, str(bench.port), str(steps)],
        input=bench.credentials.pem,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=HANG_SECONDS,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    with bench.worker() as successor:
        work = successor.ready()
        # The update that was pushed counts, though nobody was told.
        found = Work.parse(work.header)
        assert found.number == f"update {steps}" and found.steps == Steps(0, steps, steps + 1)
        while work.kind == Kind.WORK and bench.applied() < NUM_UPDATES - 1:
            work = successor.result(_result(work), bytes(work.payload))
        assert bench.applied() == NUM_UPDATES - 1
    assert bench.running.updates().updates == NUM_UPDATES - 1


def test_an_update_that_comes_twice_is_taken_once(bench: Bench) -> None:
    before = bench.master.weights()
    with bench.worker() as worker:
        work = worker.ready()
        again = bytes(_plus_one(work))
        header = _result(work)
        work = worker.result(header, again)
        with pytest.raises(RefusedError):
            worker.result(header, again)  # the same message, for example from a copy on the wire
    assert bench.applied() == 1
    with bench.worker() as successor:
        work = successor.ready()
        assert work.header["number"] == "update 1"
        np.testing.assert_array_equal(np.frombuffer(work.payload, np.float32), before + 1)


def test_whoever_comes_later_takes_the_place_and_the_earlier_one_is_refused(bench: Bench) -> None:
    """As a speculative copy does, or an attempt that was believed to be dead."""
    with bench.worker() as first:
        work = first.ready()
        with bench.worker() as second:
            assert second.ready().header["number"] == work.header["number"] == "update 0"
            with pytest.raises((RefusedError, OSError)):
                first.result(_result(work), _plus_one(work))
            assert bench.applied() == 0


def test_half_an_update_is_none(bench: Bench) -> None:
    worker = bench.worker()
    work = worker.ready()
    message = Message(Kind.RESULT, _result(work), _plus_one(work))
    sent: list[bytes] = []

    class Tape:
        def sendall(self, data: bytes) -> None:
            sent.append(bytes(data))

    send(Tape(), message)  # type: ignore[arg-type]
    frame = b"".join(sent)
    worker._connection.sendall(frame[:-1])
    worker._connection.shutdown(socket.SHUT_RDWR)
    with bench.worker() as successor:
        assert successor.ready().header["number"] == "update 0"
    assert bench.applied() == 0


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"parts": [{**PART, **changed}]}
            for changed in (
                {"samples": -1},
                {"samples": "4"},
                {"samples": True},
                {"loss": "small"},
                {"metrics": [[1.0]]},
                {"metrics": "none"},
                {"bad_step": "first"},
                {"is_finite": 1},
                {"counters": 3},
                {"counts": [["many"]]},
            )
        ),
        *({"parts": [{name: PART[name] for name in PART if name != missing}]} for missing in PART),
        {"parts": []},
        {"parts": [PART, PART]},
        {"parts": ["all"]},
        {"parts": {}},
        {"seconds": None},
        {"seconds": "long"},
        {"number": "update 1"},
        {"number": ["update 0"]},
        {"payload": 0},
        {"payload": 5},
        {"payload": 8},
    ],
    ids=str,
)
def test_a_result_that_is_none_is_refused_and_the_next_worker_goes_on(
    bench: Bench, changed: dict[str, Any]
) -> None:
    with bench.worker() as worker:
        work = worker.ready()
        payload = bytes(changed["payload"]) if "payload" in changed else _plus_one(work)
        with pytest.raises((RefusedError, OSError)):
            worker.result({**_result(work), **changed}, payload)
    for missing in ("number", "parts", "seconds"):
        with bench.worker() as worker:
            header = _result(worker.ready())
            del header[missing]
            with pytest.raises((RefusedError, OSError)):
                worker.result(header, bytes(8 * 4))
    with bench.worker() as successor:
        assert successor.ready().header["number"] == "update 0"
    assert bench.applied() == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"run": "another"},
        {"run": None},
        {"generation": 1},
        {"generation": "0"},
        {"rank": 1},
        {"rank": -1},
        {"rank": "0"},
        {"rank": True},
        {"shards": []},
        {"shards": "all"},
        {"shards": [ROWS, ROWS]},
        {"shards": [{**ROWS, "train": "all"}]},
        {"shards": [{**ROWS, "of_class": {"0": "all"}}]},
        {"shards": [{**ROWS, "of_quarter": [[1, 2, 3, "all"]]}]},
        {"shards": [{"train": 20}]},
        {"environment": "mine"},
    ],
    ids=str,
)
def test_who_says_something_else_than_a_worker_of_this_run_is_refused(
    bench: Bench, changed: dict[str, Any]
) -> None:
    with (
        ParameterClient(("127.0.0.1", bench.port), bench.credentials) as client,
        pytest.raises(RefusedError),
    ):
        client.open({"run": RUN, "generation": 0, "rank": 0, "shards": [ROWS], **changed})
    with bench.worker() as worker:
        assert worker.ready().header["number"] == "update 0"
