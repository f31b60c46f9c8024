"""ParameterClient: a worker's side of the connection to the parameter server.

While the worker computes, a thread tells the server every few seconds that it is alive; while the server lets
it wait, the server does the same. So either side notices within a minute when the other has stopped, however
long one piece of work takes.
"""

import contextlib
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

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


class RefusedError(Exception):
    """The server does not want this worker (any more): another one has its place, or the run is over."""


class ParameterClient:
    """A connection to the parameter server; a context manager.

    Args:
        address: (host, port) of the server.
        credentials: Of the run.
    """

    def __init__(self, address: tuple[str, int], credentials: Credentials) -> None:
        raw = socket.create_connection(address, timeout=SILENCE_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = secured(raw, credentials, credentials.context(server=False))
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="seedlings-heartbeat", daemon=True)
        self._heart.start()

    def __enter__(self) -> "ParameterClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.close()

    def expect(self, num_bytes: int) -> None:
        """Accept payloads of up to this many bytes from now on."""
        self._buffer = bytearray(num_bytes)

    def open(self, header: Mapping[str, Any]) -> Message:
        """Say who this worker is; returns what holds for the whole run."""
        return self._ask(Message(Kind.OPEN, header), {Kind.BEGIN})

    def ready(self) -> Message:
        """Ask for the first piece of work."""
        return self._ask(Message(Kind.READY), {Kind.WORK, Kind.STOP})

    def result(self, header: Mapping[str, Any], payload: Any = b"") -> Message:
        """Hand in a result; returns the next piece of work, whose payload is valid until the next call."""
        return self._ask(Message(Kind.RESULT, header, payload), {Kind.WORK, Kind.STOP})

    def error(self, text: str) -> None:
        """Report that this worker's own computation failed."""
        with self._lock:
            send(self._connection, Message(Kind.ERROR, {"text": text}))

    def _ask(self, message: Message, expected: set[Kind]) -> Message:
        with self._lock:
            send(self._connection, message)
            while True:
                answer = receive(self._connection, self._buffer)
                if answer.kind != Kind.ALIVE:
                    break
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
