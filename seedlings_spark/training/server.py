"""ParameterServer: the driver's side of the connections; a context manager.

It runs in threads of the driver's own process, on a port that the system chooses: it cannot outlive its run,
and no worker of another run can reach it. What a message means is decided by a `Coordinator`; the server sees
to it that only well-formed messages of authenticated workers get there.
"""

import contextlib
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from seedlings_spark.errors import ClusterError
from seedlings_spark.training.wire import (
    HEARTBEAT_SECONDS,
    SILENCE_SECONDS,
    Credentials,
    Kind,
    Message,
    ProtocolError,
    receive,
    secured,
    send,
)

_log = logging.getLogger(__name__)
# Seconds for the handshake and the first message: a connection that says nothing is not kept.
_OPEN_SECONDS = 20.0
# Connections that have not yet said who they are; more are turned away.
_MAX_STRANGERS = 256


class Superseded(Exception):  # noqa: N818 - not a failure: the worker is simply no longer wanted
    """A worker whose place has been taken, or whose run is over."""


class Coordinator(Protocol):
    """What the server asks of a training mode.

    Each method may be called from many threads at once. One that returns a queue promises that the answer
    will be put there, once.
    """

    @property
    def max_payload_bytes(self) -> int:
        """The longest payload that a worker may send."""

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is. Returns a ticket that identifies it, and where its `BEGIN` will come."""

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """The worker wants its first work."""

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """The worker hands in a result. Its payload stays valid until the answer has been put."""

    def error(self, ticket: object, text: str) -> None:
        """The worker's own computation failed."""

    def lost(self, ticket: object, why: str) -> None:
        """The connection to the worker ended without `STOP`."""

    def stop(self) -> None:
        """Tell all workers that there is no more work; more than once does no harm."""


class ParameterServer:
    """Accepts workers' connections and passes their messages to a coordinator.

    Args:
        coordinator: Of the training mode.
        host: Address to listen on.
        credentials: Of the run.
        ports: Candidate ports, tried in order; 0 lets the system choose.
    """

    def __init__(
        self, coordinator: Coordinator, host: str, credentials: Credentials, ports: Sequence[int] = (0,)
    ) -> None:
        self._coordinator = coordinator
        self._host = host
        self._credentials, self._context = credentials, credentials.context(server=True)
        self._ports = ports
        self._connections: set[socket.socket] = set()
        self._strangers = 0
        self._lock = threading.Lock()
        self._stopping = False

    def __enter__(self) -> "ParameterServer":
        self._listener = self._bind()
        threading.Thread(target=self._accept, name="seedlings-accept", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    def _bind(self) -> socket.socket:
        for port in self._ports:
            listener = socket.socket(_family(self._host), socket.SOCK_STREAM)
            try:
                listener.bind((self._host, port))
                listener.listen(128)
                return listener
            except OSError as error:
                listener.close()
                reason = error
        raise ClusterError(
            f"no port of {_ranges(self._ports)} on {self._host} could be opened ({reason})",
            "one free port that the executors can reach",
            "Give others with --server-port, or set spark.driver.bindAddress to an address of this machine",
        )

    def _accept(self) -> None:
        while not self._stopping:
            try:
                raw, peer = self._listener.accept()
            except OSError:
                return
            with self._lock:
                welcome = self._strangers < _MAX_STRANGERS
                self._strangers += welcome
            if welcome:
                threading.Thread(
                    target=self._serve, args=(raw, peer), name=f"seedlings-{peer}", daemon=True
                ).start()
            else:
                raw.close()

    def _serve(self, raw: socket.socket, peer: Any) -> None:
        connection: socket.socket = raw
        ticket: object = None
        stranger = True
        try:
            raw.settimeout(_OPEN_SECONDS)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = secured(raw, self._credentials, self._context)
            first = receive(connection, b"")  # type: ignore[arg-type]  # no payload is accepted here
            if first.kind != Kind.OPEN:
                raise ProtocolError(f"{first.kind.name} as the first message, expected OPEN")
            ticket, answer = self._coordinator.open(first.header)
            with self._lock:
                self._connections.add(connection)
                self._strangers -= 1
                stranger = False
            connection.settimeout(SILENCE_SECONDS)
            self._answer(connection, answer)
            buffer = bytearray(self._coordinator.max_payload_bytes)
            while True:
                message = receive(connection, buffer)
                if message.kind == Kind.ALIVE:
                    continue
                if message.kind == Kind.READY:
                    answer = self._coordinator.ready(ticket)
                elif message.kind == Kind.RESULT:
                    answer = self._coordinator.result(ticket, message.header, message.payload)
                elif message.kind == Kind.ERROR:
                    self._coordinator.error(ticket, str(message.header.get("text", "")))
                    ticket = None
                    return
                else:
                    raise ProtocolError(f"{message.kind.name} from a worker")
                if self._answer(connection, answer) == Kind.STOP:
                    ticket = None
                    return
        except Superseded as why:
            ticket = None
            with contextlib.suppress(OSError):
                send(connection, Message(Kind.REFUSED, {"text": str(why)}))
        except (OSError, ProtocolError, ssl.SSLError) as error:
            if not self._stopping:
                if ticket is None:
                    _log.warning("refused a connection from %s: %s", peer, error)
                else:
                    self._coordinator.lost(ticket, str(error))
                    with contextlib.suppress(OSError):
                        send(connection, Message(Kind.REFUSED, {"text": str(error)}))
        finally:
            with self._lock:
                self._connections.discard(connection)
                if stranger:
                    self._strangers -= 1
            connection.close()

    def _answer(self, connection: socket.socket, answer: "queue.SimpleQueue[Message]") -> Kind:
        while True:
            try:
                message = answer.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                if self._stopping:
                    raise ConnectionError("the server is stopping") from None
                send(connection, Message(Kind.ALIVE))
                continue
            send(connection, message)
            return message.kind


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _ranges(ports: Sequence[int]) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"
