"""Messages between workers and the parameter server, over TLS 1.3.

A run makes one key and one self-signed certificate. Each side must present it and accepts nothing else, so
whoever has not been given the run's credentials (they travel only inside Spark's tasks) can neither read nor
send; messages of one connection or run mean nothing in another. No message is ever unpickled.

On a network that is trusted the encryption may end once both sides have shown who they are: then nobody else can
open a connection, but whoever sits in between can read and change what passes.

A frame is: magic (4 bytes), kind (1 byte), length of the header (4 bytes), length of the payload (8 bytes), all
big-endian; the header, a JSON object; the payload, a vector's bytes in the machine's (little-endian) order.
"""

import datetime
import enum
import json
import os
import socket
import ssl
import struct
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_MAGIC = b"SDL1"
_FRAME = struct.Struct(">4sBIQ")
# Headers hold names, numbers and the sums of metrics: an AUC with its 200 thresholds takes 20 kB.
MAX_HEADER_BYTES = 4 * 1024 * 1024
# Seconds between signs of life of a side that computes or waits, and until the other side gives it up.
HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
# A time-out of Python's sockets is for all that one call sends. So that it is one for silence, and a payload may take
# as long as bytes flow, no call sends more than this: a peer that takes 4 kB/s counts as alive.
_PIECE_BYTES = 256 * 1024
# A payload up to this travels behind its header in one piece: a copy of it costs less than one more record of TLS.
_SHORT_BYTES = 64 * 1024


Connection = socket.socket
# What a side sees of a connection that was cut, and of a peer that has other credentials.
CutError = (ConnectionError, ssl.SSLError)
StrangeCertificateError = ssl.SSLCertVerificationError


class Kind(enum.IntEnum):
    """What a message is."""

    OPEN = 1  # worker: who I am
    BEGIN = 2  # server: what holds for the whole run
    READY = 3  # worker: give me work
    WORK = 4  # server: do this
    RESULT = 5  # worker: this came out
    STOP = 6  # server: there is no more work
    ERROR = 7  # worker: my own computation failed
    ALIVE = 8  # either: still computing, still waiting
    REFUSED = 9  # server: this message cannot be accepted


class ProtocolError(Exception):
    """The other side sent something that is no message of this protocol."""


@dataclass(frozen=True)
class Message:
    """One message.

    Args:
        kind: What it is.
        header: Plain JSON values.
        payload: Bytes of a vector, or nothing; or a list of arrays, whose bytes follow on each other.
    """

    kind: Kind
    header: Mapping[str, Any] = field(default_factory=dict)
    payload: Any = b""


@dataclass(frozen=True, repr=False)
class Credentials:
    """The key and certificate of one run, in PEM. Never logged: it has no repr of its content.

    Args:
        pem: Key and certificate.
        encrypt: Whether a connection stays encrypted after both sides have presented them.
    """

    pem: bytes
    encrypt: bool = True

    @classmethod
    def make(cls, *, encrypt: bool = True) -> "Credentials":
        """Make a new P-256 key and its certificate.

        The certificate names no time that matters: it is pinned and lives as long as the run, and the
        clocks of a cluster need not agree.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "seedlings-spark run")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime(2000, 1, 1))
            .not_valid_after(datetime.datetime(2099, 1, 1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM),
            encrypt,
        )

    def __repr__(self) -> str:
        return "Credentials(...)"

    def context(self, *, server: bool) -> ssl.SSLContext:
        """A TLS 1.3 context that presents this certificate and trusts only it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        if server:
            context.num_tickets = 0
        certificate = self.pem[self.pem.index(b"-----BEGIN CERTIFICATE") :]
        context.load_verify_locations(cadata=certificate.decode())
        # OpenSSL wants the key as a file: one in memory, which no other process sees.
        descriptor = os.memfd_create("seedlings", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self.pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context


def secured(
    raw: socket.socket,
    credentials: Credentials,
    context: ssl.SSLContext,
    became: Callable[[socket.socket], None] = lambda connection: None,
) -> socket.socket:
    """A connection both of whose ends have presented the credentials.

    Args:
        raw: With a time-out set.
        credentials: Credentials of the run.
        context: Context of these credentials, for this side of the connection.
        became: Told of each socket that takes the place of `raw`, before anything is read from it: whoever wants
            to end the connection meanwhile has to know the current one.

    Raises:
        OSError: The other side has others, or none.
    """
    is_server = context.protocol == ssl.PROTOCOL_TLS_SERVER
    connection = context.wrap_socket(raw, server_side=is_server, do_handshake_on_connect=False)
    became(connection)
    connection.do_handshake()
    if credentials.encrypt:
        return connection
    # Both wait here for the other's end of encryption, which a client whose certificate is refused never sees.
    plain = connection.unwrap()
    became(plain)
    return plain


def room(num_bytes: int) -> memoryview:
    """A buffer for payloads of up to so many bytes, of which only what they fill takes memory."""
    return np.empty(num_bytes, np.uint8).data


def send(connection: socket.socket, message: Message) -> None:
    """Send one message."""
    header = json.dumps(message.header).encode() if message.header else b""
    for view in outgoing(message.kind, header, message.payload):
        for start in range(0, len(view), _PIECE_BYTES):
            connection.sendall(view[start : start + _PIECE_BYTES])


def outgoing(kind: Kind, header: bytes, payload: Any) -> list[memoryview]:
    """The bytes of one message, in their order.

    Args:
        kind: What it is.
        header: As JSON.
        payload: As of a message.

    Raises:
        ValueError: The header is too long.
    """
    if (
        len(header) > MAX_HEADER_BYTES
    ):  # before it is sent: the other side would end the connection, each time anew
        raise ValueError(
            f"a header of {len(header):,} bytes, at most {MAX_HEADER_BYTES:,} are taken: use metrics that keep fewer"
            " numbers, or fewer shards for each worker"
        )
    views = [memoryview(each) for each in (payload if isinstance(payload, list) else [payload])]
    views = [view.cast("B") for view in views if view.nbytes]
    length = sum(map(len, views))
    start = _FRAME.pack(_MAGIC, kind, len(header), length) + header
    if length <= _SHORT_BYTES:
        return [memoryview(b"".join((start, *views)))]
    return [memoryview(start), *views]


def receive(connection: socket.socket, buffer: bytearray | memoryview) -> Message:
    """Receive one message.

    Args:
        connection: With a time-out set.
        buffer: Takes the payload; a longer payload is refused before it is read.

    Returns:
        The message; its payload is a view of `buffer`, valid until the next call with it.

    Raises:
        ProtocolError: Not a message, or one that is too long.
        ConnectionError: The other side has closed.
        OSError: Time-out and other failures of the network.
    """
    coming = incoming(buffer)
    while True:
        try:
            view = next(coming)
        except StopIteration as done:
            message: Message = done.value
            return message
        while len(view):
            view = view[_received(connection, view) :]


def incoming(buffer: bytearray | memoryview) -> Generator[memoryview, None, Message]:
    """One message, from views that are to be filled one after the other.

    Args:
        buffer: As for `receive`.

    Raises:
        ProtocolError: As `receive`.
    """
    start = bytearray(_FRAME.size)
    yield memoryview(start)
    magic, kind, header_length, payload_length = _FRAME.unpack(start)
    if magic != _MAGIC:
        raise ProtocolError(f"a frame that begins with {bytes(magic)!r}, expected {_MAGIC!r}")
    if header_length > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {header_length} bytes, at most {MAX_HEADER_BYTES} are accepted")
    if payload_length > len(buffer):
        raise ProtocolError(f"a payload of {payload_length} bytes, at most {len(buffer)} are accepted")
    raw = bytearray(header_length)
    yield memoryview(raw)
    payload = memoryview(buffer)[:payload_length]
    yield payload
    try:
        header = json.loads(raw) if raw else {}
        known = Kind(kind)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame that cannot be read: {error}") from None
    if not isinstance(header, dict):
        raise ProtocolError(f"a header that is a {type(header).__name__}, expected an object")
    return Message(known, header, payload)


# Of connections that one thread serves side by side: each gives and takes what it can without waiting.


def side_by_side(connection: socket.socket) -> None:
    """Let a connection never wait, and its system notice when the machine at the other end has gone."""
    connection.setblocking(False)
    beat = int(HEARTBEAT_SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, beat),
        (socket.TCP_KEEPINTVL, beat),
        (socket.TCP_KEEPCNT, int(SILENCE_SECONDS / HEARTBEAT_SECONDS) - 1),
        (socket.TCP_USER_TIMEOUT, int(SILENCE_SECONDS * 1000)),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def give(connection: socket.socket, view: memoryview) -> int:
    """Send the first bytes of a view; how many, 0 for now if the network takes none."""
    try:
        return connection.send(view[:_PIECE_BYTES])
    except _LATER:
        return 0


def take(connection: socket.socket, view: memoryview) -> int:
    """Fill the first bytes of a view; how many, 0 for now if none have come.

    Raises:
        ConnectionError: The other side has closed.
    """
    try:
        return _received(connection, view)
    except _LATER:
        return 0


def holds_more(connection: socket.socket) -> bool:
    """Whether bytes have been received that no look at the network shows; of one without TLS it is not asked."""
    return not isinstance(connection, ssl.SSLSocket) or connection.pending() > 0


_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def _received(connection: socket.socket, view: memoryview) -> int:
    count = connection.recv_into(view)
    if count == 0:
        raise ConnectionError("the other side closed the connection")
    return count
