"""Peers: the workers' links with each other, over which they average among themselves.

A vector is cut into as many slices as there are workers, and each worker *owns* one. Whoever wants the mean of a step
sends to each owner what it has for that slice, and is answered with the slice of the mean: so each machine's connection
carries about two vectors a step, however many workers there are. The owner goes by the order of `tree`, element by
element, so the bits are those of the mean that the master would have made.

There is one link between two workers. The one of the higher rank opens it, with the credentials of the run, through the
other's `server.Door`; then both say the same in turns:

    open(run, generation, rank)         ->
                                       <-      begin
    result(number, samples, note) +
      what it has for the other's slice <->    the same
    work + the mean of its own slice    <->    the same

One thread of a worker serves all of its links, and waits at none. So a worker among many has few threads, and takes in
what others have made while it still computes. That the machine of another worker has gone is noticed by the system;
that its process has stopped, by the master.
"""

import json
import os
import queue
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from types import TracebackType
from typing import Any

import numpy as np

from seedlings_spark.training import wire
from seedlings_spark.training.client import RefusedError, open_link
from seedlings_spark.training.server import Door, Listener, Superseded
from seedlings_spark.training.tree import Mean, blocks, mean_of, nodes_within, sizes_of
from seedlings_spark.training.weights import Layout, Vector
from seedlings_spark.training.wire import Connection, Credentials, Kind, Message, ProtocolError

# How long others may take to come, who are told to at about the same time. Whoever cannot reach one of them gives up
# before that, and knows which.
_COME_SECONDS = 70.0
# While so much of a vector is still to come, the thread looks at the network that often only: each look at a few bytes
# would take as much of a processor as one at many.
_BULK_BYTES, _PAUSE_SECONDS = 256 * 1024, 0.001
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
        rank: Of this one.
        sizes: How many shards each of them holds.
        addresses: Of all of them, by rank.
    """

    rank: int
    sizes: Sequence[int]
    addresses: Sequence[Address]

    @property
    def num_shards(self) -> int:
        """Shards that they hold among them."""
        return sum(self.sizes)

    @property
    def num_workers(self) -> int:
        """How many they are."""
        return len(self.addresses)

    @property
    def others(self) -> list[int]:
        """Each begins with another one, so that not all send to the same."""
        return [(self.rank + step) % self.num_workers for step in range(1, self.num_workers)]

    def nodes(self, rank: int) -> list[range]:
        """Of the tree, whose vectors a worker hands in."""
        return nodes_within(blocks(self.sizes)[rank], self.num_shards)

    def slice_of(self, rank: int, vector: Vector) -> Vector:
        """What a worker owns of a vector."""
        return vector[slice_of(rank, self.num_workers, vector.size)]


class Owner:
    """The sums of one slice: what each worker has for it, and when all have said so, the mean.

    Args:
        group: The workers.
    """

    def __init__(self, group: Group) -> None:
        self._number = 0
        self._known: dict[range, Mean] = {}
        self._notes: dict[int, Any] = {}
        self.deal(group)

    def deal(self, group: Group) -> None:
        """The workers hold other shards from the next mean on."""
        self._group = group
        self._nodes = [group.nodes(rank) for rank in range(group.num_workers)]

    def hand_in(self, rank: int, header: Mapping[str, Any], flat: Vector) -> tuple[Mean, list[Any]] | None:
        """What a worker has for this slice.

        Args:
            rank: Rank of the worker.
            header: `number` of the mean, `samples` of each node, and `note`, which is for all.
            flat: One vector for each of its nodes, one after the other. It must not be changed until the mean is there.

        Returns:
            The mean and the notes of all, by rank; None while others are waited for.

        Raises:
            ProtocolError: It is not for the mean that is at hand.
        """
        nodes, samples, number = self._nodes[rank], header.get("samples"), header.get("number")
        if number != self._number or rank in self._notes:
            raise ProtocolError(f"a part of mean {number!r}, expected {self._number}")
        if not isinstance(samples, list) or len(samples) != len(nodes) or not all(map(_is_count, samples)):
            raise ProtocolError("a message whose samples are none")
        for node, vector, count in zip(nodes, flat.reshape(len(nodes), -1), samples, strict=True):
            self._known[node] = Mean(vector, count)
        self._notes[rank] = header.get("note")
        if len(self._notes) < self._group.num_workers:
            return None
        mean = mean_of(range(self._group.num_shards), self._known.get)
        notes = [self._notes[each] for each in range(self._group.num_workers)]
        self._known, self._notes, self._number = {}, {}, self._number + 1
        return mean, notes


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
        self._attempt, self._rank, self._credentials = attempt, rank, credentials
        self.address: Address = str(listener.socket.getsockname()[0]), listener.port
        self._door = Door(listener, credentials, self._let_in)
        self._condition = threading.Condition()
        self._came: dict[int, Connection] = {}
        self._are_all_here = self._is_over = False
        self._group: Group | None = None
        self._sizes: tuple[int, ...] = ()
        self._links: _Links | None = None
        self._number, self._waited = 0, 0.0

    def __enter__(self) -> "Peers":
        self._door.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        if self._links is not None:
            self._links.join()
        for connection in self._came.values():
            connection.close()

    def cut(self) -> None:
        """End all links under whoever waits for what they bring, as the death of this process would."""
        self._door.__exit__(None, None, None)
        with self._condition:
            self._is_over = True
            self._condition.notify_all()
        if self._links is not None:
            self._links.close()

    def join(self, addresses: Sequence[Sequence[Any]], num_shards: int, layout: Layout) -> None:
        """Open the links with all others; nothing happens if that has been done.

        Args:
            addresses: Of all workers, by rank.
            num_shards: Shards that they hold among them.
            layout: Of the vectors that are averaged.

        Raises:
            LostPeerError: One of them cannot be reached, or does not come.
        """
        if self._group is not None:
            return
        sizes = self._sizes or sizes_of(len(addresses), num_shards)
        group = Group(self._rank, sizes, [(str(host), int(port)) for host, port in addresses])
        self._group = group
        opened = {"run": self._attempt[0], "generation": self._attempt[1], "rank": self._rank}
        connections: dict[int, Connection] = {}
        try:
            for rank in range(self._rank):
                with _named(group, rank):
                    connections[rank] = open_link(group.addresses[rank], self._credentials, opened)
            connections |= self._comers(group)
        except BaseException:
            for connection in connections.values():
                connection.close()
            raise
        self._door.__exit__(None, None, None)  # all are here
        self._links = _Links(group, layout, connections)
        if self._is_over:
            self._links.close()

    def deal(self, sizes: Sequence[int]) -> None:
        """All workers hold so many shards each from now on: nobody makes a mean before all have been told."""
        self._sizes = tuple(sizes)
        if self._group is not None and self._links is not None:
            self._group = replace(self._group, sizes=self._sizes)
            self._links.deal(self._group)

    @property
    def has_joined(self) -> bool:
        """Whether there have been links with all others."""
        return self._links is not None

    def mean(
        self, nodes: Sequence[Mean], note: Any = None, become: Callable[[Vector], None] | None = None
    ) -> tuple[Vector, list[Any]]:
        """The mean of all workers' vectors.

        Args:
            nodes: What stands at this worker's nodes of the tree, in their order.
            note: Plain JSON value for the others.
            become: What each owner makes of its slice of the mean, in its place, before all get it; in another thread.

        Returns:
            A vector that is valid until the next call, and the notes of all workers by rank.

        Raises:
            LostPeerError: A worker has gone.
        """
        if self._links is None:
            raise RuntimeError("a mean among workers that do not know each other")
        started = time.perf_counter()
        header = {"number": self._number, "samples": [node.samples for node in nodes], "note": note}
        self._number += 1
        vector, samples, notes = self._links.mean(header, [node.vector for node in nodes], become)
        if not samples:
            raise ValueError("a mean over no samples")
        self._waited += time.perf_counter() - started
        return vector, notes

    def part(self, size: int) -> slice:
        """The slice that this worker owns of a vector of so many numbers."""
        if self._group is None:
            raise RuntimeError("a slice among workers that do not know each other")
        return slice_of(self._rank, self._group.num_workers, size)

    def waited(self) -> float:
        """Seconds in which a mean was waited for, since this was asked the last time."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _let_in(self, connection: Connection, opened: Mapping[str, Any]) -> bool:
        """Another worker says who it is. It may come again for as long as not all are here."""
        rank = opened.get("rank")
        if (opened.get("run"), opened.get("generation")) != self._attempt:
            raise Superseded("this run or attempt is over")
        if not isinstance(rank, int) or isinstance(rank, bool) or rank <= self._rank:
            raise Superseded(f"rank {rank!r} does not come to rank {self._rank}")
        wire.send(connection, Message(Kind.BEGIN))
        with self._condition:
            if self._is_over or self._are_all_here:
                return False
            before = self._came.get(rank)
            self._came[rank] = connection
            self._condition.notify_all()
        if before is not None:
            before.close()
        return True

    def _comers(self, group: Group) -> dict[int, Connection]:
        """The connections of those of higher rank, when all of them have come."""
        expected = range(group.rank + 1, group.num_workers)
        with self._condition:
            self._condition.wait_for(
                lambda: self._is_over or self._came.keys() >= set(expected), _COME_SECONDS
            )
            missing = [rank for rank in expected if rank not in self._came]
            if missing:
                raise LostPeerError(between(group, missing[0], f"it has not come in {_COME_SECONDS:.0f} s"))
            self._are_all_here = True
            return {rank: self._came[rank] for rank in expected}


class _Links:
    """All links of a worker, and the thread that serves them.

    It is closed for good as soon as one of them breaks: then no mean can be had any more, and the others notice.

    Args:
        group: The workers.
        layout: Of the vectors that are averaged.
        connections: With each other worker.
    """

    def __init__(self, group: Group, layout: Layout, connections: Mapping[int, Connection]) -> None:
        self._group, self._owner = group, Owner(group)
        self._mean: Vector = np.empty(layout.size, layout.dtype)
        self._own = group.slice_of(group.rank, self._mean)
        self._links = {
            rank: _Link(
                rank,
                connections[rank],
                np.empty(len(group.nodes(rank)) * self._own.size, layout.dtype),
                group.slice_of(rank, self._mean),
            )
            for rank in group.others
        }
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        for link in self._links.values():
            self._selector.register(link.connection, selectors.EVENT_READ, link)
        self._given: tuple[Mapping[str, Any], Sequence[Vector]] | None = None
        self._become: Callable[[Vector], None] | None = None
        self._answers: queue.SimpleQueue[tuple[int, list[Any]] | Exception] = queue.SimpleQueue()
        # Of the mean at hand: samples and notes when this worker's slice is done, and how many others' slices are here.
        self._done: tuple[int, list[Any]] | None = None
        self._num_slices = 0
        self._is_closing = False
        self._lock = threading.Lock()  # of the bell
        self._thread = threading.Thread(target=self._serve, name="seedlings-links", daemon=True)
        self._thread.start()

    def mean(
        self,
        header: Mapping[str, Any],
        vectors: Sequence[Vector],
        become: Callable[[Vector], None] | None,
    ) -> tuple[Vector, int, list[Any]]:
        """The mean of all workers' vectors, valid until the next call; its samples, and the notes of all."""
        self._given, self._become = (header, vectors), become
        self._ring()
        found = self._answers.get()
        if isinstance(found, Exception):
            self._answers.put(found)  # for whoever asks again
            raise found
        return self._mean, *found

    def deal(self, group: Group) -> None:
        """The workers hold other shards: while nothing is on its way, so that the thread only waits."""
        self._group = group
        self._owner.deal(group)
        for rank, link in self._links.items():
            link.expect(np.empty(len(group.nodes(rank)) * self._own.size, self._own.dtype))

    def close(self) -> None:
        """End all links soon."""
        self._is_closing = True
        self._ring()

    def join(self) -> None:
        """Wait until they have ended."""
        self._thread.join()

    def _ring(self) -> None:
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    # In the thread.

    def _serve(self) -> None:
        failure: Exception = LostPeerError("this worker has ended its links with the others")
        try:
            while not self._is_closing:
                if any(len(link.view) > _BULK_BYTES for link in self._links.values()):
                    time.sleep(_PAUSE_SECONDS)
                for key, events in self._selector.select():
                    if key.data is None:
                        os.eventfd_read(self._bell)
                        self._hand_in()
                    else:
                        self._attend(key.data, events)
        except Exception as error:
            failure = error
        finally:
            for link in self._links.values():
                link.connection.close()
            self._selector.close()
            with self._lock:
                os.close(self._bell)
                self._bell = -1
            self._answers.put(failure)

    def _hand_in(self) -> None:
        """This worker has vectors for all."""
        if self._given is None:
            return
        (header, vectors), self._given = self._given, None
        encoded = json.dumps(header).encode()
        for rank, link in self._links.items():
            link.give(wire.outgoing(Kind.RESULT, encoded, self._part(rank, vectors)))
            self._send(link)
        self._take_part(self._group.rank, header, self._part(self._group.rank, vectors))

    def _part(self, rank: int, vectors: Sequence[Vector]) -> Vector:
        parts = [self._group.slice_of(rank, vector) for vector in vectors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _attend(self, link: "_Link", events: int) -> None:
        with _named(self._group, link.rank):
            if events & selectors.EVENT_READ:
                for message in link.received():
                    if message.kind == Kind.RESULT:
                        self._take_part(link.rank, message.header, link.part)
                    else:
                        self._num_slices += 1
                        self._answer()
            if events & selectors.EVENT_WRITE:
                self._send(link)

    def _take_part(self, rank: int, header: Mapping[str, Any], part: Vector) -> None:
        found = self._owner.hand_in(rank, header, part)
        if found is None:
            return
        mean, notes = found
        self._own[:] = mean.vector
        if self._become is not None:
            self._become(self._own)
        views = wire.outgoing(Kind.WORK, b"", self._own)
        for link in self._links.values():
            link.give(views)
            self._send(link)
        self._done = mean.samples, notes
        self._answer()

    def _send(self, link: "_Link") -> None:
        with _named(self._group, link.rank):
            was_waiting = link.is_waiting
            link.send()
        if link.is_waiting != was_waiting:
            writes = selectors.EVENT_WRITE if link.is_waiting else 0
            self._selector.modify(link.connection, selectors.EVENT_READ | writes, link)

    def _answer(self) -> None:
        if self._done is not None and self._num_slices == len(self._links):
            done, self._done, self._num_slices = self._done, None, 0
            self._answers.put(done)


class _Link:
    """The connection with one other worker, which says in turns what it has for this one's slice, and its own mean.

    Args:
        rank: Of the other one.
        connection: With it.
        part: Takes what it has for this worker's slice.
        mean: Takes the mean of its own slice.
    """

    def __init__(self, rank: int, connection: Connection, part: Vector, mean: Vector) -> None:
        self.rank, self.connection, self._mean = rank, connection, mean
        wire.side_by_side(connection)
        self._leaving: deque[memoryview] = deque()
        self.is_waiting = False  # for the network to take more
        self.expect(part)

    def expect(self, part: Vector) -> None:
        """What takes what the other one has for this worker's slice, from the next mean on."""
        self.part = part
        self._turns = cycle([(Kind.RESULT, _bytes(part)), (Kind.WORK, _bytes(self._mean))])
        self._expected, self._room = next(self._turns)
        self._coming = wire.incoming(self._room)
        self.view = next(self._coming)

    def give(self, views: Sequence[memoryview]) -> None:
        """What is to be sent next; it must not be changed until it has been."""
        self._leaving.extend(views)

    def send(self) -> None:
        """Send as much as the network takes."""
        while self._leaving:
            count = wire.give(self.connection, self._leaving[0])
            if not count:
                break
            self._leaving[0] = self._leaving[0][count:]
            if not len(self._leaving[0]):
                self._leaving.popleft()
        self.is_waiting = bool(self._leaving)

    def received(self) -> Iterator[Message]:
        """The messages that have come whole.

        Raises:
            ProtocolError: Something else has come.
        """
        while True:
            while len(self.view):
                count = wire.take(self.connection, self.view)
                if not count:
                    return
                self.view = self.view[count:]
            try:
                self.view = next(self._coming)
            except StopIteration as done:
                message: Message = done.value
            else:
                continue
            if message.kind != self._expected or len(message.payload) != len(self._room):
                raise ProtocolError(f"{message.kind.name} of {len(message.payload)} bytes from a worker")
            self._expected, self._room = next(self._turns)
            self._coming = wire.incoming(self._room)
            self.view = next(self._coming)
            yield message
            if not wire.holds_more(self.connection):
                return


class _named:  # noqa: N801 - a context manager
    """Names both ends where the connection to another worker breaks."""

    def __init__(self, group: Group, rank: int) -> None:
        self._group, self._rank = group, rank

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LostPeerError):
            return
        if isinstance(error, RefusedError | OSError | ProtocolError):
            raise LostPeerError(between(self._group, self._rank, str(error))) from error


def between(group: Group, rank: int, why: str) -> str:
    """That the connection between this worker and another one is broken."""
    here, there = (f"worker {each} at {_at(group, each)}" for each in (group.rank, rank))
    return f"{here} and {there} cannot reach each other ({why})"


def _at(group: Group, rank: int) -> str:
    host, port = group.addresses[rank]
    return f"{host}:{port}"


def _bytes(vector: Vector) -> memoryview:
    return vector.data.cast("B") if vector.size else memoryview(bytearray())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
