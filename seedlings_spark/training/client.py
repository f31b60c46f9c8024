"""ParameterClient: a worker's side of the connection to the parameter server.

While the worker computes, a thread tells the server every few seconds that it is alive; while the server lets
it wait, the server does the same. So either side notices within a minute when the other has stopped, however
long one piece of work takes.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from seedlings_spark.training.wire import (
    HEARTBEAT_SECONDS,
    SILENCE_SECONDS,
    Connection,
    Credentials,
    CutError,
    Kind,
    Message,
    ProtocolError,
    StrangeCertificateError,
    receive,
    room,
    secured,
    send,
)

_T = TypeVar("_T")
# A server that many strangers besiege may end a connection before it has said who it is: then the worker comes again,
# after a pause of so many seconds, each further one twice as long up to the most, for as long as silence is borne.
_FIRST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.05, 2.0


class RefusedError(Exception):
    """The server does not want this worker (any more): another one has its place, or the run is over."""


class ParameterClient:
    """A connection to the parameter server; a context manager.

    Args:
        address: (host, port) of the server.
        credentials: Credentials of the run.
    """

    def __init__(self, address: tuple[str, int], credentials: Credentials) -> None:
        self._address, self._credentials = address, credentials
        self._context = credentials.context(server=False)
        self._connection = _patiently(self._connect)
        self._buffer = room(0)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._to_cut: list[Callable[[], None]] = []

    def __enter__(self) -> "ParameterClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.close()

    @property
    def host(self) -> str:
        """The address of this machine on the way to the server."""
        return str(self._connection.getsockname()[0])

    def cut_too(self, cut: Callable[[], None]) -> None:
        """What else the death of this process would end."""
        self._to_cut.append(cut)

    def cut(self) -> None:
        """End the connection under whatever waits at it in another thread, as the death of this process would."""
        for cut in self._to_cut:
            cut()
        with contextlib.suppress(OSError):
            # By the plain socket's method: that of TLS would also take from that thread what it works with.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def expect(self, num_bytes: int) -> None:
        """Accept payloads of up to this many bytes from now on."""
        self._buffer = room(num_bytes)

    def open(self, header: Mapping[str, Any]) -> Message:
        """Say who this worker is; returns what holds for the whole run."""
        answer = self._introduced(header)
        threading.Thread(target=self._beat, name="seedlings-heartbeat", daemon=True).start()
        return answer

    def introduce(self, header: Mapping[str, Any]) -> Connection:
        """Say who this worker is, and give the connection away: this object has no more to do with it."""
        self._introduced(header)
        return self._connection

    def _introduced(self, header: Mapping[str, Any]) -> Message:
        message = Message(Kind.OPEN, header)

        def say() -> Message:
            if self._connection.fileno() < 0:
                self._connection = self._connect()
            try:
                send(self._connection, message)
                return receive(self._connection, self._buffer)
            except OSError:
                # The server has not heard who this is: whoever has a place is never ended as a stranger.
                self._connection.close()
                raise

        return self._answer(message, {Kind.BEGIN}, _patiently(say))

    def ready(self) -> Message:
        """Ask for the first piece of work."""
        return self._ask(Message(Kind.READY), {Kind.WORK, Kind.STOP})

    def result(self, header: Mapping[str, Any], payload: Any = b"") -> Message:
        """Hand in a result; returns the next piece of work, whose payload is valid until the next call."""
        return self._ask(Message(Kind.RESULT, header, payload), {Kind.WORK, Kind.STOP})

    def error(self, text: str) -> None:
        """Report that this worker's own computation failed, and wait until it has been heard.

        Were this worker to end before, its end could be noticed first, and the same be tried again.
        """
        with self._lock:
            send(self._connection, Message(Kind.ERROR, {"text": text}))
            with contextlib.suppress(OSError, ProtocolError):
                receive(self._connection, self._buffer)  # nothing: the server ends the connection

    def _connect(self) -> socket.socket:
        raw = socket.create_connection(self._address, timeout=SILENCE_SECONDS)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return secured(raw, self._credentials, self._context)
        except BaseException:
            raw.close()
            raise

    def _ask(self, message: Message, expected: set[Kind]) -> Message:
        with self._lock:
            send(self._connection, message)
            answer = receive(self._connection, self._buffer)
        return self._answer(message, expected, answer)

    def _answer(self, message: Message, expected: set[Kind], answer: Message) -> Message:
        """What was asked for, of which the first message to come is here."""
        with self._lock:
            while answer.kind == Kind.ALIVE:
                answer = receive(self._connection, self._buffer)
        if answer.kind == Kind.REFUSED:
            raise RefusedError(str(answer.header.get("text", "")))
        if answer.kind not in expected:
            raise ProtocolError(f"{answer.kind.name} in answer to {message.kind.name}")
        return answer

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            try:
                with self._lock:
                    send(self._connection, Message(Kind.ALIVE))
            except OSError:
                return  # the main thread finds out at its next question


def open_link(address: tuple[str, int], credentials: Credentials, header: Mapping[str, Any]) -> Connection:
    """A connection to another worker, which has let this one in.

    Args:
        address: (host, port) of the other worker.
        credentials: Credentials of the run.
        header: Says who this worker is.

    Raises:
        RefusedError: The other one does not want it.
        OSError: The other one is not reached.
    """
    client = ParameterClient(address, credentials)
    try:
        return client.introduce(header)
    except BaseException:
        client.__exit__(None, None, None)
        raise


def _patiently(attempt: Callable[[], _T]) -> _T:
    """What an attempt to reach the server returns, which is made again after a connection that was cut.

    Nobody who listens, and a certificate that is not the run's, will not be otherwise the next time.
    """
    deadline, pause = time.monotonic() + SILENCE_SECONDS, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return attempt()
        except (ConnectionRefusedError, StrangeCertificateError):
            raise
        except CutError:
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _MOST_PAUSE_SECONDS)
