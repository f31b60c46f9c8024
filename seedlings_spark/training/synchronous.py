"""The driver's side of synchronous training: every shard's part of a round, in one order whoever has made it.

At frequency `batch` a round is one step: the workers send gradients, the master takes their mean weighted by
samples and makes one optimizer step. Otherwise a round is some steps that are taken for each shard on its own; then the
master takes the mean, weighted by samples, of weights and optimizer slots alike, and hands it out for the next.

Weights that are not trained (the moving statistics of batch normalisation) are averaged the same way, weighted
by samples, at the end of each round: they are estimates of the same quantity from different samples. Those that no
worker has changed stay what they are, to the bit. Of what a layer counts in integers the highest count stands.
"""

import logging
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from seedlings_spark.errors import ClusterError
from seedlings_spark.training.capacity import ExchangeChoice, ExchangeWatch
from seedlings_spark.training.coordination import Sums, WorkerGroup, check_finite
from seedlings_spark.training.dealing import Dealing, Move, Paces, dealt, moves, slow_workers
from seedlings_spark.training.epochs import Epochs, Observers
from seedlings_spark.training.messages import Begin, Exchanged, Handing, Open, Part, Result, Steps, Work
from seedlings_spark.training.optimizer import has_dynamic_scale
from seedlings_spark.training.owned import Slots, joined
from seedlings_spark.training.peers import slice_of
from seedlings_spark.training.record import Updates
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.tree import Mean, mean_of, most_nodes, most_nodes_of_any, nodes_within
from seedlings_spark.training.weights import Layout, Vector
from seedlings_spark.training.wire import Kind, Message

_log = logging.getLogger(__name__)
# Seconds after which workers that average among themselves hand in what they have, or how many times what that takes;
# and of how many numbers its record may be: it is text.
_SECONDS_OF_PIECE, _TIMES_OUTSIDE, _MOST_NUMBERS = 15.0, 20.0, 100_000


class UnreachedError(ConnectionError):
    """Workers that were to average among themselves have not found each other; says which."""


@dataclass(frozen=True)
class Round:
    """What all workers have made of one piece of work.

    Args:
        parts: One of each shard, in their order.
        mean: Of the vectors of all shards, which is nobody else's; None where there is none.
        arrays: Where workers have averaged among themselves: the arrays of the new state, flat, from their buffers,
            which hold them until the next piece of work.
    """

    parts: list[Part]
    mean: Vector | None = None
    arrays: Iterable[Vector] = ()


class Rendezvous:
    """Where all workers meet the master once a round. A `server.Coordinator`.

    Args:
        group: The workers.
        layout: Layout of a vector.
        state_layout: Layout of the state that workers which average among themselves hand in, each its slice.
        slots: Where each of them makes the optimizer's step on its slice only: where the slots lie in the state.
        dealing: Where shards may change hands: what that takes.

    Attributes:
        watch: Told of every result, if there is one.
        seconds: That each worker has computed for the last round.
        computed: Of these, seconds for the parts of its shards.
    """

    def __init__(
        self,
        group: WorkerGroup,
        layout: Layout,
        state_layout: Layout,
        slots: Slots | None = None,
        dealing: Dealing | None = None,
    ) -> None:
        self._group, self._layout, self._state_layout, self._slots = group, layout, state_layout, slots
        self._dealing = dealing
        self._handed: dict[int, memoryview] | None = None  # by rank, while shards change hands
        self._are_ready: set[int] = set()
        self._is_among = False  # whether the work at hand is one in which workers average among themselves
        self._start: Callable[[], list[Vector]] | None = None  # what such work starts from
        self._condition = group.condition
        self._queues: dict[int, queue.SimpleQueue[Message]] = {}
        self._results: dict[int, Result] = {}
        self._work: Work | None = None
        self._begin: Message | None = None
        self._message: Message | None = None  # of the work
        self._is_leaving = False  # whether this generation of workers is over
        self._is_explained = False  # whether it is known why this generation is over
        self._unreached = ""  # workers that have not found each other, until the master has heard of it
        self.watch: ExchangeWatch | None = None
        self.seconds: Sequence[float] = ()
        self.computed: Sequence[float] = ()
        group.on_restart = self._forget

    @property
    def max_payload_bytes(self) -> int:
        """As many of the longest vectors as a worker sends at once, or its slice of the state."""
        group, dealing = self._group, self._dealing
        slices = [self._slice_layout(rank).nbytes for rank in range(group.num_workers)]
        if dealing is None:
            return max(self._layout.nbytes * most_nodes(group.num_workers, group.num_shards), *slices)
        return max(self._layout.nbytes * most_nodes_of_any(group.num_shards), dealing.max_bytes, *slices)

    # What the server's threads call.

    def open(self, header: Mapping[str, Any]) -> tuple[object, "queue.SimpleQueue[Message]"]:
        """A worker says who it is."""
        with self._condition:
            holder = self._group.enter(Open.parse(header), replace=False)
            return holder, self._answer(holder.rank, self._begin)

    def ready(self, ticket: object) -> "queue.SimpleQueue[Message]":
        """A worker wants its first work."""
        with self._condition:
            if not self._group.holds(ticket) or self._is_leaving:
                return self._left()
            rank = self._group.holder(ticket).rank
            self._are_ready.add(rank)
            if not self._is_among or self._work is None or self._message is None:
                return self._answer(rank, self._message)
            # Those that average among themselves begin when the addresses of all are known.
            answer = self._answer(rank, None)
            if len(self._are_ready) == self._group.num_workers:
                self._introduce()
                self._tell_all(self._whole())
            return answer

    def result(
        self, ticket: object, header: Mapping[str, Any], payload: memoryview
    ) -> "queue.SimpleQueue[Message]":
        """A worker hands in its part of the round."""
        with self._condition:
            if not self._group.holds(ticket):
                return self._left()
            if "lost" in header:
                # Also where others, which notice its end, were quicker; once, though two of them say so.
                if header.get("unreached") and not self._is_explained:
                    self._is_explained, self._unreached = True, str(header["lost"])
                self._group.lost_link(str(header["lost"]))
                return self._leave()
            if self._is_leaving:
                return self._left()
            rank = self._group.holder(ticket).rank
            if self._handed is not None:
                if not Handing.is_in(header):
                    raise Superseded("a result while shards change hands")
                self._handed[rank] = payload
                self._condition.notify_all()
                return self._answer(rank, None)
            result = self._parsed(rank, header, payload)
            self._results[rank] = result
            is_round = self._work is not None and self._work.steps is not None and not self._is_among
            if self.watch is not None and is_round:
                self.watch.result(rank, result.seconds)
            self._condition.notify_all()
            return self._answer(rank, None)

    def error(self, ticket: object, text: str) -> None:
        """A worker's own computation failed."""
        self._group.error(ticket, text)

    def lost(self, ticket: object, why: str) -> None:
        """A connection broke: the others are told at once that this generation is over.

        They end before Spark ends them, so that their processes stay for the next generation, with what they hold.
        """
        with self._condition:  # for all of it: else it could be the next generation that is told
            if self._group.lost(ticket, why) and self._group.has_begun:
                self._is_explained = True
                self._leave()

    # What the master calls.

    def begin(self, begin: Begin) -> None:
        """Tell all workers, and those that will replace them, what holds for the whole run."""
        with self._condition:
            self._begin = Message(Kind.BEGIN, begin.header())
            self._group.has_begun = True
            self._tell_all(self._begin)

    def perform(self, work: Work, start: list[Vector]) -> Round:
        """Let all workers do one piece of work.

        Args:
            work: What to do.
            start: The weights or state to start from, as arrays one after the other, which stay as they are.

        Raises:
            TrainingError: A worker's own computation failed, or workers vanish again and again.
        """
        with self._condition:
            self._results.clear()
            if self.watch is not None and (work.steps is None or not work.steps.first):
                self.watch.pause()  # between epochs the master has other things to do
            self._work, self._message = work, Message(Kind.WORK, work.header(), start)
            self._is_among = False
            self._tell_all(self._message)
        results = self._gathered()
        parts = [part for result in results for part in result.parts]
        return Round(parts, None if work.steps is None else self._mean(results, parts))

    def perform_among(self, work: Work, start: Callable[[], list[Vector]], *, is_known: bool) -> Round:
        """Let all workers do one piece of work in which they average among themselves.

        Args:
            work: What to do: steps of which the last one's state is handed in, or an evaluation.
            start: Gives the state, or weights, to start from, for as long as this takes, as arrays one after the other.
            is_known: Whether the workers have just handed it in.

        Returns:
            Of each step the parts of all shards, and the arrays of the new state; none after an evaluation.

        Raises:
            TrainingError: As of `perform`.
            UnreachedError: Some of them do not reach each other.
        """
        group = self._group
        with self._condition:
            self._results.clear()
            self._work, self._message = work, Message(Kind.WORK, work.header())
            self._is_among, self._start = True, start
            if len(self._are_ready) == group.num_workers:
                self._introduce()
                # A worker that starts anew meanwhile is told the whole by `ready`.
                self._tell_all(Message(Kind.WORK, self._work.header()) if is_known else self._whole())
        results = self._gathered()
        if work.steps is None:
            return Round([part for result in results for part in result.parts])
        parts: list[Part] = []
        for step in range(work.steps.last - work.steps.first):
            for rank, result in enumerate(results):
                held = len(group.shards_of(rank))
                parts += result.parts[step * held : (step + 1) * held]
        handed_in = [result.vectors[0] for result in results]
        if self._slots is not None:
            owned = [self._part(rank, self._layout.size) for rank in range(group.num_workers)]
            return Round(parts, arrays=self._slots.arrays(handed_in, owned))
        sizes = self._state_layout.sizes
        places = zip(accumulate(sizes, initial=0), sizes, strict=False)
        return Round(parts, arrays=(joined(handed_in, start, size) for start, size in places))

    def _gathered(self) -> list[Result]:
        self._group.wait(lambda: bool(self._unreached) or len(self._results) == self._group.num_workers)
        with self._condition:
            self._message = None  # workers that come before the next piece of work wait for it
            unreached, self._unreached = self._unreached, ""
        if unreached:
            raise UnreachedError(unreached)
        results = [self._results[rank] for rank in range(self._group.num_workers)]
        self.seconds = [result.seconds for result in results]
        self.computed = [result.computed for result in results]
        return results

    def deal(self, sizes: tuple[int, ...]) -> bool:
        """Let shards change hands, through the driver, while there is no work.

        Args:
            sizes: How many each worker is to hold.

        Returns:
            Whether they have; not where a worker was lost, after which all begin anew with the blocks that they had.
        """
        group = self._group
        generation, moved = group.generation, moves(group.sizes, sizes)
        if not all(self._move(move, generation) for move in moved):
            return False
        told = dict.fromkeys(range(group.num_workers), (Handing(sizes=sizes), b""))
        if self._hand(told, generation) is None:
            return False
        with self._condition:
            if group.generation == generation:
                group.deal(sizes, len(moved))
            return group.generation == generation

    def _move(self, move: Move, generation: int) -> bool:
        """Take a shard from one worker to another, some rows at once; whether both were there to the end."""
        if self._dealing is None:
            raise RuntimeError("shards that change hands, which was not asked for")
        rows, at_once = self._group.rows_of(move.shard), self._dealing.rows_at_once
        for held_out, count in ((False, rows.train), (True, rows.held_out)):
            for first in range(0, max(1, count), at_once):
                last = min(first + at_once, count)
                part = Handing(shard=move.shard, held_out=held_out, first=first, last=last)
                given = self._hand({move.giver: (replace(part, is_asked=True), b"")}, generation)
                # The payload lies in the giver's buffer, which nobody writes to until it is told something else.
                if given is None or self._hand({move.taker: (part, given[move.giver])}, generation) is None:
                    return False
        return True

    def _hand(self, told: Mapping[int, tuple[Handing, Any]], generation: int) -> dict[int, memoryview] | None:
        """Tell some workers something of shards that change hands, and wait for their answers.

        Returns:
            What came with them, by rank; None where this generation of workers is over.
        """
        group = self._group
        with self._condition:
            if group.generation != generation or not told.keys() <= self._queues.keys():
                return None
            self._handed = {}
            for rank, (handing, payload) in told.items():
                self._queues.pop(rank).put(Message(Kind.WORK, handing.header(), payload))
        try:
            group.wait(lambda: group.generation != generation or told.keys() == (self._handed or {}).keys())
        finally:
            with self._condition:
                handed, self._handed = self._handed, None
        return handed if group.generation == generation else None

    def _parsed(self, rank: int, header: Mapping[str, Any], payload: memoryview) -> Result:
        """A worker's result of the work at hand.

        Raises:
            Superseded: It is none.
        """
        work, group = self._work, self._group
        held = group.shards_of(rank)
        steps = work.steps if work is not None else None
        if self._is_among and steps is not None:
            num_parts = len(held) * (steps.last - steps.first)
            result = Result.parse(header, payload, self._slice_layout(rank), num_parts)
            expected = 1
        else:
            result = Result.parse(header, payload, self._layout, len(held))
            expected = len(nodes_within(held, group.num_shards)) * (steps is not None)
        if work is None or result.number != work.number or len(result.vectors) != expected:
            raise Superseded(f"work {result.number!r} is not what this worker was given")
        return result

    def _slice_layout(self, rank: int) -> Layout:
        if self._slots is None:
            part = self._part(rank, self._state_layout.size)
            size = part.stop - part.start
        else:
            size = self._slots.size_of(self._part(rank, self._layout.size))
        return Layout(((size,),), self._state_layout.dtype)

    def _part(self, rank: int, size: int) -> slice:
        return slice_of(rank, self._group.num_workers, size)

    def _introduce(self) -> None:
        """Put into the work where the workers of this generation are."""
        if self._work is not None:
            opened = [self._group.opened(rank) for rank in range(self._group.num_workers)]
            self._work = replace(self._work, peers=[list(one.address) for one in opened])

    def _whole(self) -> Message:
        """The work at hand, in which workers average among themselves, with what it starts from."""
        if self._work is None or self._start is None:
            raise RuntimeError("there is no work")
        return Message(Kind.WORK, self._work.header(), self._start())

    def _mean(self, results: Sequence[Result], parts: Sequence[Part]) -> Vector:
        """The mean of all shards' vectors, from those of the workers' nodes."""
        group, known = self._group, {}
        for rank, result in enumerate(results):
            nodes = nodes_within(group.shards_of(rank), group.num_shards)
            for node, vector in zip(nodes, result.vectors, strict=True):
                known[node] = Mean(vector, sum(parts[shard].samples for shard in node))
        mean = mean_of(range(group.num_shards), known.get)
        if not mean.samples:
            raise ValueError("a mean over no samples")
        # One that is a worker's own lies in the buffer of its connection.
        is_own = any(mean.vector is one.vector for one in known.values())
        return np.array(mean.vector) if is_own else mean.vector

    def stop(self) -> None:
        """Tell all workers that there is no more work."""
        with self._condition:
            self._work = None
            self._begin = self._message = Message(Kind.STOP)
            self._tell_all(self._message)
        self._group.close()

    def _answer(self, rank: int, message: Message | None) -> "queue.SimpleQueue[Message]":
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
        if message is not None:
            answer.put(message)
        else:
            self._queues[rank] = answer
        return answer

    def _tell_all(self, message: Message) -> None:
        for answer in self._queues.values():
            answer.put(message)
        self._queues.clear()

    def _leave(self) -> "queue.SimpleQueue[Message]":
        """This generation is over: those that wait are told, and whoever asks."""
        self._is_leaving = True
        self._tell_all(_AGAIN)
        return self._left()

    def _left(self) -> "queue.SimpleQueue[Message]":
        """What a worker is told whose generation is over."""
        answer: queue.SimpleQueue[Message] = queue.SimpleQueue()
        answer.put(_AGAIN)
        return answer

    def _forget(self) -> None:
        self._tell_all(_AGAIN)
        self._results.clear()
        self._are_ready.clear()
        self._is_leaving = self._is_explained = False
        self._handed = None
        if self.watch is not None:
            self.watch.pause()


# There is no more work for this generation; for the next one, which may be in the same process, there will be.
_AGAIN = Message(Kind.STOP, {"again": True})


class SynchronousRun:
    """A run whose workers meet once a round. An `engine.Exchange`.

    Args:
        group: The workers.
        master: A `master.Master`.
        exchanged: Gradients, or state after local steps.
        exchange: One of `choices.EXCHANGES`; "driver" where steps are local.
        dealing: When a slow worker loses shards to faster ones; None for never.
    """

    def __init__(
        self,
        group: WorkerGroup,
        master: Any,
        exchanged: Exchanged,
        exchange: str = "driver",
        dealing: Dealing | None = None,
    ) -> None:
        self._group, self._master = group, master
        self._is_local = exchanged.is_local
        self._is_among = exchange == "workers"
        self._choice = ExchangeChoice() if exchange == "auto" else None
        self._may_be_driver, self._is_unreached = exchange != "workers", False
        self._pace = _Pace()
        self._dealing, self._paces = dealing, Paces()
        # The generation of workers that hold the master's state; its digest, since when others could change it.
        self._held: int | None = None
        self._digest: bytes | None = None
        self._number = 0
        layout = master.state_layout if self._is_local else master.model_layout
        is_owned = exchange != "driver" and master.is_elementwise
        slots = Slots(master.vectors, master.optimizer) if is_owned else None
        self.coordinator = Rendezvous(group, layout, master.state_layout, slots, dealing)

    def begin(self, begin: Begin, epochs: Epochs) -> None:
        """Tell all workers what holds for the whole run; `steps` are added."""
        first, last = epochs.rounds()[0]
        self.coordinator.watch = ExchangeWatch(
            self._group.num_workers, self.coordinator.max_payload_bytes, last - first, epochs.num_steps
        )
        self.coordinator.begin(replace(begin, steps=epochs.num_steps))

    def train(self, epochs: Epochs, observers: Observers) -> None:
        """Train the master model.

        Raises:
            TrainingError: The loss is no longer finite, or the workers failed.
        """
        for epoch in range(epochs.first, epochs.end):
            self._group.new_epoch()
            self._epoch(epoch, epochs, observers)
            if self._master.network.stop_training:
                break
            if epoch + 1 < epochs.end:
                self._group.grow()
                self._deal()
        self._master.finalize()

    def updates(self) -> Updates | None:
        """None: only an asynchronous run counts them."""
        return None

    def _epoch(self, epoch: int, epochs: Epochs, observers: Observers) -> None:
        started = time.perf_counter()
        observers.callbacks.on_epoch_begin(epoch)
        sums = Sums()
        for _ in self._rounds(epoch, epochs, sums):
            observers.progress.step(epoch, sums.samples, epochs.num_rows, lambda: sums.logs(self._master))
        if self._is_among and self._held is not None:  # callbacks may change it from here on
            self._digest = self._master.digest()
        seconds = time.perf_counter() - started
        logs = sums.logs(self._master)
        if epochs.held_out_rows:
            observers.callbacks.on_test_begin()
            held_out = self._evaluate()
            found = held_out.logs(self._master)
            observers.callbacks.on_test_end(found)
            observers.hear_confusion(epoch, held_out.beyond(self._master))
            logs.update({f"val_{name}": value for name, value in found.items()})
        observers.callbacks.on_epoch_end(epoch, logs)
        observers.checkpoint(epoch, self._master.state, ())
        observers.progress.epoch(epoch, seconds, epochs.num_rows, logs)

    def _deal(self) -> None:
        """Let workers that are slow, by the epoch that has ended, lose shards to faster ones."""
        group, dealing = self._group, self._dealing
        seconds = self._paces.of_epoch(group.generation)
        if dealing is None or not seconds:
            return
        before = group.sizes
        sizes = dealt(before, seconds, dealing.factor)
        if sizes == before:
            return
        started = time.perf_counter()
        if self.coordinator.deal(sizes):
            _log.info(
                "workers hold %s instead of %s shards from here on, since %s (seconds of a step and shard: %s);"
                " moved in %.1f s",
                *(list(sizes), list(before)),
                _said_of(slow_workers(before, seconds, dealing.factor)),
                ", ".join(f"{each:.3f}" for each in seconds),
                time.perf_counter() - started,
            )

    def _rounds(self, epoch: int, epochs: Epochs, sums: Sums) -> Iterator[None]:
        """Train an epoch; comes back now and then."""
        rounds, at = epochs.rounds(), 0
        vector: Vector | None = None
        while at < len(rounds):
            if self._is_among:
                most = _MOST_NUMBERS // (self._group.num_shards * (sum(self._master.metric_sizes) + 10))
                end = min(at + min(self._pace.steps, max(1, most)), len(rounds))
                try:
                    self._piece(Steps(epoch, at, end), sums)
                except UnreachedError as error:
                    self._without_links(error)
                    continue
                at, self._is_unreached = end, False
            else:
                started = time.perf_counter()
                if vector is None:
                    vector = self._master.state() if self._is_local else self._master.weights()
                vector = self._round(Steps(epoch, *rounds[at]), vector, sums)
                at += 1
                self._choose(time.perf_counter() - started)
            yield

    def _choose(self, seconds: float) -> None:
        """From the first rounds, which took so long, whether workers had better average among themselves."""
        if self._choice is None:
            return
        decided = self._choice.round(seconds, self.coordinator.seconds, self._group.hosts())
        if decided is not None:
            self._is_among, self._choice = decided, None

    def _without_links(self, error: UnreachedError) -> None:
        """Go on through the driver, or once more: it may have been a worker that was lost just then.

        Raises:
            ClusterError: It is the second time, and nobody has said that the driver may do it.
        """
        if self._may_be_driver:
            _log.warning("exchange through the driver from here on: %s", error)
            self._is_among = False
        elif self._is_unreached:
            raise ClusterError(
                str(error),
                "executors that reach each other, as exchange workers needs",
                "Open --worker-port to the executors in their firewall, or use --exchange driver",
            ) from error
        self._is_unreached = True

    def _piece(self, steps: Steps, sums: Sums) -> None:
        """Let the workers train some steps among themselves, and take over where that has led."""
        master, started = self._master, time.perf_counter()
        found = self._perform(steps, master.state_arrays)
        self._note_paces(steps)
        may_overflow, num_shards = has_dynamic_scale(master.optimizer), self._group.num_shards
        for number, part in enumerate(found.parts):
            step = steps.first + number // num_shards
            check_finite(
                part, Steps(steps.epoch, step, step + 1), number % num_shards, may_overflow=may_overflow
            )
        master.set_arrays(found.arrays)
        master.take_counters([found.parts[-1].counters])
        master.take_counts([found.parts[-1].counts])
        self._held, self._digest = self._group.generation, None
        sums.add(found.parts)
        seconds = time.perf_counter() - started
        self._pace.has_taken(steps.last - steps.first, seconds, seconds - max(self.coordinator.seconds))

    def _is_held(self) -> bool:
        """Whether the workers have the master's state by what they did last."""
        if self._held != self._group.generation:
            return False
        return self._digest is None or self._digest == self._master.digest()

    def _round(self, steps: Steps, vector: Vector, sums: Sums) -> Vector:
        """Let all workers train some steps, and take what they make of it; what the next round starts from."""
        master = self._master
        may_overflow = not self._is_local and has_dynamic_scale(master.optimizer)
        found = self._perform(steps, lambda: [vector])
        self._note_paces(steps)
        for shard, part in enumerate(found.parts):
            check_finite(part, steps, shard, may_overflow=may_overflow)
        if found.mean is None:
            raise RuntimeError("a round of training without vectors")
        master.take_counts([part.counts for part in found.parts])
        if self._is_local:
            master.set_state(found.mean)
            master.take_counters([part.counters for part in found.parts])
            vector = found.mean
        else:
            vector = master.apply_gradient(found.mean)
        sums.add(found.parts)
        return vector

    def _evaluate(self) -> Sums:
        """Of the rows that are held out."""
        held_out = Sums()
        held_out.add(self._perform(None, lambda: [self._master.weights()]).parts)
        return held_out

    def _perform(self, steps: Steps | None, start: Callable[[], list[Vector]]) -> Round:
        self._number += 1
        work = self._master.work(self._number, steps)
        if not self._is_among:
            return self.coordinator.perform(work, start())
        is_held = self._is_held()
        if not is_held:
            self._held = None
        return self.coordinator.perform_among(work, start, is_known=is_held)

    def _note_paces(self, steps: Steps) -> None:
        """Keep how long each worker has computed for these steps, which have just been done."""
        group, computed = self._group, self.coordinator.computed
        self._paces.took(group.generation, group.sizes, steps.last - steps.first, computed)


def _said_of(slow: Sequence[int]) -> str:
    if not slow:
        return "none is slower than the others any more"
    return (
        f"worker{'s' * (len(slow) > 1)} {', '.join(map(str, slow))} {'are' if len(slow) > 1 else 'is'} slow"
    )


class _Pace:
    """How many steps workers take among themselves before the master hears of them: those of some seconds.

    So much is lost when a worker is, and so long a person sees nothing new. To hand in the state is to take a small
    share of the time only. It changes no bit.
    """

    def __init__(self) -> None:
        self.steps = 1

    def has_taken(self, steps: int, seconds: float, outside: float) -> None:
        """So many steps have taken so long, of which the workers were without work for a while."""
        long = max(_SECONDS_OF_PIECE, _TIMES_OUTSIDE * outside)
        if steps == self.steps and seconds < long / 2:
            self.steps = 2 * steps
        elif seconds > 2 * long:
            self.steps = max(1, self.steps // 2)
