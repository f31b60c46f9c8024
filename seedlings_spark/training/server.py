"""ParameterServer: the driver's side of the connections.

It runs in threads of the driver's own process, on a port that the system chooses: it cannot outlive its run,
and no worker of another run can reach it. What a message means is decided by a `Coordinator`; the server sees
to it that only well-formed messages of authenticated workers get there.
"""

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    room,
    secured,
    send,
)

_log = logging.getLogger(__name__)
# Seconds for the handshake and the first message together, however slowly they trickle in.
_OPEN_SECONDS = 10.0
# Connections that have not yet said who they are. For one more the oldest goes: a worker, which is done within
# moments, gets in beside any number of those that just hold the line, and tries again if it was thrown out.
_MAX_STRANGERS = 256
# How often those are looked for whose time is over, and how long to wait when the system has no descriptor left.
_LOOK_SECONDS = 1.0
_BREATH_SECONDS = 0.1
# At most one line on refused connections in so many seconds; the others are counted.
_LOG_SECONDS = 30.0


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


class Listener:
    """A port that is open before anybody has been told of it; a context manager.

    Args:
        host: Address to listen on.
        ports: Candidates, tried in order; 0 lets the system choose.
        option: By which others are given.

    Raises:
        ClusterError: None of them could be opened.
    """

    def __init__(self, host: str, ports: Sequence[int] = (0,), option: str = "--server-port") -> None:
        self.socket = _bind(host, ports, option)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        """Close the port; more than once does no harm."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Door:
    """Lets those in who have the run's credentials and say who they are; a context manager.

    Args:
        listener: Where they come to. It is closed with the door.
        credentials: Credentials of the run.
        enter: Called with each connection, and with the header of its first message, in a thread of its own. Returns
            whether the connection is to stay open after that; it is then the business of whoever has taken it. May
            raise `Superseded`, whose text the other side is told.
    """

    def __init__(
        self,
        listener: Listener,
        credentials: Credentials,
        enter: Callable[[socket.socket, Mapping[str, Any]], bool],
    ) -> None:
        self._listener, self._enter = listener, enter
        self._credentials, self._context = credentials, credentials.context(server=True)
        self._strangers: dict[_Stranger, None] = {}  # the oldest first
        self._refusals = _Refusals()
        self._lock = threading.Lock()
        self.is_closed = False

    def __enter__(self) -> "Door":
        threading.Thread(target=self._accept, name="seedlings-accept", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_closed = True
        self._listener.close()
        with self._lock:
            for stranger in self._strangers:
                _cut(stranger.connection)

    def _accept(self) -> None:
        """Accept connections until the door is closed; nothing else ends this."""
        while not self.is_closed:
            self._end_strangers()
            try:
                raw, peer = self._listener.socket.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if self.is_closed:
                    return
                # No descriptor is left (EMFILE), or the peer has gone already.
                self._refusals.log("?", error)
                self._end_strangers(1 + len(self._strangers) // 4)
                time.sleep(_BREATH_SECONDS)
                continue
            stranger = _Stranger(raw, time.monotonic())
            with self._lock:
                self._strangers[stranger] = None
            thread = threading.Thread(
                target=self._admit, args=(stranger, peer), name=f"seedlings-{peer}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left
                self._is_known(stranger)
                raw.close()
                self._refusals.log(peer, error)

    def _end_strangers(self, at_least: int = 0) -> None:
        """End connections that have not said who they are: those whose time is over, and the oldest of too many.

        Args:
            at_least: So many are ended in any case.
        """
        now = time.monotonic()
        with self._lock:
            too_many = max(at_least, len(self._strangers) - _MAX_STRANGERS + 1)
            ended = [
                stranger
                for number, stranger in enumerate(self._strangers)
                if number < too_many or now - stranger.since > _OPEN_SECONDS
            ]
            for stranger in ended:
                del self._strangers[stranger]
                _cut(stranger.connection)

    def _is_known(self, stranger: "_Stranger") -> bool:
        """Take a connection from the strangers; False if it has been ended as one."""
        with self._lock:
            return self._strangers.pop(stranger, self) is None

    def _admit(self, stranger: "_Stranger", peer: Any) -> None:
        raw = connection = stranger.connection
        stays = False
        try:
            raw.settimeout(_OPEN_SECONDS)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = secured(raw, self._credentials, self._context, stranger.became)
            first = receive(connection, b"")  # type: ignore[arg-type]  # no payload is accepted here
            if first.kind != Kind.OPEN:
                raise ProtocolError(f"{first.kind.name} as the first message, expected OPEN")
            # Before anybody hears of it: nobody who has a place is ever ended as a stranger.
            if not self._is_known(stranger):
                raise ConnectionError("others came after it, before it had said who it is")
            stays = self._enter(connection, first.header)
        except Superseded as why:
            with contextlib.suppress(OSError):
                send(connection, Message(Kind.REFUSED, {"text": str(why)}))
        except (OSError, ProtocolError) as error:
            if not self.is_closed:
                self._refusals.log(peer, error)
        finally:
            self._is_known(stranger)
            if not stays:
                connection.close()
                stranger.connection.close()


class ParameterServer:
    """Passes workers' messages to a coordinator; a context manager.

    Args:
        coordinator: Coordinator of the training mode.
        listener: Where workers come to. It is closed with the server.
        credentials: Credentials of the run.
    """

    def __init__(self, coordinator: Coordinator, listener: Listener, credentials: Credentials) -> None:
        self._coordinator = coordinator
        self.port = listener.port
        self._door = Door(listener, credentials, self._serve)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "ParameterServer":
        self._door.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._door.__exit__(kind, error, trace)
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def _serve(self, connection: socket.socket, opened: Mapping[str, Any]) -> bool:
        """All that a worker says, until its connection is over."""
        with self._lock:
            self._connections.add(connection)
        try:
            if not self._door.is_closed:
                self._listen(connection, opened)
        finally:
            with self._lock:
                self._connections.discard(connection)
        return False

    def _listen(self, connection: socket.socket, opened: Mapping[str, Any]) -> None:
        ticket, answer = self._coordinator.open(opened)
        try:
            connection.settimeout(SILENCE_SECONDS)
            self._answer(connection, answer)
            self._converse(connection, ticket)
        except (OSError, ProtocolError) as error:
            if not self._door.is_closed:
                self._coordinator.lost(ticket, str(error))
                with contextlib.suppress(OSError):
                    send(connection, Message(Kind.REFUSED, {"text": str(error)}))

    def _converse(self, connection: socket.socket, ticket: object) -> None:
        """Pass on what a worker says until it is done: told to stop, or failed in its own computation."""
        buffer = room(self._coordinator.max_payload_bytes)
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
                return
            else:
                raise ProtocolError(f"{message.kind.name} from a worker")
            if self._answer(connection, answer) == Kind.STOP:
                return

    def _answer(self, connection: socket.socket, answer: "queue.SimpleQueue[Message]") -> Kind:
        while True:
            try:
                message = answer.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                if self._door.is_closed:
                    raise ConnectionError("the server is stopping") from None
                send(connection, Message(Kind.ALIVE))
                continue
            send(connection, message)
            return message.kind


@dataclass(eq=False)
class _Stranger:
    """A connection that has not yet said who it is.

    Args:
        connection: Its socket, which TLS replaces by another.
        since: When it was accepted, by the monotonic clock.
    """

    connection: socket.socket
    since: float

    def became(self, connection: socket.socket) -> None:
        """Another socket has taken the place of the one before."""
        self.connection = connection


class _Refusals:
    """Tells of refused connections, however many there are, in a few lines of the log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = -_LOG_SECONDS
        self._untold = 0

    def log(self, peer: Any, error: BaseException) -> None:
        """Count a connection, and say so if nothing was said for a while."""
        with self._lock:
            self._untold += 1
            now = time.monotonic()
            if now - self._told < _LOG_SECONDS:
                return
            self._told, count, self._untold = now, self._untold, 0
        more = f" ({count} since the last such line)" if count > 1 else ""
        _log.warning("refused a connection from %s: %s%s", peer, error, more)


def _cut(connection: socket.socket) -> None:
    """End a connection for whoever waits at it in another thread.

    By the plain socket's method: that of TLS would also take from that thread what it works with.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _bind(host: str, ports: Sequence[int], option: str) -> socket.socket:
    for port in ports:
        listener = socket.socket(_family(host), socket.SOCK_STREAM)
        try:
            # The system keeps ended connections for a while: those of an earlier run are in nobody's way.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_MAX_STRANGERS)
            listener.settimeout(_LOOK_SECONDS)
            return listener
        except OSError as error:
            listener.close()
            reason = error
    raise ClusterError(
        f"no port of {_ranges(ports)} on {host} could be opened ({reason})",
        "one free port that the executors can reach",
        f"Give others with {option}"
        + (
            ", or set spark.driver.bindAddress to an address of this machine"
            if option == "--server-port"
            else ": as many as workers run on one machine"
        ),
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _ranges(ports: Sequence[int]) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"
