"""Peers: the workers' connections with each other, over which they average among themselves.

A vector is cut into as many slices as there are workers, and each worker *owns* one. Whoever wants the mean of a step
sends to each owner what it has for that slice, and is answered with the slice of the mean: so each link carries about
two vectors a step, however many workers there are. The owner goes by the order of `tree`, element by element, so the
bits are those of the mean that the master would have made.

    worker                                   owner of slice j
      open(run, generation, rank)      ->
                                       <-      begin
      result(number, samples) + what
        it has for slice j             ->
                                       <-      work(number, notes of all) + slice j of the mean

An owner is a `ParameterServer` with a coordinator of its own, and a worker is a `ParameterClient` of each other one:
the same TLS with the same credentials, the same limits, the same signs of life as between workers and master.
"""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from seedlings_spark.training.client import ParameterClient, RefusedError
from seedlings_spark.training.server import Listener, ParameterServer, Superseded
from seedlings_spark.training.tree import Mean, mean_of, most_nodes, nodes_within, shards_of
from seedlings_spark.training.weights import Layout, Vector
from seedlings_spark.training.wire import Credentials, Kind, Message, ProtocolError

# How often, while others are waited for, it is looked whether they are there.
_LOOK_SECONDS = 1.0
# (host, port).
Address = tuple[str, int]


class LostPeerError(ConnectionError):
    """Two workers can no longer reach each other; says which."""


def slice_of(rank: int, num_workers: int, size: int) -> slice:
    """What a worker owns of a vector of so many numbers."""
    return slice(rank * size // num_workers, (rank + 1) * size // num_workers)


@dataclass(frozen=True)
class Group:
    """The workers of a run that average among themselves.

    Args:
        run: Id of the run.
        generation: Generation of the workers.
        rank: Of this one.
        num_shards: Shards that they hold among them.
        addresses: Of all of them, by rank.
    """

    run: str
    generation: int
    rank: int
    num_shards: int
    addresses: Sequence[Address]

    @property
    def num_workers(self) -> int:
        """How many they are."""
        return len(self.addresses)

    def nodes(self, rank: int) -> list[range]:
        """Of the tree, whose vectors a worker hands in."""
        return nodes_within(shards_of(rank, self.num_workers, self.num_shards), self.num_shards)

    def slice_of(self, rank: int, size: int) -> slice:
        """What a worker owns of a vector of so many numbers."""
        return slice_of(rank, self.num_workers, size)


@dataclass
class _Round:
    """What has come in for one mean.

    `known` are the means of nodes, `notes` what each worker has to say to all others, `answers` where they wait.
    """

    known: dict[range, Mean] = field(default_factory=dict)
    notes: dict[int, Any] = field(default_factory=dict)
    answers: list["queue.SimpleQueue[Message]"] = field(default_factory=list)


class Owner:
    """Averages one slice of all workers' vectors. A `server.Coordinator`.

    Args:
        run: Id of the run; workers of another one are refused.
        generation: Generation of the workers; the same holds.
    """

    def __init__(self, run: str, generation: int) -> None:
        self._run, self._generation = run, generation
        self._lock = threading.Lock()
        self._group: Group | None = None
        self._layout: Layout | None = None
        self._waiting: dict[
            int, queue.SimpleQueue[Message]
        ] = {}  # those that came before this worker knew the others
        self._entered: set[int] = set()
        self._round, self._number = _Round(), 0
        self._lost: str | None = None

    @property
    def max_payload_bytes(self) -> int:
        """As many slices as one worker sends at once."""
        if self._group is None or self._layout is None:
            return 0
        vectors = most_nodes(self._group.num_workers, self._group.num_shards)
        return int(vectors * self._length() * np.dtype(self._layout.dtype).itemsize)

    def join(self, group: Group, layout: Layout) -> None:
        """Let those in that have come, and that will come: these are the others."""
        with self._lock:
            self._group, self._layout = group, layout
            for rank, answer in self._waiting.items():
                answer.put(self._welcome(rank))
            self._waiting.clear()

    # What the server's threads call.

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """Another worker says who it is."""
        rank = header.get("rank")
        if header.get("run") != self._run or header.get("generation") != self._generation:
            raise Superseded("this run or attempt is over")
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise Superseded("a message whose rank is none")
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
        with self._lock:
            if rank in self._entered:
                raise Superseded(f"rank {rank} is not free")
            self._entered.add(rank)
            if self._group is None:
                self._waiting[rank] = answer
            else:
                answer.put(self._welcome(rank))
        return rank, answer

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """There is no work to be had here."""
        raise Superseded("an owner has no work")

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """Another worker hands in what it has for this slice."""
        if not isinstance(ticket, int) or self._layout is None:
            raise Superseded("a worker that has no place here")
        try:
            if len(payload) % np.dtype(self._layout.dtype).itemsize:
                raise Superseded(f"a vector of {len(payload)} bytes")
            return self.hand_in(ticket, header, np.frombuffer(payload, self._layout.dtype))
        except Superseded as why:
            self.lost(ticket, str(why))  # the others wait for what will not come
            raise

    def error(self, ticket: object, text: str) -> None:
        """The other worker's own computation failed: it tells the master."""
        self.lost(ticket, "its computation failed")

    def stop(self) -> None:
        """The master tells when there is no more work."""

    def lost(self, ticket: object, why: str) -> None:
        """The connection to another worker ended: no mean can be had any more."""
        with self._lock:
            if not isinstance(ticket, int):
                return
            if self._group is None:  # it may come again
                self._entered.discard(ticket)
                self._waiting.pop(ticket, None)
                return
            self._lost = self._lost or between(self._group, ticket, why)
            for answer in self._round.answers:
                answer.put(Message(Kind.REFUSED, {"text": self._lost}))
            self._round = _Round()

    # What this worker calls.

    def hand_in(self, rank: int, header: Mapping[str, Any], flat: Vector) -> "queue.SimpleQueue[Message]":
        """What a worker has for this slice: one vector for each of its nodes, one after the other.

        Args:
            rank: Rank of the worker.
            header: `number` of the step, `samples` of each node, and `note`, which goes to all.
            flat: It must not be changed until the answer has been put.

        Raises:
            Superseded: It is not for the step that is at hand.
        """
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
        with self._lock:
            group = self._group
            if group is None or self._layout is None:
                raise Superseded("a worker that has no place here")
            if self._lost is not None:
                answer.put(Message(Kind.REFUSED, {"text": self._lost}))
                return answer
            nodes, size = group.nodes(rank), self._length()
            samples, number = header.get("samples"), header.get("number")
            if number != self._number or rank in self._round.notes or flat.size != len(nodes) * size:
                raise Superseded(
                    f"{flat.size} numbers for mean {number!r}, expected {len(nodes) * size} for {self._number}"
                )
            if (
                not isinstance(samples, list)
                or len(samples) != len(nodes)
                or not all(map(_is_count, samples))
            ):
                raise Superseded("a message whose samples are none")
            for node, vector, count in zip(nodes, flat.reshape(len(nodes), size), samples, strict=True):
                self._round.known[node] = Mean(vector, count)
            self._round.notes[rank] = header.get("note")
            self._round.answers.append(answer)
            if len(self._round.notes) == group.num_workers:
                self._answer(group)
        return answer

    def _answer(self, group: Group) -> None:
        """All have handed in: the mean of this slice is sent to all."""
        mean = mean_of(range(group.num_shards), self._round.known.get)
        notes = [self._round.notes[rank] for rank in range(group.num_workers)]
        header = {"number": self._number, "samples": mean.samples, "notes": notes}
        # A mean that is one worker's own lies in the buffer of its connection, which the next vector comes into.
        is_own = any(mean.vector is one.vector for one in self._round.known.values())
        message = Message(Kind.WORK, header, np.array(mean.vector) if is_own else mean.vector)
        for answer in self._round.answers:
            answer.put(message)
        self._round, self._number = _Round(), self._number + 1

    def _welcome(self, rank: int) -> Message:
        if self._group is None or not 0 <= rank < self._group.num_workers or rank == self._group.rank:
            return Message(Kind.REFUSED, {"text": f"rank {rank} is none of this run's others"})
        return Message(Kind.BEGIN)

    def _length(self) -> int:
        if self._group is None or self._layout is None:
            raise RuntimeError("a slice of an unknown vector")
        mine = self._group.slice_of(self._group.rank, self._layout.size)
        return int(mine.stop - mine.start)


class Peers:
    """One worker among those that average among themselves; a context manager.

    Args:
        listener: Where the others come to. It is closed with this.
        credentials: Credentials of the run.
        attempt: Id of the run, and generation of the workers.
        rank: Of this one.
    """

    def __init__(
        self, listener: Listener, credentials: Credentials, attempt: tuple[str, int], rank: int
    ) -> None:
        self._attempt, self._rank = attempt, rank
        self._owner = Owner(*attempt)
        self._credentials = credentials
        self.address: Address = str(listener.socket.getsockname()[0]), listener.port
        self._server = ParameterServer(self._owner, listener, credentials)
        self._stack = ExitStack()
        self._sender = ThreadPoolExecutor(1, "seedlings-sender")
        self._group: Group | None = None
        self._layout = Layout((), "float32")
        self._clients: dict[int, ParameterClient] = {}
        self._mean: Vector = np.zeros(0)
        self._number, self._waited = 0, 0.0

    def __enter__(self) -> "Peers":
        self._stack.callback(self._sender.shutdown, wait=False, cancel_futures=True)
        self._stack.enter_context(self._server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def cut(self) -> None:
        """End all connections under whatever waits at them, as the death of this process would."""
        for client in list(self._clients.values()):
            client.cut()
        self._server.__exit__(None, None, None)

    def join(self, addresses: Sequence[Sequence[Any]], num_shards: int, layout: Layout) -> None:
        """Connect with all others; nothing happens if that has been done.

        Args:
            addresses: Of all workers, by rank.
            num_shards: Shards that they hold among them.
            layout: Of the vectors that are averaged.

        Raises:
            LostPeerError: One of them cannot be reached.
        """
        if self._group is not None:
            return
        group = Group(
            *self._attempt, self._rank, num_shards, [(str(host), int(port)) for host, port in addresses]
        )
        self._group, self._layout = group, layout
        self._mean = np.empty(layout.size, layout.dtype)
        self._owner.join(group, layout)
        opened = {"run": group.run, "generation": group.generation, "rank": group.rank}
        for rank in self._others(group):
            with _named(group, rank):
                client = ParameterClient(group.addresses[rank], self._credentials)
                self._clients[rank] = self._stack.enter_context(client)
                client.open(opened)
                client.expect(_slice(group, rank, self._mean).nbytes)

    def mean(self, nodes: Sequence[Mean], note: Any = None) -> tuple[Vector, list[Any]]:
        """The mean of all workers' vectors.

        Args:
            nodes: What stands at this worker's nodes of the tree, in their order.
            note: Plain JSON value for the others.

        Returns:
            A vector that is valid until the next call, and the notes of all workers by rank.

        Raises:
            LostPeerError: A worker has gone.
        """
        group = self._group
        if group is None:
            raise RuntimeError("a mean among workers that do not know each other")
        started = time.perf_counter()
        header = {"number": self._number, "samples": [node.samples for node in nodes], "note": note}
        self._number += 1

        def part(rank: int) -> Vector:
            parts = [_slice(group, rank, node.vector) for node in nodes]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        def hand_in(rank: int) -> None:
            with _named(group, rank):
                self._clients[rank].hand_in(header, part(rank))

        own = self._owner.hand_in(group.rank, header, part(group.rank))
        # Each begins with another one, so that not all send to the same; and takes answers while it still sends, so
        # that nobody waits long for it to read.
        sent = {rank: self._sender.submit(hand_in, rank) for rank in self._others(group)}
        message = self._own(own)
        _slice(group, group.rank, self._mean)[:] = message.payload
        for rank, is_sent in sent.items():
            is_sent.result()
            with _named(group, rank):
                found = np.frombuffer(self._clients[rank].answer().payload, self._layout.dtype)
                _slice(group, rank, self._mean)[:] = found
        if not message.header["samples"]:
            raise ValueError("a mean over no samples")
        self._waited += time.perf_counter() - started
        return self._mean, message.header["notes"]

    def own(self, vector: Vector) -> Vector:
        """Of a vector that all workers have alike, the slice that this one is to hand in."""
        if self._group is None:
            raise RuntimeError("a slice among workers that do not know each other")
        return _slice(self._group, self._rank, vector)

    def waited(self) -> float:
        """Seconds in which a mean was waited for, since this was asked the last time."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _own(self, answer: "queue.SimpleQueue[Message]") -> Message:
        """The slice of the mean that is this worker's, once all have handed in.

        One that has gone before it ever came here is seen at the other connection with it only.
        """
        message = None
        while message is None:
            try:
                message = answer.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._look()
        if message.kind == Kind.REFUSED:
            raise LostPeerError(message.header["text"])
        return message

    def _look(self) -> None:
        for rank, client in self._clients.items():
            if client.is_gone and self._group is not None:
                raise LostPeerError(between(self._group, rank, "it has ended the connection"))

    def _others(self, group: Group) -> list[int]:
        return [(group.rank + step) % group.num_workers for step in range(1, group.num_workers)]


class _named:  # noqa: N801 - a context manager
    """Names both ends where the connection to another worker breaks."""

    def __init__(self, group: Group, rank: int) -> None:
        self._group, self._rank = group, rank

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RefusedError):
            raise LostPeerError(str(error)) from error
        if isinstance(error, OSError | ProtocolError):
            raise LostPeerError(between(self._group, self._rank, str(error))) from error


def between(group: Group, rank: int, why: str) -> str:
    """That the connection between this worker and another one is broken."""
    here, there = (f"worker {each} at {_at(group, each)}" for each in (group.rank, rank))
    return f"{here} and {there} cannot reach each other ({why})"


def _at(group: Group, rank: int) -> str:
    if not 0 <= rank < group.num_workers:
        return "an unknown address"
    host, port = group.addresses[rank]
    return f"{host}:{port}"


def _slice(group: Group, rank: int, vector: Vector) -> Vector:
    return vector[group.slice_of(rank, vector.size)]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
