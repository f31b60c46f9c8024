"""The wire, the server and the client over loopback, and what somebody without the credentials can do: nothing."""

import contextlib
import json
import queue
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedlings_spark.errors import ClusterError
from seedlings_spark.training import client as client_module
from seedlings_spark.training import peers as peers_module
from seedlings_spark.training import server as server_module
from seedlings_spark.training.client import ParameterClient, RefusedError, open_link
from seedlings_spark.training.peers import LostPeerError, Peers
from seedlings_spark.training.server import Listener, ParameterServer, Superseded
from seedlings_spark.training.tree import Mean, mean_of, nodes_within, shards_of
from seedlings_spark.training.weights import Layout
from seedlings_spark.training.wire import (
    MAX_HEADER_BYTES,
    Credentials,
    Kind,
    Message,
    ProtocolError,
    outgoing,
    receive,
    secured,
    send,
)
from tests.conftest import HANG_SECONDS, with_all

ROOT = Path(__file__).parents[2]
# What a worker says of itself, to the master or to another worker.
OPENED = {"run": "this", "generation": 0, "rank": 1}


class Echo:
    """Hands every result back as work; remembers what it was told."""

    max_payload_bytes = 1024

    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.results: list[bytes] = []
        self.lost_workers: list[str] = []
        self.errors: list[str] = []
        self.held: queue.SimpleQueue[Message] | None = None
        self.port = 0

    def open(self, header: Any) -> tuple[object, "queue.SimpleQueue[Message]"]:
        if header.get("run") != "this":
            raise Superseded("another run")
        self.opened.append(header)
        return object(), self._put(Message(Kind.BEGIN, {"steps": 3}))

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        return self._put(Message(Kind.WORK, {"number": 1}, b"weights"))

    def result(self, ticket: object, header: Any, payload: memoryview) -> "queue.SimpleQueue[Message]":
        self.results.append(bytes(payload))
        if header.get("wait"):
            self.held = queue.SimpleQueue()
            return self.held
        if header.get("last"):
            return self._put(Message(Kind.STOP))
        return self._put(Message(Kind.WORK, {"number": 2}, bytes(payload)))

    def error(self, ticket: object, text: str) -> None:
        self.errors.append(text)

    def lost(self, ticket: object, why: str) -> None:
        self.lost_workers.append(why)

    @staticmethod
    def _put(message: Message) -> "queue.SimpleQueue[Message]":
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
        answer.put(message)
        return answer

    def stop(self) -> None:
        pass

    def still_serves(self, address: tuple[str, int]) -> None:
        _still_serves(address)


LAYOUT = Layout(((4,),), "float32")


class OneOfTwo(Peers):
    """What other workers come to: worker 0 of 2, each of whom has a vector of four numbers."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener, CREDENTIALS, ("this", 0), 0)
        self.port = listener.port
        self.opened: list[Any] = []

    def _let_in(self, connection: socket.socket, opened: Any) -> bool:
        stays = super()._let_in(connection, opened)
        self.opened.append(opened)
        return stays

    def still_serves(self, address: tuple[str, int]) -> None:
        with Peers(Listener("127.0.0.1"), CREDENTIALS, ("this", 0), 1) as other:

            def mean(peers: Peers, numbers: list[float]) -> list[float]:
                peers.join([address, other.address], 2, LAYOUT)
                return peers.mean([Mean(np.float32(numbers), 1)])[0].tolist()

            with ThreadPoolExecutor(2) as pool:
                found = pool.map(mean, (self, other), ([1, 2, 3, 4], [3, 6, 9, 12]))
                assert list(found) == [[2, 4, 6, 8]] * 2


CREDENTIALS = Credentials.make()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture(params=["master", "worker"])
def attacked(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Behind each kind of port that a run opens."""
    listener, found = Listener("127.0.0.1"), Echo()
    if request.param == "master":
        with ParameterServer(found, listener, CREDENTIALS):
            found.port = listener.port
            yield found
    else:
        with OneOfTwo(listener) as peers:
            yield peers


@pytest.fixture
def port_of_attacked(attacked: Any) -> tuple[str, int]:
    return "127.0.0.1", attacked.port


@pytest.fixture
def address(echo: Echo) -> Iterator[tuple[str, int]]:
    with ParameterServer(echo, Listener("127.0.0.1"), CREDENTIALS) as server:
        yield "127.0.0.1", server.port


@contextlib.contextmanager
def _worker(address: tuple[str, int], run: str = "this") -> Iterator[ParameterClient]:
    with ParameterClient(address, CREDENTIALS) as client:
        client.open({**OPENED, "run": run})
        client.expect(1024)
        yield client


def _still_serves(address: tuple[str, int]) -> None:
    with _worker(address) as client:
        assert client.ready().header["number"] == 1
        assert bytes(client.result({}, b"vector").payload) == b"vector"


def _tls(address: tuple[str, int], credentials: Credentials = CREDENTIALS) -> ssl.SSLSocket:
    raw = socket.create_connection(address, timeout=10)
    return credentials.context(server=False).wrap_socket(raw)


def _closed(connection: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass
    return True


def test_a_client_without_credentials_gets_nothing(port_of_attacked: tuple[str, int], attacked: Any) -> None:
    with socket.create_connection(port_of_attacked, timeout=10) as plain:
        plain.sendall(b"GET /parameters HTTP/1.1\r\n\r\n")
        assert _closed(plain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        socket.create_connection(port_of_attacked, timeout=10) as raw,
    ):
        connection = context.wrap_socket(raw)
        send(connection, Message(Kind.OPEN, OPENED))
        receive(connection, bytearray(10))
    assert attacked.opened == []
    attacked.still_serves(port_of_attacked)


def test_a_client_with_credentials_of_another_run_gets_nothing(
    port_of_attacked: tuple[str, int], attacked: Any
) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        client = ParameterClient(port_of_attacked, Credentials.make())
        client.open(OPENED)
    assert attacked.opened == []
    attacked.still_serves(port_of_attacked)


def test_a_worker_does_not_talk_to_a_server_with_other_credentials() -> None:
    other = Echo()
    with ParameterServer(other, Listener("127.0.0.1"), Credentials.make()) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ParameterClient(("127.0.0.1", server.port), CREDENTIALS).open({"run": "this"})
        assert other.opened == []


def test_a_worker_of_another_run_is_refused(port_of_attacked: tuple[str, int], attacked: Any) -> None:
    with pytest.raises(RefusedError, match=r"another run|is over"), _worker(port_of_attacked, run="other"):
        pass
    attacked.still_serves(port_of_attacked)


def test_older_versions_of_tls_are_refused(port_of_attacked: tuple[str, int], attacked: Any) -> None:
    context = CREDENTIALS.context(server=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        socket.create_connection(port_of_attacked, timeout=10) as raw,
    ):
        context.wrap_socket(raw)
    attacked.still_serves(port_of_attacked)


def test_a_frame_cut_at_any_byte_leaves_the_others_alone(address: tuple[str, int], echo: Echo) -> None:
    sent: list[bytes] = []

    class Tape:
        def sendall(self, data: bytes) -> None:
            sent.append(bytes(data))

    send(Tape(), Message(Kind.RESULT, {"x": 1}, b"1234"))  # type: ignore[arg-type]
    frame = b"".join(sent)
    for length in range(len(frame)):
        with _tls(address) as connection:
            send(connection, Message(Kind.OPEN, {"run": "this"}))
            receive(connection, bytearray(100))
            connection.sendall(frame[:length])
    _still_serves(address)
    assert echo.results == [b"vector"]


NO_MESSAGES = [
    struct.pack(">4sBIQ", b"SDL1", 5, 0, 10 * 2**30),  # a payload of 10 GB
    struct.pack(">4sBIQ", b"SDL1", 5, MAX_HEADER_BYTES + 1, 0),
    struct.pack(">4sBIQ", b"HTTP", 5, 0, 0),
    struct.pack(">4sBIQ", b"SDL1", 99, 0, 0),
    struct.pack(">4sBIQ", b"SDL1", 5, 3, 0) + b"{x}",
    struct.pack(">4sBIQ", b"SDL1", 5, 2, 0) + b"[]",
    struct.pack(">4sBIQ", b"SDL1", 5, 40000, 0) + b"[" * 40000,
    struct.pack(">4sBIQ", b"SDL1", 2, 0, 0),  # BEGIN, from a worker
]


@pytest.mark.parametrize("frame", NO_MESSAGES)
def test_what_is_no_message_ends_its_connection_and_no_other(
    frame: bytes, address: tuple[str, int], echo: Echo
) -> None:
    with _tls(address) as connection:
        send(connection, Message(Kind.OPEN, {"run": "this"}))
        receive(connection, bytearray(100))
        connection.sendall(frame)
        assert _closed(connection)
    assert echo.results == [] and len(echo.lost_workers) == 1
    _still_serves(address)


def _part(header: Any, numbers: int = 2, kind: Kind = Kind.RESULT) -> bytes:
    return b"".join(outgoing(kind, json.dumps(header).encode(), np.ones(numbers, np.float32)))


@pytest.mark.parametrize(
    "frame",
    [
        *NO_MESSAGES,
        _part({"number": 1, "samples": [1]}),
        _part({"number": 0, "samples": [1, 1]}),
        _part({"number": 0, "samples": [-1]}),
        _part({"number": 0, "samples": [True]}),
        _part({"number": 0, "samples": "1"}),
        _part({"number": 0}),
        _part({}),
        _part({"number": 0, "samples": [1]}, numbers=1),
        _part({"number": 0, "samples": [1]}, numbers=3),
        _part({"number": 0, "samples": [1]}, kind=Kind.WORK),  # a mean before the part
        _part({"number": 0, "samples": [1]}) * 2,
        _part({"number": 0, "samples": [1]})[:-1],
    ],
)
def test_what_is_no_part_of_another_worker_ends_the_mean_and_names_both_ends(frame: bytes) -> None:
    with OneOfTwo(Listener("127.0.0.1")) as owner, open_link(owner.address, CREDENTIALS, OPENED) as link:
        owner.join([owner.address, ("127.0.0.1", 2)], 2, LAYOUT)
        link.sendall(frame)
        if frame == _part({"number": 0, "samples": [1]})[:-1]:
            link.close()
        ends = f"worker 0 at 127.0.0.1:{owner.port} and worker 1 at 127.0.0.1:2"
        with pytest.raises(LostPeerError, match=ends):
            owner.mean([Mean(np.zeros(4, np.float32), 1)])
        assert link.fileno() < 0 or _closed(link)


@pytest.mark.parametrize(
    ("num_workers", "num_shards", "size"), [(3, 8, 100_001), pytest.param(64, 64, 4_099, marks=with_all)]
)
def test_means_among_workers_have_the_bits_of_the_tree_and_one_thread_each(
    num_workers: int, num_shards: int, size: int
) -> None:
    rng, layout = np.random.default_rng(0), Layout(((size,),), "float32")
    steps = [
        [Mean(rng.standard_normal(size, np.float32), shard % 3) for shard in range(num_shards)]
        for _ in range(4)
    ]

    def below(step: list[Mean], node: range) -> Mean:
        return mean_of(node, lambda each: step[each.start] if len(each) == 1 else None)

    listeners = [Listener("127.0.0.1") for _ in range(num_workers)]
    together = threading.Barrier(num_workers)
    before = set(threading.enumerate())  # other tests' links may still be about to end

    def work(rank: int) -> list[bytes]:
        nodes = nodes_within(shards_of(rank, num_workers, num_shards), num_shards)
        with Peers(listeners[rank], CREDENTIALS, ("this", 0), rank) as peers:
            peers.join([("127.0.0.1", each.port) for each in listeners], num_shards, layout)
            found = []
            for number, step in enumerate(steps):
                mean, notes = peers.mean([below(step, node) for node in nodes], [rank, number])
                assert notes == [[each, number] for each in range(num_workers)]
                found.append(mean.tobytes())
            together.wait(HANG_SECONDS)
            threads = set(threading.enumerate()) - before
            links = [each for each in threads if each.name == "seedlings-links"]
            together.wait(HANG_SECONDS)
        assert len(links) == num_workers
        return found

    with ThreadPoolExecutor(num_workers) as pool:
        found = list(pool.map(work, range(num_workers)))
    expected = [below(step, range(num_shards)).vector.tobytes() for step in steps]
    assert found == [expected] * num_workers


def test_a_worker_that_does_not_come_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "_COME_SECONDS", 0.2)
    with (
        OneOfTwo(Listener("127.0.0.1")) as left,
        pytest.raises(LostPeerError, match=f"worker 0 at .*:{left.port} and worker 1 at other:2 .*not come"),
    ):
        left.join([left.address, ("other", 2)], 2, LAYOUT)


def test_a_worker_that_cannot_be_reached_is_named_with_its_port() -> None:
    with Listener("127.0.0.1") as taken:
        port = taken.port
    with (
        Peers(Listener("127.0.0.1"), CREDENTIALS, ("this", 0), 1) as worker,
        pytest.raises(LostPeerError, match=f"worker 1 at .* and worker 0 at 127.0.0.1:{port} .*refused"),
    ):
        worker.join([("127.0.0.1", port), worker.address], 2, LAYOUT)


@pytest.mark.parametrize("rank", [0, -1, True, "1", None])
def test_a_rank_that_is_no_other_workers_is_refused(rank: Any) -> None:
    with (
        OneOfTwo(Listener("127.0.0.1")) as owner,
        pytest.raises(RefusedError),
    ):
        open_link(owner.address, CREDENTIALS, {**OPENED, "rank": rank})


def test_a_payload_before_the_worker_has_said_who_it_is_is_refused(
    port_of_attacked: tuple[str, int], attacked: Any
) -> None:
    with _tls(port_of_attacked) as connection:
        send(connection, Message(Kind.OPEN, OPENED, b"payload"))
        assert _closed(connection)
    assert attacked.opened == []
    attacked.still_serves(port_of_attacked)


@contextlib.contextmanager
def _idle(address: tuple[str, int], count: int) -> Iterator[None]:
    """So many connections that say nothing."""
    held: list[socket.socket] = []
    try:
        held.extend(socket.create_connection(address, timeout=30) for _ in range(count))
        yield
    finally:
        for connection in held:
            connection.close()


def test_any_number_of_silent_connections_keeps_nobody_out(
    port_of_attacked: tuple[str, int], attacked: Any
) -> None:
    with _idle(port_of_attacked, 400):
        attacked.still_serves(port_of_attacked)


def test_a_worker_that_was_thrown_out_among_strangers_comes_again(
    port_of_attacked: tuple[str, int], attacked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four places before who one is is known, others take all, again and again."""
    monkeypatch.setattr(server_module, "_MAX_STRANGERS", 4)
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                socket.create_connection(port_of_attacked, timeout=30).close()
            time.sleep(0.002)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with _idle(port_of_attacked, 8):
            attacked.still_serves(port_of_attacked)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert len(attacked.opened) == 1


WITHOUT_DESCRIPTORS = """
import resource, sys
from tests.keras.test_parameter_server import CREDENTIALS, Echo
from seedlings_spark.training.server import Listener, ParameterServer
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
with ParameterServer(Echo(), Listener("127.0.0.1"), CREDENTIALS) as server:
    print(server.port, CREDENTIALS.pem.hex(), flush=True)
    sys.stdin.read()
"""


def test_a_server_that_has_no_descriptor_left_goes_on_when_it_has() -> None:
    program = [sys.executable, "-c", WITHOUT_DESCRIPTORS]
    with subprocess.Popen(
        program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port, pem = process.stdout.readline().split()
            address, credentials = ("127.0.0.1", int(port)), Credentials(bytes.fromhex(pem))
            with _idle(address, 120):
                for _ in range(2):
                    with ParameterClient(address, credentials) as client:
                        client.open({"run": "this"})
                        client.expect(1024)
                        assert client.ready().header["number"] == 1
        finally:
            process.stdin.close()
            process.wait(60)


def test_refused_connections_are_counted_in_a_few_lines(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(30):
        with socket.create_connection(address, timeout=30) as plain:
            plain.sendall(b"GET /parameters HTTP/1.1\r\n\r\n")
            assert _closed(plain)
    assert caplog.text.count("refused a connection") == 1


def test_a_payload_may_take_longer_than_the_time_out_as_long_as_bytes_flow() -> None:
    with ThreadPoolExecutor(2) as pool:  # side by side, since it takes its time
        for each in [pool.submit(_check_a_slow_payload, encrypt) for encrypt in (True, False)]:
            each.result()


def _check_a_slow_payload(encrypt: bool) -> None:
    seconds, pieces = 2.0, 8
    payload = bytes(pieces * 256 * 1024)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        credentials = Credentials.make(encrypt=encrypt)
        sent: list[float | Exception] = []

        def give() -> None:
            raw = socket.create_connection(listener.getsockname(), timeout=seconds)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
            started = time.monotonic()
            try:
                with secured(raw, credentials, credentials.context(server=False)) as connection:
                    send(connection, Message(Kind.WORK, {}, payload))
                    sent.append(time.monotonic() - started)
                    connection.recv(1)
            except Exception as error:
                sent.append(error)

        thread = threading.Thread(target=give)
        thread.start()
        raw, _ = listener.accept()
        raw.settimeout(30)
        with secured(raw, credentials, credentials.context(server=True)) as connection:
            left = len(payload)
            while left > 0 and (data := connection.recv(min(left, 256 * 1024))):
                left -= len(data)
                time.sleep(seconds * 1.5 * len(data) / len(payload))
        thread.join(30)
    assert isinstance(sent[0], float) and sent[0] > seconds, sent


def test_a_connection_that_says_nothing_is_given_up(
    port_of_attacked: tuple[str, int], attacked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_OPEN_SECONDS", 0.2)
    with socket.create_connection(port_of_attacked, timeout=10) as silent:
        assert silent.recv(1) == b""
    attacked.still_serves(port_of_attacked)


def test_a_silent_worker_is_reported_lost(
    address: tuple[str, int], echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SILENCE_SECONDS", 0.3)
    with _tls(address) as connection:
        send(connection, Message(Kind.OPEN, {"run": "this"}))
        receive(connection, bytearray(100))
        assert _closed(connection)
    assert len(echo.lost_workers) == 1 and "timed out" in echo.lost_workers[0]


def test_signs_of_life_keep_a_slow_worker_and_a_waiting_one(
    address: tuple[str, int], echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (server_module, client_module):
        monkeypatch.setattr(module, "SILENCE_SECONDS", 0.6)
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    with _worker(address) as client:
        time.sleep(1.0)  # computing for longer than the server accepts silence
        assert client.ready().kind == Kind.WORK

        def answer() -> None:
            time.sleep(1.0)  # and now the server lets it wait
            assert echo.held is not None
            echo.held.put(Message(Kind.STOP))

        thread = threading.Thread(target=answer)
        thread.start()
        assert client.result({"wait": True}).kind == Kind.STOP
        thread.join()
    assert echo.lost_workers == []


def test_a_worker_that_stops_as_told_is_not_lost(address: tuple[str, int], echo: Echo) -> None:
    with _worker(address) as client:
        assert client.result({"last": True}).kind == Kind.STOP
    time.sleep(0.2)
    assert echo.lost_workers == []


def test_a_worker_does_not_end_before_its_error_has_been_heard(
    address: tuple[str, int], echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = echo.error
    monkeypatch.setattr(echo, "error", lambda ticket, text: (time.sleep(0.5), hear(ticket, text)))
    with _worker(address) as client:
        client.error("ValueError: my words")
        assert echo.errors == ["ValueError: my words"]
    assert echo.lost_workers == []


def test_a_payload_longer_than_expected_is_refused_by_the_worker_too(address: tuple[str, int]) -> None:
    with ParameterClient(address, CREDENTIALS) as client:
        client.open({"run": "this"})
        client.expect(3)
        with pytest.raises(ProtocolError, match="at most 3"):
            client.ready()


def _seen_on_the_wire(echo: Echo, credentials: Credentials, secret: bytes) -> bytes:
    """What a proxy between a worker and the server reads while a payload goes there and back."""
    seen = bytearray()
    with ParameterServer(echo, Listener("127.0.0.1"), credentials) as server, socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen(1)

        def relay() -> None:
            one, _ = proxy.accept()
            two = socket.create_connection(("127.0.0.1", server.port))

            def copy(source: socket.socket, target: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    while data := source.recv(65536):
                        seen.extend(data)
                        target.sendall(data)
                    target.shutdown(socket.SHUT_WR)

            back = threading.Thread(target=copy, args=(two, one), daemon=True)
            back.start()
            copy(one, two)
            back.join(5)

        threading.Thread(target=relay, daemon=True).start()
        with ParameterClient(proxy.getsockname(), credentials) as client:
            client.open({"run": "this"})
            client.expect(1024)
            assert bytes(client.result({}, secret).payload) == secret
    return bytes(seen)


def test_nothing_of_the_weights_is_in_clear_on_the_wire(echo: Echo) -> None:
    secret = b"weights that nobody else may see" * 20
    seen = _seen_on_the_wire(echo, CREDENTIALS, secret)
    assert len(seen) > 2 * len(secret)
    assert secret[:32] not in seen and b"number" not in seen


def test_without_encryption_the_weights_are_in_clear_and_the_key_is_not(echo: Echo) -> None:
    secret = b"weights that nobody else may see" * 20
    seen = _seen_on_the_wire(echo, Credentials.make(encrypt=False), secret)
    assert seen.count(secret) == 2
    assert b"CERTIFICATE" not in seen and b"KEY" not in seen


def test_without_encryption_nobody_else_gets_in_either(echo: Echo) -> None:
    open_credentials = Credentials.make(encrypt=False)
    with ParameterServer(echo, Listener("127.0.0.1"), open_credentials) as server:
        address = "127.0.0.1", server.port
        with socket.create_connection(address, timeout=10) as plain:
            send(plain, Message(Kind.OPEN, {"run": "this"}))
            assert _closed(plain)
        for encrypt in (True, False):
            with (
                pytest.raises((OSError, ProtocolError)),
                ParameterClient(address, Credentials.make(encrypt=encrypt)) as client,
            ):
                client.open({"run": "this"})
        assert echo.opened == []
        with ParameterClient(address, open_credentials) as client:
            assert client.open({"run": "this"}).kind == Kind.BEGIN
        assert len(echo.opened) == 1


def test_a_worker_that_encrypts_does_not_talk_to_a_server_that_does_not(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SILENCE_SECONDS", 1.0)
    mixed = Credentials(CREDENTIALS.pem, encrypt=False)
    with (
        ParameterServer(echo, Listener("127.0.0.1"), mixed) as server,
        pytest.raises(OSError),
        ParameterClient(("127.0.0.1", server.port), CREDENTIALS) as client,
    ):
        client.open({"run": "this"})
    assert echo.opened == []


def test_the_credentials_do_not_show_in_a_repr() -> None:
    assert "KEY" in CREDENTIALS.pem.decode() and "KEY" not in f"{CREDENTIALS!r} {CREDENTIALS}"


def test_a_stopped_server_has_closed_port_and_connections(echo: Echo) -> None:
    with ParameterServer(echo, Listener("127.0.0.1"), CREDENTIALS) as server:
        port = server.port
        client = ParameterClient(("127.0.0.1", port), CREDENTIALS)
        client.open({"run": "this"})
    with pytest.raises((OSError, ProtocolError)):
        client.ready()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_without_a_free_port_the_error_says_which_were_tried(echo: Echo) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=str(port)),
            ParameterServer(echo, Listener("127.0.0.1", (port,)), CREDENTIALS),
        ):
            pass


def test_a_port_whose_connections_have_just_ended_opens_again() -> None:
    ports: tuple[int, ...] = (0,)
    for _ in range(2):
        with Listener("127.0.0.1", ports) as listener:
            ports = (listener.port,)
            with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as client:
                accepted, _ = listener.socket.accept()
                accepted.close()  # ended from here, so that it is this port that the system keeps
                assert client.recv(1) == b""


def test_a_header_that_nobody_would_take_is_not_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with pytest.raises(ValueError, match=r"4,194,\d+ bytes, at most 4,194,304"):
            send(ours, Message(Kind.RESULT, {"parts": "0" * MAX_HEADER_BYTES}))
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
