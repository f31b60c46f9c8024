"""What one Spark task does, given one frozen TrainTask.

It reads its rows once, builds and traces the network once, and then does what the master says, piece by piece,
until it says stop.
"""

import contextlib
import hashlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seedlings_spark import reproducibility
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import CorpusError, SeedlingsError
from seedlings_spark.reproducibility import seed_for
from seedlings_spark.training import curriculum
from seedlings_spark.training import network as carried
from seedlings_spark.training import optimizer as optimizers
from seedlings_spark.training.client import ParameterClient, RefusedError
from seedlings_spark.training.dealing import max_bytes
from seedlings_spark.training.master import Master, Vectors, build_metrics, made_metrics
from seedlings_spark.training.messages import (
    Begin,
    Exchanged,
    Failure,
    Handing,
    Open,
    Part,
    Result,
    Rows,
    Steps,
    Work,
)
from seedlings_spark.training.mixing import Mixing
from seedlings_spark.training.owned import OwnedStep, Slots
from seedlings_spark.training.peers import LostPeerError, Peers
from seedlings_spark.training.server import Listener
from seedlings_spark.training.shard import Batch, Shard, batch_edges, epoch_order
from seedlings_spark.training.tree import Mean, blocks, mean_of, nodes_within, shards_of
from seedlings_spark.training.weights import Vector
from seedlings_spark.training.wire import Credentials, Kind, Message, ProtocolError

# Columns of the rows that a worker is fed; the last one with a curriculum only.
SHARD, FEATURES, LABEL, WEIGHT, HELD_OUT, LEVEL = "shard", "features", "label", "weight", "held_out", "level"
# The one row that a worker leaves behind.
SUMMARY = (
    "rank long, images long, seconds_input double, seconds_compute double, seconds_outside double,"
    # Of the last two what fell into its first epoch, which holds the tracing of the network and the wait for others'.
    " seconds_compute_first double, seconds_outside_first double"
)


@dataclass(frozen=True)
class Recipe:
    """What all workers of a run compute.

    Args:
        num_shards: Shards of the run.
        network: Content of a `.keras` file.
        loss: What `keras.losses.get` takes.
        metrics: As `master.metric_recipes` gives them.
        optimizer: What `optimizer.to_config` gives, for steps that workers take on their own.
        labels: "index" (class numbers), "one_hot", "number" or "vector".
        num_classes: Number of classes of labels that exclude each other; else 0.
        row_shape: Shape of one row's features.
        row_dtype: Dtype of the features: "uint8" for images, else the dtype of the network's input.
        augmentation: JSON configuration of the layers that change images before each training step, or None.
        batch_size: Rows of one shard at one step, at most.
        seed: Seed of the run.
        threads: That TensorFlow may use within one operation.
        budget_bytes: Memory of one worker for features.
        custom_objects: Classes and functions that the configurations name.
        label_shape: Shape of one row's label: () for a number.
        layer_decay: As for `optimizer.step_shares`.
        mixup: As for `mixing.Mixing`.
        cutmix: The same.
        curriculum_epochs: Epochs before all rows are in, as for `curriculum.order`; 0 for no curriculum.
        counts_confusion: Whether held-out rows are counted by their class and the one that the network finds most
            probable: (num_classes, num_classes) more numbers behind the metrics.
    """

    num_shards: int
    network: bytes
    loss: Any
    metrics: Any
    optimizer: Mapping[str, Any]
    labels: str
    num_classes: int
    row_shape: tuple[int, ...]
    row_dtype: str
    augmentation: str | None
    batch_size: int
    seed: int
    threads: int
    budget_bytes: int
    custom_objects: Mapping[str, Any] = field(default_factory=dict)
    label_shape: tuple[int, ...] = ()
    layer_decay: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    curriculum_epochs: int = 0
    counts_confusion: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of a row with its label, weight and level."""
        features = int(np.prod(self.row_shape, dtype=np.int64)) * np.dtype(self.row_dtype).itemsize
        return features + 8 * int(np.prod(self.label_shape, dtype=np.int64)) + 9

    def example_labels(self, dtype: str) -> NDArray[Any]:
        """Eight labels as the workers will give them, not all the same.

        Args:
            dtype: Dtype of the network's outputs.
        """
        numbers = np.arange(8) % max(2, self.num_classes)
        if self.labels == "index":
            return numbers
        if self.labels == "one_hot":
            return np.eye(self.num_classes, dtype=np.float32)[numbers]
        if self.labels == "number":
            return numbers.reshape(-1, 1).astype(dtype)
        (width,) = self.label_shape
        return np.eye(width, dtype=dtype)[np.arange(8) % width]


@dataclass(frozen=True)
class TrainTask:
    """All that a worker is told before it connects.

    Args:
        run: Id of the run.
        generation: How many times the workers have been started before.
        num_workers: Workers of this generation.
        is_barrier: Whether they start together and end together; else each is replaced alone.
        address: (host, port) of the parameter server.
        credentials: Credentials of the run.
        recipe: What it computes.
        worker_ports: Candidates for its own port, where workers average among themselves; () where they do not.
    """

    run: str
    generation: int
    num_workers: int
    address: tuple[str, int]
    credentials: Credentials
    recipe: Recipe
    is_barrier: bool = True
    worker_ports: Sequence[int] = ()

    def shards_of(self, rank: int) -> range:
        """The shards that a worker holds."""
        return shards_of(rank, self.num_workers, self.recipe.num_shards)


def run(task: TrainTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The function of the Spark stage: one partition is one worker.

    Args:
        task: The same for all workers.
        batches: Arrow batches of the columns named above, sorted.

    Returns:
        One batch with one row of `SUMMARY`; none where another generation follows.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        raise RuntimeError("a worker runs inside a Spark task only")
    if task.is_barrier and context.attemptNumber():
        return  # a lost one's successor, outside of a barrier stage: with it the stage is over, and all begin anew
    rank = context.partitionId()
    tf = runtime.start(task.recipe.threads, runtime.gpu_addresses(context.resources()))
    summary = work(task, rank, context.taskAttemptId(), batches, tf)
    if summary is None:
        return  # no row: Spark would end the process at the first one of a stage that has failed
    yield pa.RecordBatch.from_pydict({name: [value] for name, value in summary.items()})


def work(
    task: TrainTask,
    rank: int,
    attempt: int,
    batches: Iterator[pa.RecordBatch],
    tf: Any,
    connect: Callable[[tuple[str, int], Credentials], ParameterClient] = ParameterClient,
    make: "Callable[[Recipe, Begin, Any], Computation] | None" = None,
) -> dict[str, float] | None:
    """A worker from its rows to its summary; `run` without Spark.

    Args:
        task: The same for all workers.
        rank: From 0 to the number of workers - 1.
        attempt: Tells two attempts of one rank apart.
        batches: As for `run`.
        tf: The module `tensorflow`, started.
        connect: Opens the connection to the parameter server.
        make: Makes another `Computation`, for a measurement of all but the computing.

    Returns:
        What it leaves behind; None where another generation follows.
    """
    clock = _Clock()
    opened = Open(task.run, task.generation, rank, attempt)
    with _empty_shards(task.recipe, task.shards_of(rank)) as held:
        try:
            _read_shards(held, task.recipe, batches)
        except (
            SeedlingsError
        ) as error:  # another one may be the machine's: Spark tries again, and tells of it
            with connect(task.address, task.credentials) as client:
                client.open(replace(opened, failure=Failure.of(error)).header())
            raise
        clock.has_read()
        opened = replace(
            opened,
            shards=[shard.rows(task.recipe) for shard in held],
            environment=reproducibility.environment(task.recipe.threads),
        )
        with connect(task.address, task.credentials) as client, _peers(task, rank, client) as peers:
            opened = replace(opened, address=peers.address if peers else ())
            try:
                begin = Begin.parse(client.open(opened.header()).header)
                computation = _taken_over(task.run, begin) or (make or Computation)(task.recipe, begin, tf)
                client.expect(max(computation.max_bytes, max_bytes(task.recipe.row_bytes)))
                shards = _Shards(rank, task.recipe, held)
                message = _work_until_stopped(client, computation, shards, peers, clock)
            except (RefusedError, ProtocolError, OSError):
                raise  # the connection's doing, not the computation's: the master decides whether to try again
            except Exception:
                client.error(traceback.format_exc())
                raise
    is_over = not message.header.get("again")
    _leave(task.run, None if is_over else computation)
    return {"rank": rank, **clock.summary()} if is_over else None


def _work_until_stopped(
    client: ParameterClient,
    computation: "Computation",
    shards: "_Shards",
    peers: Peers | None,
    clock: "_Clock",
) -> Message:
    """One piece of work after the other; what the master says instead of more."""
    clock.waits()
    message = client.ready()
    while message.kind == Kind.WORK:
        handing = Handing.parse(message.header)
        if handing is not None:
            message = client.result(handing.header(), shards.hand_over(handing, message.payload, peers))
            continue
        work = Work.parse(message.header)
        clock.begins(work)
        try:
            result = computation.do(work, message.payload, shards.held, peers)
        except LostPeerError as error:  # this worker itself may well go on in the next generation
            message = client.result({"lost": str(error), "unreached": not (peers and peers.has_joined)})
            continue
        seconds = clock.has_done(work, result.samples, peers.waited() if peers else 0.0)
        result = replace(result, seconds=seconds, computed=computation.computed())
        message = client.result(result.header(), result.payload())
    return message


# What workers of this process have left to those of their run's next generation: networks are traced for seconds.
_left: dict[str, list["Computation"]] = {}
_lock = threading.Lock()


def _leave(run: str, computation: "Computation | None") -> None:
    """Leave a computation to the next generation; None where the run is over."""
    with _lock:
        if computation is None:
            _left.pop(run, None)
        else:
            _left.setdefault(run, []).append(computation)


def _taken_over(run: str, begin: Begin) -> "Computation | None":
    """A computation that was left; those of other runs are given up."""
    with _lock:
        for other in [name for name in _left if name != run]:
            del _left[other]
        left = _left.get(run, [])
        return left.pop() if left and left[-1].begin == begin else None


@contextlib.contextmanager
def _peers(task: TrainTask, rank: int, client: ParameterClient) -> "Iterator[Peers | None]":
    """This worker's side of the connections with the others, if there are to be any."""
    if not task.worker_ports:
        yield None
        return
    listener = Listener(client.host, task.worker_ports, "--worker-port")
    with Peers(listener, task.credentials, (task.run, task.generation), rank) as peers:
        client.cut_too(peers.cut)
        yield peers


class _Clock:
    """What a worker's time goes into, in seconds, and how many images it has trained on."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._seconds = {"input": 0.0, "compute": 0.0, "outside": 0.0}
        self._seconds |= {"compute_first": 0.0, "outside_first": 0.0}
        self._images = 0
        self._first_epoch: int | None = None
        self._is_in_first = False

    def has_read(self) -> None:
        """The rows are here."""
        self._seconds["input"] = self._lap()

    def waits(self) -> None:
        """From now on it is outside until there is work."""
        self._mark = time.perf_counter()

    def begins(self, work: Work) -> None:
        """There is work."""
        epoch = self._first_epoch if work.steps is None else work.steps.epoch
        if self._first_epoch is None:
            self._first_epoch = epoch
        self._is_in_first = epoch == self._first_epoch
        self._add("outside", self._lap())

    def has_done(self, work: Work, samples: int, waited: float) -> float:
        """A piece of work is done, of which so long was spent with the other workers; how long it took."""
        seconds = self._lap()
        self._add("compute", seconds - waited)
        self._add("outside", waited)
        self._images += 0 if work.steps is None else samples
        return seconds

    def summary(self) -> dict[str, float]:
        """The values of `SUMMARY` but for the rank."""
        return {"images": self._images, **{f"seconds_{name}": value for name, value in self._seconds.items()}}

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] += seconds
        if self._is_in_first:
            self._seconds[f"{name}_first"] += seconds

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


@dataclass
class HeldShard:
    """The rows of one shard, where a worker holds them.

    Args:
        number: Number of the shard.
        train: To train on.
        held_out: Held out.
        fingerprint: Of all of them.
        levels: With a curriculum, those of the rows to train on, in pieces.
    """

    number: int
    train: Shard
    held_out: Shard
    fingerprint: str = ""
    levels: list[NDArray[np.uint8]] = field(default_factory=list)
    _order: tuple[int, NDArray[np.int64]] | None = None

    def rows(self, recipe: Recipe) -> Rows:
        """What the master is told of them."""
        of_class = _rows_of_class(self.train) if recipe.num_classes else {}
        of_quarter = list[list[int]]()
        if recipe.curriculum_epochs:
            levels = np.concatenate([np.zeros(0, np.uint8), *self.levels])
            of_quarter = curriculum.rows_of_quarter(
                recipe.seed, self.number, levels, self.train.row_bytes, recipe.curriculum_epochs
            )
        return Rows(len(self.train), len(self.held_out), self.fingerprint, of_class, of_quarter)

    def order(self, seed: int, epoch: int, curriculum_epochs: int) -> NDArray[np.int64]:
        """The order in which an epoch visits the rows to train on."""
        if self._order is None or self._order[0] != epoch:
            place, train = (seed, epoch, self.number), self.train
            if curriculum_epochs and self.levels:
                levels = np.concatenate(self.levels)
                found = curriculum.order(*place, levels, train.row_bytes, curriculum_epochs)
            else:
                found = epoch_order(*place, len(train), train.row_bytes)
            self._order = epoch, found
        return self._order[1]

    def close(self) -> None:
        """Give up what lies on disk."""
        self.train.close()
        self.held_out.close()


class Computation:
    """The network of a worker and the functions traced from it.

    Args:
        recipe: Recipe of the run.
        begin: What the master said holds for the whole run.
        tf: The module `tensorflow`.
    """

    def __init__(self, recipe: Recipe, begin: Begin, tf: Any) -> None:
        import keras

        self.begin, self._recipe, self._tf = begin, recipe, tf
        self._steps, self._exchanged = begin.steps, begin.exchanged
        self._class_weight = {int(key): float(value) for key, value in begin.class_weight.items()}
        self.network = carried.from_bytes(recipe.network, recipe.custom_objects)
        runtime.set_precision(self.network, begin.precision)
        with runtime.float_type_of(self.network):
            self._compile(recipe)
        self._augment = (
            keras.models.model_from_json(recipe.augmentation, custom_objects=dict(recipe.custom_objects))
            if recipe.augmentation
            else None
        )
        # Who averages with the others makes the master's steps, as the master would.
        self.master = Master(self.network, recipe.layer_decay) if begin.among_workers else None
        self.vectors = self.master.vectors if self.master is not None else Vectors(self.network)
        self._owned: OwnedStep | None = None
        self._computed = 0.0
        self._shares = optimizers.step_shares(self.vectors.trainable, recipe.layer_decay)
        is_mixed = recipe.mixup or recipe.cutmix
        self._mixing = Mixing(recipe.mixup, recipe.cutmix) if is_mixed else None
        self._seeds = carried.seed_states(self.network) + (
            carried.seed_states(self._augment) if self._augment else []
        )
        self._seeds += [self._mixing.state] if self._mixing is not None else []
        signature = self._signature()
        scale = tf.TensorSpec((), "float32")
        self._gradient = tf.function(
            self._gradient_step, autograph=False, input_signature=[*signature, scale]
        )
        self._update = tf.function(self._local_step, autograph=False, input_signature=signature)
        self._forward = tf.function(self._evaluate_step, autograph=False, input_signature=signature[:3])

    def _compile(self, recipe: Recipe) -> None:
        self.network.compile(
            loss=recipe.loss,
            metrics=made_metrics(recipe.metrics, recipe.custom_objects),
            optimizer=optimizers.from_config(recipe.optimizer, recipe.custom_objects),
            jit_compile=False,
        )
        build_metrics(self.network, self._labels(np.zeros((2, *recipe.label_shape))))
        if self._exchanged.is_local:
            self.network.optimizer.build(self.network.trainable_variables)

    def _signature(self) -> list[Any]:
        """Of features, labels, weights and seeds, for batches of any size.

        TensorFlow would trace a function anew for a second size of batches, and optimises one of a known size
        differently: then a gradient would depend, in its last bit, on which batches a worker has seen before.
        """
        tf, recipe = self._tf, self._recipe
        labels = self._labels(np.zeros((1, *recipe.label_shape)))
        return [
            tf.TensorSpec((None, *recipe.row_shape), recipe.row_dtype),
            tf.TensorSpec((None, *labels.shape[1:]), labels.dtype),
            tf.TensorSpec((None,), "float64"),
            tf.TensorSpec((len(self._seeds), 2), "int64"),
        ]

    @property
    def max_bytes(self) -> int:
        """The longest payload that the master may send."""
        return self.vectors.state_layout.nbytes

    def computed(self) -> float:
        """Seconds for the parts of shards, since this was asked the last time."""
        computed, self._computed = self._computed, 0.0
        return computed

    def do(self, work: Work, payload: Any, shards: Sequence[HeldShard], peers: Peers | None = None) -> Result:
        """Do one piece of work: the part of one shard after the other, each from the same start.

        Args:
            work: What to do.
            payload: Bytes of the weights or state to start from; none where the last work has led there.
            shards: That this worker holds: neighbours, in order.
            peers: The other workers.
        """
        if work.steps is None:
            if len(payload):
                self._assign(work, payload, self._evaluated())
            parts = [self._evaluate(shard.held_out).part(self._counts()) for shard in shards]
            return Result(work.number, parts)
        if work.peers and peers is not None:
            return self._among_workers(work, work.steps, payload, shards, peers)
        parts, means = self._means(work, payload, shards)
        return Result(work.number, parts, [mean.vector for mean in means])

    def _among_workers(
        self, work: Work, steps: Steps, payload: Any, shards: Sequence[HeldShard], peers: Peers
    ) -> Result:
        """Steps with the means of all workers, each of which makes them alike: what the master would make of them."""
        master = self.master
        if master is None:
            raise RuntimeError("steps among workers without an optimizer")
        peers.join(work.peers, self._recipe.num_shards, master.model_layout)
        if len(payload):
            state = np.frombuffer(payload, master.state_layout.dtype)
            master.set_state(state)
            if self.begin.owned_steps:
                self._own(master, peers).begin(state)
        owned = self._owned
        held = master.held if owned is None else owned.held
        held.set_rates(work.rates)
        held.set_counters(work.counters)
        if self.vectors.counts:
            self.vectors.set_counts(work.counts)
        weights, parts = master.weights(), list[Part]()
        for step in range(steps.first, steps.last):
            one = master.work(work.number, Steps(steps.epoch, step, step + 1))
            of_step, means = self._means(one, weights, shards, has_weights=True)
            become = None if owned is None else owned.make
            mean, counts = peers.mean(means, [part.counts for part in of_step], become)
            master.take_counts([each for of_worker in counts for each in of_worker])
            if owned is None:
                master.step(mean)
            else:
                master.set_weights(mean)
            weights = mean  # of which only what no gradient changes is looked at
            parts += [replace(part, counts=()) for part in of_step]
        parts[-1] = replace(parts[-1], counters=held.counters(), counts=self._counts())
        if owned is None:
            state = master.state()
            return Result(work.number, parts, [state[peers.part(state.size)]])
        return Result(work.number, parts, [owned.handed_in(weights[owned.part])])

    def _own(self, master: Master, peers: Peers) -> OwnedStep:
        """The optimizer of the slice that this worker owns."""
        part = peers.part(master.model_layout.size)
        if self._owned is None or self._owned.part != part:
            optimizer = optimizers.from_config(self._recipe.optimizer, self._recipe.custom_objects)
            self._owned = OwnedStep(Slots(self.vectors, master.optimizer), optimizer, part, self._tf)
        return self._owned

    def _means(
        self, work: Work, payload: Any, shards: Sequence[HeldShard], *, has_weights: bool = False
    ) -> tuple[list[Part], list[Mean]]:
        """The parts of these shards, and what stands at their nodes of the tree."""
        held, parts = {shard.number: shard for shard in shards}, list[Part]()

        def known(node: range) -> Mean | None:
            if len(node) > 1:
                return None
            is_first, started = not parts and not has_weights, time.perf_counter()
            part, vector = self._train(work, payload, held[node.start], is_first=is_first)
            self._computed += time.perf_counter() - started
            parts.append(part)
            return Mean(vector, part.samples)

        block = range(shards[0].number, shards[-1].number + 1)
        nodes = nodes_within(block, self._recipe.num_shards)
        means = [mean_of(node, known) for node in nodes]
        return parts, means

    def _train(self, work: Work, payload: Any, shard: HeldShard, *, is_first: bool) -> tuple[Part, Vector]:
        """The part of one shard of steps to train, and its vector."""
        steps, vectors = work.steps, self.vectors
        if steps is None:
            raise RuntimeError("nothing to train")
        edges = batch_edges(len(shard.train), self._steps)
        order = shard.order(self._recipe.seed, steps.epoch, self._recipe.curriculum_epochs)
        batches = shard.train.batches(order, edges, steps.first, steps.last)
        variables = self._evaluated()
        if not self._exchanged.is_local:
            # A gradient leaves the trained weights as they are.
            self._assign(work, payload, variables, len(vectors.trainable) * (not is_first))
            return self._one_gradient(work, steps, shard.number, next(batches))
        layout = vectors.model_layout
        if self._exchanged == Exchanged.STATE:
            variables, layout = variables + vectors.slots, vectors.state_layout
        self._assign(work, payload, variables)
        sums = self._own_steps(work, steps, shard.number, batches)
        vector = layout.flatten([np.asarray(variable.value) for variable in variables])
        held = vectors.optimizer
        return sums.part(self._counts(), vector, held.counters() if held is not None else ()), vector

    def _evaluated(self) -> list[Any]:
        """The variables that a forward pass depends on."""
        return self.vectors.trainable + self.vectors.other

    def _one_gradient(self, work: Work, steps: Steps, shard: int, batch: Batch) -> tuple[Part, Vector]:
        """The gradient of one batch."""
        sums, layout = _Sums(), self.vectors.model_layout
        if not len(batch):
            vector = np.zeros(layout.size, layout.dtype)
        else:
            scale = self._tf.constant(work.loss_scale, "float32")
            inputs = self._inputs(batch, shard, steps.epoch, steps.first)
            gradient, loss, metrics = self._gradient(*inputs, scale)
            sums.add(len(batch), loss, metrics, steps.first)
            vector = gradient.numpy()
        return sums.part(self._counts(), vector), vector

    def _own_steps(self, work: Work, steps: Steps, shard: int, batches: Iterator[Batch]) -> "_Sums":
        """Steps of the worker's own optimizer."""
        held = self.vectors.optimizer
        if held is None:
            raise RuntimeError("steps of a worker's own without an optimizer")
        held.set_rates(work.rates)
        if work.iterations is not None:  # without waiting for others each worker counts by itself
            held.set_steps(work.iterations)
        else:
            held.set_counters(work.counters)
        sums = _Sums()
        for step, batch in enumerate(batches, steps.first):
            if len(batch):
                loss, metrics = self._update(*self._inputs(batch, shard, steps.epoch, step))
                sums.add(len(batch), loss, metrics, step)
        return sums

    def _counts(self) -> list[list[int]]:
        return self.vectors.get_counts()

    def _assign(self, work: Work, payload: Any, variables: list[Any], first: int = 0) -> None:
        """Give the variables, from the one at `first` on, the values that the work starts from."""
        layout = (
            self.vectors.state_layout
            if len(variables) > len(self._evaluated())
            else self.vectors.model_layout
        )
        values = layout.split(np.frombuffer(payload, layout.dtype))
        for variable, value in zip(variables[first:], values[first:], strict=True):
            variable.assign(value)
        if self.vectors.counts:
            self.vectors.set_counts(work.counts)

    def _evaluate(self, held_out: Shard) -> "_Sums":
        sums = _Sums()
        size = max(1, self._recipe.batch_size)
        for start in range(0, len(held_out), size):
            batch = held_out.read(np.arange(start, min(start + size, len(held_out))))
            loss, metrics = self._forward(
                batch.features, self._labels(batch.labels), self._weights(batch, {})
            )
            sums.add(len(batch), loss, metrics, start // size)
        return sums

    def _inputs(self, batch: Batch, shard: int, epoch: int, step: int) -> tuple[Any, ...]:
        seeds = np.array(
            [
                [seed_for(self._recipe.seed, "layer", epoch, step, shard, index), 0]
                for index in range(len(self._seeds))
            ],
            np.int64,
        ).reshape(len(self._seeds), 2)
        weights = self._weights(batch, self._class_weight)
        return batch.features, self._labels(batch.labels), weights, seeds

    def _labels(self, labels: NDArray[np.float64]) -> NDArray[np.generic]:
        if self._recipe.labels == "number":
            return labels.astype(self.network.outputs[0].dtype).reshape(-1, 1)
        if self._recipe.labels == "vector":
            return labels.astype(self.network.outputs[0].dtype)
        indices = labels.astype(np.int64)
        if self._recipe.labels == "index":
            return indices
        return np.eye(self._recipe.num_classes, dtype=np.float32)[indices]

    def _weights(self, batch: Batch, class_weight: Mapping[int, float]) -> NDArray[np.float64]:
        if not class_weight:
            return batch.weights
        return batch.weights * np.array([class_weight.get(label, 1.0) for label in _classes(batch.labels)])

    # The traced functions.

    def _reset(self) -> None:
        for variable in self.vectors.metrics:
            variable.assign(self._tf.zeros(variable.shape, variable.dtype))

    def _metric_sums(self) -> Any:
        tf = self._tf
        if not self.vectors.metrics:
            return tf.zeros([0], tf.float64)
        return tf.concat(
            [tf.cast(tf.reshape(v.value, [-1]), tf.float64) for v in self.vectors.metrics], axis=0
        )

    def _prepared(self, features: Any) -> Any:
        if self._recipe.row_dtype == "uint8":
            return self._tf.cast(features, self.network.inputs[0].dtype)
        return features

    def _loss(self, features: Any, labels: Any, weights: Any, *, training: bool) -> tuple[Any, Any]:
        """The loss, and the outputs that it is of."""
        outputs = self.network(features, training=training)
        loss = self.network.compute_loss(features, labels, outputs, sample_weight=weights, training=training)
        if self.network._compile_metrics is not None:
            self.network._compile_metrics.update_state(labels, outputs)
        return loss, outputs

    def _training_loss(self, features: Any, labels: Any, weights: Any) -> Any:
        """The loss of rows to train on, mixed if they are to be; metrics count each row's own label."""
        if self._mixing is None:
            return self._loss(features, labels, weights, training=True)[0]
        tf = self._tf
        features, share = self._mixing(features)
        share = tf.cast(share, weights.dtype)
        loss, outputs = self._loss(features, labels, weights * share, training=True)
        others, rest = tf.roll(labels, 1, axis=0), tf.roll(weights, 1, axis=0) * (1 - share)
        return loss + tf.cast(self.network._compile_loss(others, outputs, rest), loss.dtype)

    def _backward(
        self, features: Any, labels: Any, weights: Any, seeds: Any, scaled: Callable[[Any], Any]
    ) -> tuple[Any, list[Any]]:
        tf = self._tf
        self._reset()
        for index, state in enumerate(self._seeds):
            state.assign(tf.cast(seeds[index], state.dtype))
        features = self._prepared(features)
        if self._augment is not None:
            features = self._augment(features, training=True)
        with tf.GradientTape() as tape:
            loss = self._training_loss(features, labels, weights)
            scaled_loss = scaled(loss)
        variables = [variable.value for variable in self.vectors.trainable]
        gradients = tape.gradient(scaled_loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _gradient_step(
        self, features: Any, labels: Any, weights: Any, seeds: Any, scale: Any
    ) -> tuple[Any, Any, Any]:
        tf = self._tf
        loss, gradients = self._backward(
            features, labels, weights, seeds, lambda loss: loss * tf.cast(scale, loss.dtype)
        )
        dtype = self.vectors.model_layout.dtype
        parts = gradients + [variable.value for variable in self.vectors.other]
        vector = tf.concat([tf.cast(tf.reshape(part, [-1]), dtype) for part in parts], axis=0)
        return vector, loss, self._metric_sums()

    def _local_step(self, features: Any, labels: Any, weights: Any, seeds: Any) -> tuple[Any, Any]:
        optimizer = self.network.optimizer
        loss, gradients = self._backward(features, labels, weights, seeds, optimizer.scale_loss)
        optimizers.take_step(optimizer, gradients, self.vectors.trainable, self._shares)
        return loss, self._metric_sums()

    def _evaluate_step(self, features: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
        self._reset()
        loss, outputs = self._loss(self._prepared(features), labels, weights, training=False)
        return loss, self._tf.concat([self._metric_sums(), self._confusion(labels, outputs)], axis=0)

    def _confusion(self, labels: Any, outputs: Any) -> Any:
        """Rows of each class by the class that they are taken for, flat; nothing where that is not asked for."""
        tf = self._tf
        if not self._recipe.counts_confusion:
            return tf.zeros([0], tf.float64)
        true = labels if self._recipe.labels == "index" else tf.argmax(labels, axis=-1)
        counts = tf.math.confusion_matrix(
            true, tf.argmax(outputs, axis=-1), self._recipe.num_classes, dtype=tf.float64
        )
        return tf.reshape(counts, [-1])


class _Sums:
    """Samples, loss and metrics of a piece of work, summed in float64 in the order of its steps."""

    def __init__(self) -> None:
        self._samples = 0
        self._loss = 0.0
        self._metrics: NDArray[np.float64] | None = None
        self._bad_step: int | None = None

    def add(self, samples: int, loss: Any, metrics: Any, step: int) -> None:
        value = float(loss)
        if not np.isfinite(value) and self._bad_step is None:
            self._bad_step = step
        self._samples += samples
        self._loss += value * samples
        found = np.asarray(metrics, np.float64)
        self._metrics = found if self._metrics is None else self._metrics + found

    def part(
        self, counts: Sequence[Sequence[int]], vector: Vector | None = None, counters: Sequence[float] = ()
    ) -> Part:
        return Part(
            samples=self._samples,
            loss=self._loss if self._bad_step is None else float("nan"),
            metrics=np.zeros(0) if self._metrics is None else self._metrics,
            bad_step=self._bad_step,
            is_finite=vector is None or bool(np.isfinite(vector).all()),
            counters=counters,
            counts=counts,
        )


@contextlib.contextmanager
def _empty_shards(recipe: Recipe, held: range) -> Iterator[list[HeldShard]]:
    """The shards that a worker holds, without their rows; what lies on disk is given up in the end."""
    budgets = [budget // max(1, len(held)) for budget in _budgets(recipe)]
    shards = [_empty_shard(recipe, number, budgets) for number in held]
    try:
        yield shards
    finally:
        for shard in shards:
            shard.close()


def _budgets(recipe: Recipe) -> tuple[int, int]:
    """Memory of a worker for the rows to train on, and for those that are held out."""
    return recipe.budget_bytes * 3 // 4, recipe.budget_bytes // 4


def _empty_shard(recipe: Recipe, number: int, budgets: Sequence[int]) -> HeldShard:
    train, held_out = (
        Shard(recipe.row_shape, recipe.row_dtype, budget_bytes=budget, label_shape=recipe.label_shape)
        for budget in budgets
    )
    return HeldShard(number, train, held_out)


class _Shards:
    """The shards that a worker holds, some of which may change hands between two epochs.

    Args:
        rank: Of the worker.
        recipe: Recipe of the run.
        held: The shards; this list is kept up to date.
    """

    def __init__(self, rank: int, recipe: Recipe, held: list[HeldShard]) -> None:
        self._rank, self._recipe, self.held = rank, recipe, held

    def hand_over(self, handing: Handing, payload: Any, peers: Peers | None) -> bytes:
        """Give rows away, take some, or give up what has been given away; the rows that were asked for, packed."""
        if handing.sizes:
            block = blocks(handing.sizes)[self._rank]
            for shard in [each for each in self.held if each.number not in block]:
                self.held.remove(shard)
                shard.close()
            self.held.sort(key=lambda shard: shard.number)
            if peers is not None:
                peers.deal(handing.sizes)
            return b""
        shard = self._of(handing.shard)
        rows = shard.held_out if handing.held_out else shard.train
        has_levels = self._recipe.curriculum_epochs > 0 and not handing.held_out
        if handing.is_asked:
            found = rows.read(np.arange(handing.first, handing.last)).packed()
            if has_levels and shard.levels:
                found += np.concatenate(shard.levels)[handing.first : handing.last].tobytes()
            return found
        count = handing.last - handing.first
        if has_levels and count:
            payload, levels = payload[:-count], payload[-count:]
            shard.levels.append(np.frombuffer(levels, np.uint8).copy())
        rows.append_packed(payload, count)
        return b""

    def _of(self, number: int) -> HeldShard:
        """The shard of this number, which may be on its way here."""
        found = next((shard for shard in self.held if shard.number == number), None)
        if found is None:
            of_train, of_held_out = _budgets(self._recipe)
            of_train -= sum(shard.train.bytes_in_memory for shard in self.held)
            of_held_out -= sum(shard.held_out.bytes_in_memory for shard in self.held)
            found = _empty_shard(self._recipe, number, [max(0, of_train), max(0, of_held_out)])
            self.held.append(found)
        return found


def _read_shards(shards: Sequence[HeldShard], recipe: Recipe, batches: Iterator[pa.RecordBatch]) -> None:
    """Read the rows of a worker's shards.

    A shard's fingerprint is the SHA-256 of features, labels, weights, marks and levels each for itself, so that it does
    not depend on how rows come in batches.
    """
    held = range(shards[0].number, shards[-1].number + 1)
    digests = [[hashlib.sha256() for _ in range(5 if recipe.curriculum_epochs else 4)] for _ in held]
    for batch in batches:
        if batch.num_rows == 0:
            continue
        numbers = batch.column(SHARD).to_numpy(zero_copy_only=False)
        strange = numbers[(numbers < held.start) | (numbers >= held.stop)]
        if len(strange):
            raise RuntimeError(f"a worker of the shards {held} was given rows of shard {int(strange[0])}")
        edges = np.searchsorted(numbers, np.arange(held.start, held.stop + 1))
        for shard, of_shard, start, stop in zip(shards, digests, edges[:-1], edges[1:], strict=True):
            if stop > start:
                _append(shard, recipe, batch.slice(start, stop - start), of_shard)
    for shard, of_shard in zip(shards, digests, strict=True):
        found = hashlib.sha256(b"".join(digest.digest() for digest in of_shard))
        shard.fingerprint = found.hexdigest()


def _append(shard: HeldShard, recipe: Recipe, batch: pa.RecordBatch, digests: Sequence[Any]) -> None:
    """Add rows to a shard and its digests."""
    features = _features(batch.column(FEATURES), recipe)
    labels = _labels(batch.column(LABEL), recipe.label_shape)
    weights = batch.column(WEIGHT).to_numpy(zero_copy_only=False).astype(np.float64)
    if np.isnan(labels).any() or np.isnan(weights).any():
        raise CorpusError(
            "a row without a label or sample weight",
            "a number in every row",
            "Drop such rows before fit, for example with DataFrame.dropna",
        )
    is_class = not recipe.label_shape and recipe.num_classes
    if is_class and not ((labels >= 0) & (labels < recipe.num_classes)).all():
        raise CorpusError(
            f"labels from {labels.min():g} to {labels.max():g}",
            f"class numbers 0 to {recipe.num_classes - 1}, one for each output of the network",
            "Index the labels with StringIndexer, or give the network as many outputs as there are classes",
        )
    held = batch.column(HELD_OUT).to_numpy(zero_copy_only=False).astype(bool)
    told = [features, labels, weights, held]
    if recipe.curriculum_epochs:
        told.append(batch.column(LEVEL).to_numpy(zero_copy_only=False).astype(np.uint8))
        shard.levels.append(told[-1][~held])
    for digest, values in zip(digests, told, strict=True):
        digest.update(np.ascontiguousarray(values).data)
    for into, rows in ((shard.train, ~held), (shard.held_out, held)):
        if rows.any():
            into.append(features[rows], labels[rows], weights[rows])


def _labels(column: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An Arrow column of numbers or of lists of them as an array of shape (rows, *shape)."""
    if not shape:
        numbers: NDArray[np.float64] = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return numbers
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if column.null_count or (lengths != shape[0]).any():
        raise CorpusError(
            "a row whose label has another length or is missing",
            f"vectors of {shape[0]} numbers, one for each output of the network",
            "Drop such rows before fit, or give the network as many outputs",
        )
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(column), *shape)


def _features(column: Any, recipe: Recipe) -> NDArray[np.generic]:
    """An Arrow column of bytes or of lists of numbers as an array of shape (rows, *row_shape)."""
    expected = int(np.prod(recipe.row_shape, dtype=np.int64))
    width = expected * np.dtype(recipe.row_dtype).itemsize if recipe.row_dtype == "uint8" else expected
    offsets = np.frombuffer(column.buffers()[1], _offset_type(column.type))[
        column.offset : column.offset + len(column) + 1
    ]
    lengths = np.diff(offsets)
    if column.null_count or (lengths != width).any():
        found = "no value" if column.null_count else f"{int(lengths[lengths != width][0])} values"
        raise CorpusError(
            f"a row whose features have {found}",
            f"{width} values in every row, which the network takes as {recipe.row_shape}",
            "Prepare the corpus with the image size of the network, or build the network for this corpus",
        )
    if recipe.row_dtype == "uint8":
        values = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    else:
        flat = column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        values = flat.to_numpy(zero_copy_only=False).astype(recipe.row_dtype)
    return values.reshape(len(column), *recipe.row_shape)


def _offset_type(kind: Any) -> str:
    return "int64" if pa.types.is_large_binary(kind) or pa.types.is_large_list(kind) else "int32"


def _rows_of_class(shard: Shard) -> dict[str, int]:
    """Rows of each class, for balanced class weights."""
    classes, counts = np.unique(_classes(shard.labels()), return_counts=True)
    return {str(int(name)): int(count) for name, count in zip(classes, counts, strict=True)}


def _classes(labels: NDArray[np.float64]) -> NDArray[np.int64]:
    """The class number of each label: itself, or the place of a vector's largest element."""
    return labels.astype(np.int64) if labels.ndim == 1 else labels.argmax(axis=1)
