"""What bounds the speed of training: the workers' computing, the driver's network, or the parameter server.

Pure arithmetic on times and sizes that were measured elsewhere: a model of how fast other numbers of workers would be
on other networks. And a watch that a run carries: from its first exchanges it tells whether workers wait for the
master more than they should, and which frequency would end that.
"""

import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)
# Exchanges of each worker that are left out, since the network is traced in them, and those that are looked at.
_SKIPPED, _LOOKED_AT = 3, 20
# The share of its time that a worker may be without work before it is worth a word, and the share to aim at.
_TOO_MUCH, _GOOD = 0.25, 0.10
# The share of a step that has to be gained before workers average among themselves.
_WORTH = 0.05
# Of the bytes of a full Ethernet frame (1,514), those that a program has sent: beside them are Ethernet's, IP's and
# TCP's.
_CONTENT = 1448 / 1514


@dataclass(frozen=True)
class Exchange:
    """What one exchange of a worker costs, on the average.

    Args:
        compute: Seconds that the worker computes for it.
        outside: Seconds from its result to its next work.
        steps: That the worker takes for it.
    """

    compute: float
    outside: float
    steps: int

    @property
    def share_outside(self) -> float:
        """Of the worker's time, without work."""
        return self.outside / max(1e-12, self.compute + self.outside)

    def steps_for(self, share: float) -> int:
        """The least number of steps an exchange with which the worker is without work for at most this share."""
        of_step = max(1e-12, self.compute / self.steps)
        return max(1, math.ceil(self.outside * (1 - share) / share / of_step - 1e-9))


def advice(exchange: Exchange, *, num_workers: int, vector_bytes: int, steps_of_epoch: int) -> str | None:
    """What to say of a run whose exchanges cost this; None where all is well.

    Args:
        exchange: That of the worker that waits least: it is then not a slow worker that the others wait for.
        num_workers: Number of workers of the run.
        vector_bytes: Bytes of what travels in each direction in one exchange.
        steps_of_epoch: Steps of one worker in an epoch.
    """
    if exchange.share_outside <= _TOO_MUCH or exchange.steps >= steps_of_epoch:
        return None
    seconds = exchange.compute + exchange.outside
    rate = 2 * num_workers * vector_bytes / max(1e-9, exchange.outside)
    steps = exchange.steps_for(_GOOD)
    better = "epoch" if steps >= steps_of_epoch else str(steps)
    return (
        f"workers compute {exchange.compute * 1e3:.0f} ms and then are without work for"
        f" {exchange.outside * 1e3:.0f} ms ({exchange.share_outside:.0%}): the driver exchanges"
        f" {2 * num_workers * vector_bytes / 1e6:,.1f} MB with {num_workers} workers every {seconds * 1e3:.0f} ms,"
        f" at {rate * 8 / 1e9:.1f} Gb/s. With frequency {better} they would exchange less often and be without work"
        f" for {'less than ' if better == 'epoch' else ''}{_GOOD:.0%}; or give them a larger batch"
    )


class ExchangeWatch:
    """Looks at the first exchanges of a run, and says once if they hold up the workers.

    Args:
        num_workers: Number of workers of the run.
        vector_bytes: Bytes of what travels in each direction in one exchange.
        steps: Steps of one exchange.
        steps_of_epoch: Steps of one worker in an epoch.
        say: Hears of it.
        clock: In seconds.
    """

    def __init__(
        self,
        num_workers: int,
        vector_bytes: int,
        steps: int,
        steps_of_epoch: int,
        say: Callable[[str], None] = _log.warning,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._num_workers, self._vector_bytes, self._steps_of_epoch = (
            num_workers,
            vector_bytes,
            steps_of_epoch,
        )
        self._steps, self._say, self._clock = steps, say, clock
        self._last: dict[int, float] = {}
        self._seen: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self._is_over = False

    def result(self, rank: int, seconds: float) -> None:
        """A worker hands in a result for which it has computed so long."""
        if self._is_over:
            return
        now = self._clock()
        if rank in self._last:
            self._seen[rank].append((seconds, max(0.0, now - self._last[rank] - seconds)))
        self._last[rank] = now
        whole = _SKIPPED + _LOOKED_AT
        if len(self._seen) < self._num_workers or min(map(len, self._seen.values())) < whole:
            return
        self._is_over = True
        medians = [
            Exchange(
                statistics.median(compute for compute, _ in seen[_SKIPPED:]),
                statistics.median(outside for _, outside in seen[_SKIPPED:]),
                self._steps,
            )
            for seen in self._seen.values()
        ]
        found = advice(
            min(medians, key=lambda exchange: exchange.outside),
            num_workers=self._num_workers,
            vector_bytes=self._vector_bytes,
            steps_of_epoch=self._steps_of_epoch,
        )
        if found:
            self._say(found)

    def pause(self, rank: int | None = None) -> None:
        """A worker, or all, do something else now, an evaluation: the time until the next result says nothing."""
        if rank is None:
            self._last.clear()
        else:
            self._last.pop(rank, None)


class ExchangeChoice:
    """Tells from the first rounds of a run, which went through the driver, whether workers had better average alone.

    Args:
        say: Hears why.
    """

    def __init__(self, say: Callable[[str], None] = _log.info) -> None:
        self._say = say
        self._num_workers = 0
        self._seen: list[tuple[float, float]] = []

    def round(self, seconds: float, computed: Sequence[float], hosts: Collection[str]) -> bool | None:
        """A round has ended.

        Args:
            seconds: That it took.
            computed: Of them each worker's.
            hosts: Machines of the workers.

        Returns:
            Whether workers are to average among themselves; None where that is not known yet.
        """
        if len(computed) != self._num_workers:  # others than before: what was seen of those says nothing
            self._num_workers, self._seen = len(computed), []
        self._seen.append((seconds, max(computed)))
        if len(self._seen) < _SKIPPED + _LOOKED_AT and len(hosts) > 1:
            return None
        if len(hosts) < 2:
            self._say(
                "exchange through the driver: all workers are on one machine, whose processors do the work anyway"
            )
            return False
        seen = self._seen[_SKIPPED:]
        whole, compute = (statistics.median(one[which] for one in seen) for which in (0, 1))
        # What n workers send the driver passes one link, twice; among themselves n links carry it.
        count = self._num_workers
        among = compute + max(0.0, whole - compute) * (count - 1) / count**2
        is_better = among < (1 - _WORTH) * whole
        self._say(
            f"exchange {'among the workers' if is_better else 'through the driver'}: a step of {count} workers takes"
            f" {whole * 1e3:.0f} ms through the driver, of which the slowest computes {compute * 1e3:.0f} ms; among"
            f" the workers {among * 1e3:.0f} ms by the model"
        )
        return is_better


# The model.


@dataclass(frozen=True)
class Costs:
    """What training costs, measured on one machine.

    Args:
        compute: Seconds that a worker computes for one step.
        exchange: A worker's own seconds for one exchange: to encrypt, decrypt, hand over, wake up.
        batch_size: Images of one worker in one step.
        vector_bytes: Bytes of the weights or of a gradient.
        state_bytes: Bytes of the weights with the optimizer's slots.
        take: Seconds of one core of the driver to receive a worker's vector and to send it its next one.
        merge: Seconds to add one worker's vector to the mean, in one thread.
        apply: Seconds of one step of the master's optimizer.
        adopt: Seconds in which the master takes over a mean of states.
        rule: Seconds in which a rule lets an asynchronous worker's steps into the master.
        cores: Cores of the driver, which take vectors at the same time.
        latency: Seconds of a message without content from one machine to another.
    """

    compute: float
    exchange: float
    batch_size: int
    vector_bytes: int
    state_bytes: int
    take: float
    merge: float
    apply: float
    adopt: float
    rule: float
    cores: int
    latency: float = 1e-4


@dataclass(frozen=True)
class Plan:
    """A run that the model is asked about.

    Args:
        num_workers: Each with a machine and a network connection of its own.
        bandwidth: Bytes a second of each machine's connection, in each of both directions.
        steps: Steps of one exchange.
        is_synchronous: Whether all workers wait for each other.
        shards: Servers, each on a machine of its own, that share the vector among them.
        is_ring: Whether the workers, without a server, pass sums around (Patarasuk and Yuan 2009, "Bandwidth optimal
            all-reduce algorithms for clusters of workstations"); synchronous only.
        compression: How many times shorter vectors are while they travel.
        owners: Whether each worker averages an equal part of the vector for all others, and makes the optimizer's step
            for it; at every synchronous step.
    """

    num_workers: int
    bandwidth: float
    steps: int = 1
    is_synchronous: bool = True
    shards: int = 1
    is_ring: bool = False
    compression: float = 1.0
    owners: bool = False


@dataclass(frozen=True)
class Prediction:
    """What the model says.

    Args:
        images_per_second: Images per second of all workers together.
        efficiency: Share of the speed at which workers only compute, from 0 to 1.
        bound: Where most of the time goes, or what is used to its limit: "compute", "network" or "server".
        saturates_at: Workers beyond which more of them help less and less: from there on the exchange of all of them
            takes as long as the work of one.
        saturates: Whether it is the "network" or the "server" that is busy then.
    """

    images_per_second: float
    efficiency: float
    bound: str
    saturates_at: float
    saturates: str


def predict(costs: Costs, plan: Plan) -> Prediction:
    """How fast a run would be.

    Asynchronous runs are given their upper bound (asymptotic bounds of a closed queueing network; Denning and Buzen
    1978, "The operational analysis of queueing network models"): near the point of saturation they are slower. Not
    in the model: workers that differ in speed, a network that others use too, what is lost in accuracy by large
    batches, staleness or compression, and the cost of compressing but for one more pass over each vector.

    Raises:
        ValueError: An asynchronous ring, or owners of what is not exchanged at every step.
    """
    if plan.owners:
        return _predict_owners(costs, plan)
    if plan.is_ring:
        return _predict_ring(costs, plan)
    return _predict_synchronous(costs, plan) if plan.is_synchronous else _predict_asynchronous(costs, plan)


def predict_on_one_machine(costs: Costs, num_workers: int, cores: int) -> float:
    """Images a second of a synchronous run at frequency `batch` whose workers share the driver's cores.

    Args:
        costs: Measured with one worker, which had a core for itself.
        num_workers: Number of workers, of one thread each; more than cores take turns.
        cores: Cores of the machine.
    """
    turns = max(1.0, num_workers / cores)
    seconds = (
        turns * (costs.compute + costs.exchange)
        + num_workers * costs.take / min(cores, num_workers)
        + num_workers * costs.merge
        + costs.apply
    )
    return num_workers * costs.batch_size / seconds


def step_on_one_machine(costs: Costs, plan: Plan, cores: int) -> float:
    """Seconds of a synchronous step at frequency `batch` of machines that share these cores, and only these.

    The workers' computing takes none of them: they sleep.

    Args:
        costs: Measured on a machine with nothing else to do.
        plan: Workers and network; `owners` or not.
        cores: Cores of the one machine.
    """
    workers = plan.num_workers
    wire = costs.vector_bytes / (_CONTENT * plan.bandwidth)
    if plan.owners:
        # What is a worker's own does not travel. Sums go back while others are still on their way.
        part = (workers - 1) / workers
        network, both_ends = 2 * part * wire, workers * part * (costs.take + costs.exchange)
        local = (workers * costs.merge + costs.apply) / min(cores, workers)
    else:
        network, both_ends = 2 * workers * wire, workers * (costs.take + costs.exchange)
        local = workers * costs.merge + costs.apply
    processor = both_ends / min(cores, workers)
    return costs.compute + 4 * costs.latency + max(network, processor) + local


@dataclass(frozen=True)
class _Shares:
    """Of one worker's exchange, with one of the servers.

    `wire` are the seconds on the network in one direction; `take`, `merge` and `update` as in `Costs`; `own` the
    worker's.
    """

    wire: float
    take: float
    merge: float
    update: float
    own: float


def _shares(costs: Costs, plan: Plan) -> _Shares:
    carries_slots = plan.is_synchronous and plan.steps > 1
    length = costs.state_bytes / costs.vector_bytes if carries_slots else 1.0
    travels = length / plan.compression
    passes = 1 if plan.compression == 1 else 2  # a compressed vector is unpacked first
    local = costs.adopt if plan.is_synchronous else costs.rule
    return _Shares(
        wire=costs.vector_bytes * travels / plan.bandwidth / plan.shards,
        take=costs.take * travels / plan.shards,
        merge=costs.merge * length * passes / plan.shards,
        update=(costs.apply if plan.steps == 1 else local) / plan.shards,
        own=costs.exchange * travels + 2 * costs.latency,
    )


def _predict_synchronous(costs: Costs, plan: Plan) -> Prediction:
    workers, shares = plan.num_workers, _shares(costs, plan)
    work = plan.steps * costs.compute + shares.own
    # All vectors come at about the same time, and all weights go when the last one is in. A worker's own connection
    # carries what all shards together are sent.
    network = 2 * max(workers, plan.shards) * shares.wire
    take = workers * shares.take / min(costs.cores, workers)
    merge = workers * shares.merge + shares.update
    seconds = work + max(network, take) + merge
    busy = {"compute": work, "network": network, "server": take + merge}
    return _prediction(
        costs,
        plan,
        rate=workers / seconds,
        bound=max(busy, key=busy.__getitem__),
        work=work,
        demands={"network": 2 * shares.wire, "server": shares.take / costs.cores + shares.merge},
    )


def _predict_asynchronous(costs: Costs, plan: Plan) -> Prediction:
    shares = _shares(costs, plan)
    cycle = plan.steps * costs.compute + shares.own + shares.take + shares.update
    cycle += 2 * shares.wire * plan.shards
    # Pushes and pulls of different workers use both directions at once; updates are applied one by one.
    demands = {
        "network": shares.wire,
        "server": max(shares.update, (shares.take + shares.update) / costs.cores),
    }
    rates = {
        "compute": plan.num_workers / cycle,
        **{name: 1 / max(1e-12, each) for name, each in demands.items()},
    }
    bound = min(rates, key=rates.__getitem__)
    return _prediction(costs, plan, rate=rates[bound], bound=bound, work=cycle, demands=demands)


def _predict_ring(costs: Costs, plan: Plan) -> Prediction:
    if not plan.is_synchronous or plan.shards != 1:
        raise ValueError("a ring is synchronous, and has no servers that could be sharded")
    workers, shares = plan.num_workers, _shares(costs, plan)
    # Each worker sends, and receives, this many whole vectors: once to sum them and once to hand the sums out.
    vectors = 2 * (workers - 1) / workers
    work = plan.steps * costs.compute + shares.own * vectors
    network = vectors * shares.wire + 2 * (workers - 1) * costs.latency
    server = vectors / 2 * shares.merge + shares.update  # by each worker, for itself
    # The vectors' own time stops growing with the workers.
    return _in_turn(costs, plan, work, network, server, saturates_by=2 * costs.latency)


def _predict_owners(costs: Costs, plan: Plan) -> Prediction:
    if not plan.is_synchronous or plan.steps != 1 or plan.is_ring:
        raise ValueError("owners average the gradients of synchronous steps")
    workers, shares = plan.num_workers, _shares(costs, plan)
    # What is a worker's own does not travel; of the rest it sends one part and owns another.
    part = (workers - 1) / workers
    work = costs.compute + part * (shares.own + shares.take) + 2 * costs.latency
    network = 2 * part * shares.wire
    server = shares.merge + shares.update / workers
    return _in_turn(costs, plan, work, network, server, saturates_by=2 * costs.latency / workers)


def _in_turn(
    costs: Costs, plan: Plan, work: float, network: float, server: float, saturates_by: float
) -> Prediction:
    """Of workers that compute, send and sum one after the other, all at the same time."""
    busy = {"compute": work, "network": network, "server": server}
    return _prediction(
        costs,
        plan,
        rate=plan.num_workers / (work + network + server),
        bound=max(busy, key=busy.__getitem__),
        work=work,
        demands={"network": saturates_by},
    )


def _prediction(
    costs: Costs, plan: Plan, *, rate: float, bound: str, work: float, demands: Mapping[str, float]
) -> Prediction:
    """From exchanges a second, and from the seconds of each resource that one worker's exchange takes."""
    images = rate * plan.steps * costs.batch_size
    busiest = max(demands, key=demands.__getitem__)
    return Prediction(
        images_per_second=images,
        efficiency=images / (plan.num_workers * costs.batch_size / costs.compute),
        bound=bound,
        saturates_at=work / max(1e-12, demands[busiest]),
        saturates=busiest,
    )
