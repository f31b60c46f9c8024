"""Engine: one training run, from a compiled network to its record, wherever its workers run.

It is made of parts that know nothing of each other: a launcher starts the workers, a `WorkerGroup` holds them together
and starts them again, a parameter server passes on what they say, an `Exchange` (synchronous or asynchronous) decides
what becomes of it, and `RunCheckpoints` keep what the next attempt needs.
"""

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import keras

from seedlings_spark import fingerprint, reproducibility
from seedlings_spark.choices import EXCHANGES, MODES
from seedlings_spark.cluster import runtime
from seedlings_spark.errors import CorpusError, OptionError
from seedlings_spark.training import network as carried
from seedlings_spark.training import rules
from seedlings_spark.training.asynchronous import AsynchronousRun
from seedlings_spark.training.checkpoint import RunIdentity
from seedlings_spark.training.coordination import GRACE_SECONDS, RETRY_SECONDS, Size, WorkerGroup
from seedlings_spark.training.dealing import Dealing
from seedlings_spark.training.epochs import Epochs, Observers
from seedlings_spark.training.launcher import Attempt, Ended, Launcher
from seedlings_spark.training.master import Master, build_metrics, made_metrics
from seedlings_spark.training.messages import Begin, Exchanged, Open
from seedlings_spark.training.progress import Progress, Silent
from seedlings_spark.training.record import TrainingRecord, Updates
from seedlings_spark.training.resume import RunCheckpoints, history
from seedlings_spark.training.server import Coordinator, Listener, ParameterServer
from seedlings_spark.training.synchronous import SynchronousRun
from seedlings_spark.training.updates import Center
from seedlings_spark.training.wire import Credentials
from seedlings_spark.training.worker import Recipe, TrainTask

_log = logging.getLogger(__name__)

# alpha of the elastic rules, times the number of workers (beta in the paper, section 6).
_ELASTICITY = 0.9
# What the workers may lose within one epoch before the run is given up.
_MAX_FAILURES = 8
_JOIN_SECONDS = 60.0
# How far from an even share chance may lead, in standard deviations: one run in a million.
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class RunOptions:
    """How a run is led; what its workers compute is a `worker.Recipe`.

    Args:
        mode: One of `choices.MODES`.
        frequency: "batch", "epoch", or a number of steps between two exchanges.
        num_epochs: Number of epochs of the whole run, with those that an earlier attempt has trained.
        num_workers: Workers that train at once, at most.
        min_workers: The fewest of them with which a synchronous run goes on; 0 for `num_workers`.
        rule: One of `rules.RULES`, for asynchronous modes; "" for the default.
        elasticity: alpha of the elastic rules; 0 for 0.9 / num_workers.
        precision: "float32", "mixed_bfloat16", or "auto".
        class_weight: Class number -> weight; None where the workers' rows are to balance them.
        held_out_share: Share of the rows, as asked for; 0 where a column marks them.
        checkpoint_path: Folder on any file system; "" for none.
        has_given_weights: Whether the network's weights were given. Else they follow from the seed.
        ports: Candidates for the parameter server; 0 lets the system choose.
        exchange: One of `choices.EXCHANGES`: where the mean of each step is made.
        worker_ports: As `ports`, of each worker whose exchange is not the driver's alone.
        encrypt: Whether what travels is encrypted.
        drop_slow: How much slower than the others a worker of a synchronous run may be before it loses shards to them,
            as a factor above 1; 0 for any.

    Raises:
        OptionError: A value that cannot be.
    """

    mode: str
    frequency: str | int
    num_epochs: int
    num_workers: int = 1
    min_workers: int = 0
    rule: str = ""
    elasticity: float = 0.0
    precision: str = "float32"
    class_weight: Mapping[str, float] | None = field(default_factory=dict)
    held_out_share: float = 0.0
    checkpoint_path: str = ""
    has_given_weights: bool = False
    ports: Sequence[int] = (0,)
    encrypt: bool = True
    exchange: str = "driver"
    worker_ports: Sequence[int] = (0,)
    drop_slow: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode={self.mode!r}", f"one of {', '.join(MODES)}", "Set mode to one of them")
        if self.rule and self.rule not in rules.RULES:
            raise OptionError(
                f"rule={self.rule!r}", f"one of {', '.join(rules.RULES)}", "Set rule to one of them"
            )
        if self.rule and self.mode == "synchronous":
            raise OptionError(
                f"rule={self.rule!r} with mode='synchronous'",
                "a rule with mode='asynchronous' or 'hogwild' only: synchronous workers are averaged",
                "Remove the rule, or change the mode",
            )
        if self.num_workers < 1:
            raise OptionError(f"num_workers={self.num_workers!r}", "at least 1", "Correct num_workers")
        if not 0 <= self.min_workers <= self.num_workers:
            raise OptionError(
                f"min_workers={self.min_workers!r} with num_workers={self.num_workers}",
                "at most num_workers, or 0 for as many",
                "Correct min_workers",
            )
        if self.min_workers not in (0, self.num_workers) and self.mode != "synchronous":
            raise OptionError(
                f"min_workers={self.min_workers!r} with mode={self.mode!r}",
                "workers that meet: each of the others has a part of the updates, and Spark starts a lost one again",
                "Leave min_workers out, or use mode synchronous",
            )
        check_exchange(self.exchange, self.mode, self.frequency)
        if not 0 <= self.elasticity <= 1:
            raise OptionError(
                f"elasticity={self.elasticity!r}", "from 0 (for 0.9 / num_workers) to 1", "Correct elasticity"
            )
        if self.drop_slow and (self.drop_slow <= 1 or self.mode != "synchronous"):
            raise OptionError(
                f"drop_slow={self.drop_slow!r} with mode={self.mode!r}",
                "a factor above 1, or 0, with mode 'synchronous': other workers do not wait for a slow one",
                "Correct drop_slow, or leave it out",
            )
        if not 0 <= self.held_out_share < 1:
            raise OptionError(
                f"validation_split={self.held_out_share!r}", "a share from 0 up to less than 1", "Correct it"
            )
        runtime.resolve_precision(self.precision)

    @property
    def is_synchronous(self) -> bool:
        """Whether the workers meet once a round."""
        return self.mode == "synchronous"

    @property
    def may_be_among_workers(self) -> bool:
        """Whether workers may be asked to average among themselves."""
        return self.exchange != "driver" and self.is_synchronous and not self.exchanged.is_local

    @property
    def exchanged(self) -> Exchanged:
        """What travels between workers and master."""
        return Exchanged.of(self.mode, self.frequency, self.rule)


class Exchange(Protocol):
    """How what the workers make enters the master model: what the engine asks of a mode."""

    @property
    def coordinator(self) -> Coordinator:
        """What workers say is passed to it."""

    def begin(self, begin: Begin, epochs: Epochs) -> None:
        """Tell all workers what holds for the whole run, once they are there; `steps` are added."""

    def train(self, epochs: Epochs, observers: Observers) -> None:
        """Train these epochs."""

    def updates(self) -> Updates | None:
        """What was applied, where that is counted."""


class Engine:
    """A training run.

    Args:
        options: How it is led.
        recipe: What the workers compute.
        network: The compiled network of the recipe, with its metrics built. It is trained.
        launcher: Starts the workers.
        identity: What a checkpoint must agree in with this run.
        callbacks: Keras' callbacks; they run here, at epoch level, on `network`.
        progress: Hears how far it is.
    """

    def __init__(
        self,
        options: RunOptions,
        recipe: Recipe,
        network: Any,
        launcher: Launcher,
        *,
        identity: RunIdentity | None = None,
        callbacks: Sequence[Any] = (),
        progress: Progress | None = None,
    ) -> None:
        check_shards(recipe.num_shards, options)
        self._options, self._recipe = options, recipe
        self.network, self._launcher = network, launcher
        self._identity = identity or RunIdentity({})
        self._progress = progress or Silent()
        self._callbacks = keras.callbacks.CallbackList(
            list(callbacks), add_history=True, model=network, epochs=options.num_epochs, verbose=0
        )
        self.master = Master(self._network_of_master(), recipe.layer_decay)

    def run(self) -> TrainingRecord:
        """Train.

        Raises:
            OptionError: A checkpoint of another run is in the way.
            CorpusError: There are too few rows.
            TrainingError: The run cannot go on.
        """
        with self._checkpoints() as checkpoints:
            self.network.stop_training = False
            self._callbacks.on_train_begin()
            checkpoints.take_up(with_slots=self._options.exchanged != Exchanged.WEIGHTS)
            record = self._serve(checkpoints)
        self._callbacks.on_train_end()
        kept = history(self._callbacks)
        of_quarter = record.rows_of_quarter
        num_epochs = max(map(len, kept.values()), default=0) if of_quarter else 0
        shown = [of_quarter[min(epoch, len(of_quarter) - 1)] for epoch in range(num_epochs)]
        return replace(record, history=kept, rows_of_quarter=shown)

    def _checkpoints(self) -> RunCheckpoints:
        options, master, identity = self._options, self.master, self._identity
        if options.has_given_weights:
            identity = replace(identity, weights=master.all_weights())
        return RunCheckpoints(options.checkpoint_path, identity, master, self.network, self._callbacks)

    def _network_of_master(self) -> Any:
        """The network that updates are applied to.

        Of an asynchronous run callbacks look at snapshots in `network`, while gradients are applied to a network of
        the master's own. Both have one optimizer, so that a callback's learning rate counts.
        """
        recipe, network = self._recipe, self.network
        if self._options.is_synchronous or self._options.exchanged.is_local:
            return network
        live = carried.from_bytes(recipe.network, recipe.custom_objects)
        with runtime.float_type_of(live):
            metrics = made_metrics(recipe.metrics, recipe.custom_objects)
            live.compile(loss=recipe.loss, metrics=metrics, optimizer=network.optimizer)
            build_metrics(live, recipe.example_labels(live.outputs[0].dtype))
        return live

    def _serve(self, checkpoints: RunCheckpoints) -> TrainingRecord:
        """Start the workers and be their master."""
        options, recipe = self._options, self._recipe
        bind, host = self._launcher.addresses
        with Listener(bind, options.ports) as listener:
            task = TrainTask(
                run=uuid.uuid4().hex,
                generation=0,
                num_workers=options.num_workers,
                address=(host, listener.port),
                credentials=Credentials.make(encrypt=options.encrypt),
                recipe=recipe,
                is_barrier=options.is_synchronous,
                worker_ports=options.worker_ports if options.may_be_among_workers else (),
            )
            group = WorkerGroup(
                task.run,
                self._size(),
                recipe.num_shards,
                partial(_launch, self._launcher, task),
                _MAX_FAILURES,
                GRACE_SECONDS if options.is_synchronous else RETRY_SECONDS,
            )
            exchange = self._exchange(group, checkpoints.next_updates)
            try:
                with ParameterServer(exchange.coordinator, listener, task.credentials):
                    try:
                        record = self._train(group, exchange, checkpoints)
                        exchange.coordinator.stop()
                        group.join(_JOIN_SECONDS)
                    finally:
                        exchange.coordinator.stop()
            finally:
                group.cancel()
        workers = sorted(map(dict, group.summaries), key=lambda each: int(each["rank"]))
        return replace(
            record,
            updates=exchange.updates(),
            stage_failures=group.num_failures,
            shards_moved=group.num_moved,
            workers=workers,
        )

    def _size(self) -> Size:
        options = self._options
        return Size(options.min_workers or options.num_workers, options.num_workers, self._launcher.slots)

    def _exchange(self, group: WorkerGroup, next_updates: Sequence[int]) -> Exchange:
        options = self._options
        if options.is_synchronous:
            exchange = options.exchange if options.may_be_among_workers else "driver"
            dealing = Dealing(options.drop_slow, self._recipe.row_bytes) if options.drop_slow else None
            return SynchronousRun(group, self.master, options.exchanged, exchange, dealing)
        center = Center(
            self.master,
            rule=options.rule or rules.DEFAULT,
            elasticity=options.elasticity or _ELASTICITY / self._recipe.num_shards,
            local=options.exchanged.is_local,
            locked=options.mode != "hogwild",
        )
        return AsynchronousRun(group, self.master, self.network, center, next_updates)

    def _train(self, group: WorkerGroup, exchange: Exchange, checkpoints: RunCheckpoints) -> TrainingRecord:
        """Gather the workers, tell them what holds for all of them, and train; what they said of themselves."""
        workers = group.gather()
        record = self._gathered(workers)
        checkpoints.check(record.rows_fingerprint, record.precision)
        num_epochs = self._options.num_epochs
        epochs = Epochs(
            rows=record.rows,
            held_out_rows=record.held_out_rows,
            batch_size=self._recipe.batch_size,
            frequency=self._options.frequency,
            first=checkpoints.first_epoch(num_epochs),
            end=num_epochs,
        )
        weights = self._options.class_weight
        if weights is None:
            counts = [rows.of_class for worker in workers for rows in worker.shards]
            weights = balanced_class_weights(counts, self._recipe.num_classes)
        may_be = self._options.may_be_among_workers
        begin = Begin(
            *(0, record.precision, self._options.exchanged, weights),
            among_workers=may_be,
            owned_steps=may_be and self.master.is_elementwise,
        )
        exchange.begin(begin, epochs)
        exchange.train(epochs, Observers(self._callbacks, self._progress, checkpoints.save))
        return record

    def _gathered(self, workers: Sequence[Open]) -> TrainingRecord:
        """What is known of a run when its workers are there, after a look at whether they fit together."""
        shards = [rows for worker in workers for rows in worker.shards]
        rows, held_out = [shard.train for shard in shards], [shard.held_out for shard in shards]
        if sum(rows) < len(shards):
            raise CorpusError(
                f"{sum(rows)} rows to train on ({sum(held_out)} held out) for {len(shards)} shards",
                "at least one row for each shard; without --shards there are as many as workers",
                "Give more rows, or fewer shards (--shards) or workers (--num-workers)",
            )
        for text in uneven_shares(rows, held_out, self._options.held_out_share):
            _log.warning("%s", text)
        environments = [worker.environment for worker in workers]
        differences = reproducibility.differences(environments)
        if differences:
            _log.warning(
                "the workers differ, so that this run cannot be repeated bit for bit: %s",
                "; ".join(differences),
            )
        precisions = {
            runtime.resolve_precision(self._options.precision, tuple(environment["cpu_features"]))
            for environment in environments
        }
        fingerprints = " ".join(shard.fingerprint for shard in shards)
        return TrainingRecord(
            mode=self._options.mode,
            rows=rows,
            held_out_rows=sum(held_out),
            rows_fingerprint=fingerprint.content_hash(fingerprints.encode()),
            precision=precisions.pop() if len(precisions) == 1 else "float32",
            environment=environments[0],
            environment_differences=differences,
            rows_of_quarter=[
                [sum(counts) for counts in zip(*of_shards, strict=True)]
                for of_shards in zip(*(shard.of_quarter for shard in shards), strict=True)
            ],
        )


def check_shards(num_shards: int, options: RunOptions) -> None:
    """Refuse a number of shards that the workers cannot hold.

    Raises:
        OptionError: Fewer than workers, or others where each worker goes its own way.
    """
    if num_shards < options.num_workers:
        raise OptionError(
            f"{num_shards} shards for {options.num_workers} workers",
            "a shard for every worker, or more",
            "Give at least as many --shards, or fewer workers (--num-workers)",
        )
    if options.drop_slow and num_shards == (options.min_workers or options.num_workers) > 1:
        raise OptionError(
            f"drop_slow={options.drop_slow:g} with {num_shards} shards for as many workers",
            "more shards than workers: each keeps one, so that none could be moved",
            "Give two or four times as many --shards as workers, or leave out --drop-slow",
        )
    if num_shards != options.num_workers and not options.is_synchronous:
        raise OptionError(
            f"{num_shards} shards for {options.num_workers} workers in mode {options.mode}",
            "as many shards as workers, each of which makes updates of its own",
            "Leave --shards out, or use mode synchronous",
        )


def check_exchange(exchange: str, mode: str, frequency: str | int) -> None:
    """Refuse an exchange that this mode does not have.

    Raises:
        OptionError: Workers average among themselves only where each step ends with the mean of all.
    """
    if exchange not in EXCHANGES:
        raise OptionError(
            f"exchange={exchange!r}", f"one of {', '.join(EXCHANGES)}", "Set exchange to one of them"
        )
    if exchange == "workers" and (mode != "synchronous" or frequency != "batch"):
        raise OptionError(
            f"exchange='workers' with mode={mode!r} and frequency={frequency!r}",
            "mode 'synchronous' and frequency 'batch', where each step ends with the mean of all workers",
            "Use exchange 'driver', or that mode and frequency",
        )


def _launch(launcher: Launcher, task: TrainTask, generation: int, num_workers: int, ended: Ended) -> Attempt:
    return launcher.launch(replace(task, generation=generation, num_workers=num_workers), ended)


def balanced_class_weights(counts: Sequence[Mapping[str, int]], num_classes: int) -> dict[str, float]:
    """Class number -> weight with which all classes weigh alike.

    Args:
        counts: For each shard the rows of each class that it has, by the class' number.
        num_classes: Number of classes of the problem; one without a row gets no weight.
    """
    totals: dict[str, int] = {}
    for of_shard in counts:
        for name, count in of_shard.items():
            totals[name] = totals.get(name, 0) + int(count)
    num_rows = sum(totals.values())
    absent = [str(number) for number in range(num_classes) if str(number) not in totals]
    if absent:
        _log.warning(
            "no row to train on of class%s %s: the others' weights are balanced among themselves",
            "es" * (len(absent) != 1),
            ", ".join(absent),
        )
    return {name: num_rows / (len(totals) * count) for name, count in sorted(totals.items())}


def uneven_shares(rows: Sequence[int], held_out: Sequence[int], share: float) -> list[str]:
    """What to say where rows were dealt far from evenly, as happens where many of them are equal.

    Equal rows fall on one side and into one shard, as copies of a picture have to.

    Args:
        rows: To train on, of each shard.
        held_out: Held-out rows of each shard.
        share: That was to be held out; 0 where a column says which rows are.

    Returns:
        Sentences with numbers; none where chance explains the difference.
    """

    def is_far(found: int, total: int, expected: float) -> bool:
        deviation = math.sqrt(max(1.0, total * expected * (1 - expected)))
        return abs(found - total * expected) > _DEVIATIONS * deviation

    said = []
    total, held = sum(rows) + sum(held_out), sum(held_out)
    if share and is_far(held, total, share):
        said.append(
            f"{held:,} of {total:,} rows are held out, {held / total:.1%} where {share:.1%} were asked for: many rows"
            " are equal, and equal ones fall on one side. Mark rows by validationIndicatorCol for another share"
        )
    uneven = [rank for rank, count in enumerate(rows) if is_far(count, sum(rows), 1 / len(rows))]
    if uneven:
        said.append(
            f"the shards have {', '.join(f'{count:,}' for count in rows)} rows: many are equal, and equal ones go to"
            " one shard. The one with the most sets the pace; fewer shards waste less"
        )
    return said
