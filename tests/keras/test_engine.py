"""The engine with workers that are threads: what a killed worker costs, and what it must not change."""

import contextlib
import dataclasses
import errno
import gc
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from seedlings_spark import files, reproducibility
from seedlings_spark.errors import ClusterError, CorpusError, OptionError, StorageError, TrainingError
from seedlings_spark.training import dealing, worker
from seedlings_spark.training.engine import RunOptions, balanced_class_weights, uneven_shares
from seedlings_spark.training.launcher import ThreadLauncher
from seedlings_spark.training.master import Master
from seedlings_spark.training.progress import Silent
from seedlings_spark.training.record import TrainingRecord
from seedlings_spark.training.server import Listener, ParameterServer
from seedlings_spark.training.shard import epoch_order
from seedlings_spark.training.wire import Credentials
from seedlings_spark.training.worker import Recipe, TrainTask
from tests.conftest import HANG_SECONDS, with_all
from tests.keras.test_synchronous import _noisy_network, _rows
from tests.keras.training import Rows, launcher, train

EPOCHS = 6


class Kill(Silent):
    """Cuts off a worker once, in the midst of an epoch, and another one at the end of the next."""

    def __init__(self, workers: ThreadLauncher) -> None:
        self._workers, self._left = workers, [0, 1]

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        if epoch == 1 and images < images_of_epoch and 1 in self._left:
            self._left.remove(1)
            self._workers.kill(1)

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        if epoch == 2 and 0 in self._left:
            self._left.remove(0)
            self._workers.kill(0)


@pytest.mark.parametrize("frequency", [pytest.param("batch", marks=with_all), 2])
def test_killed_workers_change_no_bit_of_a_synchronous_run(frequency: str | int) -> None:
    rows, optimizer = _rows([13, 10]), {"class_name": "Adam", "config": {"learning_rate": 0.01}}

    def run(**given: Any) -> Any:
        return train(
            _noisy_network(),
            rows,
            optimizer=keras.optimizers.deserialize(optimizer),
            epochs=EPOCHS,
            frequency=frequency,
            **given,
        )

    calm, workers = run(), launcher(rows)
    killed = run(launch=workers, progress=Kill(workers))
    assert calm.record.stage_failures == 0 and killed.record.stage_failures == 2
    assert killed.master.weights().tobytes() == calm.master.weights().tobytes()
    assert killed.record.history == calm.record.history


def _sized_rows() -> list[Rows]:
    """Of eight shards, one of which has nothing to train on at most steps."""
    rng = np.random.default_rng(3)
    return [
        Rows(
            *(one.features, one.labels, one.weights, rng.random(len(one.labels)) < 0.2),
            levels=np.arange(len(one.labels)) % 4,
        )
        for one in _rows([13, 10, 11, 9, 3, 12, 8, 14])
    ]


def _varied_network(dtype: str = "float32") -> Any:
    keras.utils.set_random_seed(5)
    dense, noise = keras.layers.Dense, keras.layers
    return keras.Sequential(
        [
            keras.Input((5,), dtype=dtype),
            dense(16, activation="relu", dtype=dtype),
            noise.BatchNormalization(momentum=0.8, dtype=dtype),
            noise.Dropout(0.5, seed=1, dtype=dtype),
            dense(3, activation="softmax", dtype=dtype),
        ]
    )


def _augmentation() -> str:
    noise = keras.layers.GaussianNoise(0.1, seed=1)
    return keras.Sequential([keras.Input((5,)), noise]).to_json()


def _of_shards(frequency: str | int, num_workers: int, **given: Any) -> Any:
    options = {"augmentation": _augmentation(), "metrics": ["accuracy"], "epochs": 2, **given}
    return train(
        _varied_network(),
        _sized_rows(),
        optimizer=keras.optimizers.Adam(0.01),
        frequency=frequency,
        num_workers=num_workers,
        **options,
    )


@pytest.mark.parametrize(("frequency", "others"), [("batch", [8, 3]), pytest.param(2, [4], marks=with_all)])
def test_any_number_of_workers_gives_the_same_bits(frequency: str | int, others: list[int]) -> None:
    alone = _of_shards(frequency, 1)
    for num_workers in others:
        several = _of_shards(frequency, num_workers)
        assert several.master.state().tobytes() == alone.master.state().tobytes()
        assert several.history == alone.history
        assert several.record.rows_fingerprint == alone.record.rows_fingerprint
        images = [worker["images"] for worker in several.record.workers]
        assert len(images) == num_workers and sum(images) == 2 * sum(several.record.rows)


class Confusions(keras.callbacks.Callback):
    """Keeps what it is told, and the weights that it is told it of."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[np.ndarray] = []
        self.accuracy: list[float] = []
        self.weights: list[list[np.ndarray]] = []

    def on_confusion(self, epoch: int, counts: np.ndarray) -> None:
        assert epoch == len(self.counts)
        self.counts.append(counts)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.accuracy.append((logs or {})["val_accuracy"])
        self.weights.append(self.model.get_weights())


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
@pytest.mark.parametrize("labels", ["index", "one_hot"])
def test_the_confusion_of_each_epoch_is_that_of_its_weights(mode: str, labels: str) -> None:
    heard, rows = Confusions(), _sized_rows()
    loss = "sparse_categorical_crossentropy" if labels == "index" else "categorical_crossentropy"
    train(
        _varied_network(),
        rows,
        optimizer=keras.optimizers.Adam(0.01),
        mode=mode,
        labels=labels,
        loss=loss,
        metrics=["accuracy"],
        callbacks=[heard],
        counts_confusion=True,
    )
    held_out = [(one.features[one.held_out], one.labels[one.held_out]) for one in rows]
    features, true = (np.concatenate(part) for part in zip(*held_out, strict=True))
    network = _varied_network()
    assert len(heard.counts) == len(heard.weights) == 3
    for counts, accuracy, weights in zip(heard.counts, heard.accuracy, heard.weights, strict=True):
        network.set_weights(weights)
        found = np.asarray(network(features)).argmax(axis=1)
        expected = [[np.sum((true == row) & (found == column)) for column in range(3)] for row in range(3)]
        assert counts.tolist() == expected
        assert accuracy == pytest.approx(np.trace(counts) / counts.sum())


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_held_out_rows_whose_loss_is_no_number_do_not_end_a_run(mode: str) -> None:
    rows = _sized_rows()
    features = rows[0].features.copy()
    features[rows[0].held_out] = np.inf
    rows[0] = dataclasses.replace(rows[0], features=features)
    network = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="softmax")])
    metrics = ["accuracy", "sparse_categorical_crossentropy"]
    found = train(network, rows, optimizer=keras.optimizers.SGD(0.1), mode=mode, metrics=metrics).history
    assert np.isnan(found["val_loss"]).all() and len(found["val_loss"]) == 3
    assert (
        np.isnan(found["val_sparse_categorical_crossentropy"]).all()
        and np.isfinite(found["sparse_categorical_crossentropy"]).all()
    )
    assert np.isfinite(found["loss"]).all() and np.isfinite(found["val_accuracy"]).all()


class Changes(Silent):
    """Workers are killed, and there is room for fewer or for more, at instants that a seed gives."""

    def __init__(self, workers: ThreadLauncher, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._workers = workers
        self._at = {(epoch, int(rng.integers(1, 60))): int(rng.integers(1, 9)) for epoch in (0, 1, 3)}
        self.rooms: list[int] = []  # after each kill

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        due = [at for at in self._at if at[0] == epoch and at[1] <= images]
        for at in due:
            self._workers.room = self._at.pop(at)
            self._workers.kill(0)
            self.rooms.append(self._workers.room)

    def epoch(self, epoch: int, seconds: float, images: int, logs: Mapping[str, float]) -> None:
        self._workers.room = 8 - epoch % 3  # more than there were, unless they all are there


def test_workers_killed_and_added_at_any_instant_change_no_bit() -> None:
    frequency, workers = 2, launcher(_sized_rows())
    calm = _of_shards(frequency, 1, epochs=4)
    changes = Changes(workers, seed=2)
    moved = _of_shards(frequency, 8, min_workers=1, epochs=4, launch=workers, progress=changes)
    assert moved.master.state().tobytes() == calm.master.state().tobytes()
    assert moved.history == calm.history
    assert moved.record.stage_failures == len(changes.rooms) == 3
    assert len(moved.record.workers) == changes.rooms[-1]


def test_a_slow_worker_loses_shards_and_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    calm, held = _of_shards("batch", 1, curriculum_epochs=3), list[tuple[int, ...]]()
    do, train_shard = worker.Computation.do, worker.Computation._train

    def is_slow() -> bool:
        return threading.current_thread().name == "seedlings-worker-1"

    def told(self: Any, work: Any, payload: Any, shards: Any, peers: Any = None) -> Any:
        if is_slow() and work.steps is not None:
            held.append(tuple(shard.number for shard in shards))
        return do(self, work, payload, shards, peers)

    def slowly(self: Any, work: Any, *given: Any, **named: Any) -> Any:
        if is_slow() and work.steps.epoch == 0:
            time.sleep(0.15)
        elif is_slow() and to_kill:
            workers.kill(to_kill.pop())
        return train_shard(self, work, *given, **named)

    monkeypatch.setattr(worker.Computation, "do", told)
    monkeypatch.setattr(worker.Computation, "_train", slowly)
    # One row a message: those of a shard come in many.
    monkeypatch.setattr(dealing, "_MESSAGE_BYTES", 1)
    for exchange in ("driver", "workers"):
        held.clear()
        workers, to_kill = launcher(_sized_rows()), [0]
        options = {"drop_slow": 2.0, "exchange": exchange, "curriculum_epochs": 3}
        found = _of_shards("batch", 3, launch=workers, **options)
        assert found.master.state().tobytes() == calm.master.state().tobytes()
        assert found.history == calm.history
        assert found.record.shards_moved > 0 and found.record.stage_failures == 1
        # Workers that are started again begin with as many shards as the first ones.
        lost = next(place for place, shards in enumerate(held) if len(shards) == 1)
        assert held[0] == (2, 3, 4) in held[lost:]


def test_a_step_takes_the_mean_of_the_shards_gradients_each_of_which_is_plain_keras() -> None:
    """With statistics of each shard's own batch, and with the seeds of its own number."""
    network, rows = _varied_network("float64"), _sized_rows()
    outcome = train(
        network, rows, optimizer=keras.optimizers.SGD(0.1), epochs=1, batch_size=16, num_workers=2
    )
    assert outcome.master.iterations == 1

    import tensorflow as tf

    normalization, dropout = network.layers[1:3]
    variables = network.trainable_variables
    counts, gradients, statistics = [], [], []
    start = [np.array(weight) for weight in network.non_trainable_weights]
    for shard, one in enumerate(rows):
        chosen = np.flatnonzero(~one.held_out)  # type: ignore[operator]
        chosen = chosen[epoch_order(0, 0, shard, len(chosen), 40)]
        for weight, value in zip(network.non_trainable_weights, start, strict=True):
            weight.assign(value)
        dropout.seed_generator.state.assign([reproducibility.seed_for(0, "layer", 0, 0, shard, 0), 0])
        with tf.GradientTape() as tape:
            outputs = network(one.features[chosen], training=True)
            losses = keras.losses.sparse_categorical_crossentropy(one.labels[chosen], outputs)
            loss = tf.reduce_mean(losses * one.weights[chosen])  # type: ignore[index]
        gradients.append([g.numpy() for g in tape.gradient(loss, [v.value for v in variables])])
        statistics.append([np.array(normalization.moving_mean), np.array(normalization.moving_variance)])
        counts.append(len(chosen))
    trained = outcome.master.network
    for ours, before, column in zip(
        trained.trainable_variables, variables, zip(*gradients, strict=True), strict=True
    ):
        expected = np.array(before) - 0.1 * np.average(column, axis=0, weights=counts)
        np.testing.assert_allclose(np.array(ours), expected, rtol=0, atol=1e-8)
    found = [trained.layers[1].moving_mean, trained.layers[1].moving_variance]
    for ours, column in zip(found, zip(*statistics, strict=True), strict=True):
        expected = np.average(column, axis=0, weights=counts)
        np.testing.assert_allclose(np.array(ours), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_workers": 9}, "8 shards for 9 workers"),
        ({"num_workers": 4, "mode": "asynchronous"}, "8 shards for 4 workers in mode asynchronous"),
        ({"num_workers": 8, "drop_slow": 2.0}, "drop_slow=2 with 8 shards for as many workers"),
    ],
)
def test_shards_that_the_workers_cannot_hold_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        train(_noisy_network(), _rows([9] * 8), optimizer=keras.optimizers.SGD(0.1), **given)


def _of_weight(labels: Any, outputs: Any) -> Any:
    return outputs


@pytest.mark.parametrize("retries", [3, 0], ids=["one alone", "all of them"])
@pytest.mark.parametrize("frequency", ["batch", 2])
def test_after_killed_workers_each_asynchronous_update_has_been_applied_once(
    frequency: str | int, retries: int
) -> None:
    """The loss is the one weight itself, so that each step takes 0.5 from it, whoever takes it and when."""
    zeros = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    network = keras.Sequential([keras.Input((1,)), zeros])
    rows = [Rows(np.ones((size, 1)), np.zeros(size)) for size in (22, 17)]
    steps = [6, 5]  # of at most 4 rows
    workers = launcher(rows, retries)
    outcome = train(
        network,
        rows,
        optimizer=keras.optimizers.SGD(0.5),
        loss=_of_weight,
        labels="number",
        mode="asynchronous",
        rule="downpour",
        frequency=frequency,
        epochs=EPOCHS,
        launch=workers,
        progress=Kill(workers),
    )
    assert float(outcome.network.get_weights()[0].item()) == -0.5 * EPOCHS * sum(steps)
    updates, record = outcome.record.updates, outcome.record
    assert updates is not None
    expected = steps if frequency == "batch" else [3, 3]
    assert updates.updates_of_rank == {str(rank): EPOCHS * count for rank, count in enumerate(expected)}
    assert record.stage_failures == (0 if retries else 2)
    # A summary is the last attempt's. The first worker had trained on rows before it was killed, as three
    # epochs have more of them than the second one has at all; that one may not have begun when it was.
    first, second = (worker["images"] for worker in record.workers)
    assert first < EPOCHS * 22 and second <= EPOCHS * 17


def test_callbacks_hear_once_that_training_begins_and_ends_with_its_last_weights() -> None:
    heard: list[Any] = []

    class Listening(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            heard.append("begin")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            heard.append(epoch)

        def on_train_end(self, logs: Any = None) -> None:
            heard.append(self.model.get_weights()[0].tobytes())

    optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.7)
    for mode in ("synchronous", "asynchronous"):
        heard.clear()
        outcome = train(
            _noisy_network(), _rows([9, 8]), optimizer=optimizer, mode=mode, callbacks=[Listening()]
        )
        # Averages have taken the place of the weights by then.
        assert heard == ["begin", 0, 1, 2, outcome.network.get_weights()[0].tobytes()]
        optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.7)


@pytest.mark.parametrize(
    "given",
    [
        {"frequency": "epoch"},
        {"exchange": "workers"},
        {"mode": "asynchronous", "frequency": 2},
        {"optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(clipnorm=1.0))},
    ],
)
def test_a_run_leaves_none_of_its_graphs_in_memory(given: dict[str, Any]) -> None:
    """TensorFlow holds what it has traced for as long as anything refers to it."""

    def graphs() -> list[Any]:
        gc.collect()
        return [each for each in gc.get_objects() if type(each).__name__ == "FuncGraph"]

    before, threads = graphs(), set(threading.enumerate())
    optimizer = given.get("optimizer", keras.optimizers.Adam)()
    train(_noisy_network(), _rows([9, 8]), epochs=1, **{**given, "optimizer": optimizer})
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("seedlings-"):
            thread.join(HANG_SECONDS)  # it ends soon; nobody waits for it
    assert not [each.name for each in graphs() if not any(each is one for one in before)]


def test_a_run_that_is_taken_up_ends_with_the_bits_of_one_that_was_not_interrupted(tmp_path: Path) -> None:
    rows = _rows([13, 10])

    def run(epochs: int, folder: str) -> Any:
        options = {"checkpoint_path": folder, "has_given_weights": True}
        return train(_noisy_network(), rows, optimizer=keras.optimizers.Adam(0.01), epochs=epochs, **options)

    whole = run(4, "")
    run(2, str(tmp_path))
    taken_up = run(4, str(tmp_path))
    assert taken_up.master.weights().tobytes() == whole.master.weights().tobytes()
    assert taken_up.record.history == whole.record.history
    assert [worker["images"] for worker in taken_up.record.workers] == [2 * 13, 2 * 10]


class Hears(Silent):
    """Says when the second epoch is under way."""

    def __init__(self) -> None:
        self.is_in_second = threading.Event()

    def step(
        self, epoch: int, images: int, images_of_epoch: int, logs: Callable[[], Mapping[str, float]]
    ) -> None:
        if epoch == 1:
            self.is_in_second.set()


def test_a_checkpoint_is_written_while_the_next_epoch_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, hears, waited = files.write_bytes, Hears(), []

    def slowly(path: str, data: bytes) -> None:
        if path.endswith("epoch-000001.npz"):
            waited.append(hears.is_in_second.wait(HANG_SECONDS))
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", slowly)

    def run() -> bytes:
        optimizer, folder = keras.optimizers.Adam(0.01), str(tmp_path)
        found = train(
            *(_noisy_network(), _rows([13, 10])),
            optimizer=optimizer,
            epochs=2,
            checkpoint_path=folder,
            progress=hears,
        )
        return found.master.state().tobytes()

    whole = run()
    assert waited == [True] and hears.is_in_second.is_set()
    (tmp_path / "epoch-000002.npz").unlink()
    assert run() == whole  # from what the first epoch has left, though it was written later


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(files, "write_bytes", full)
    for epochs in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            train(
                _noisy_network(),
                _rows([9, 8]),
                optimizer=keras.optimizers.SGD(0.1),
                epochs=epochs,
                checkpoint_path=str(tmp_path),
            )


def test_a_checkpoint_of_another_keras_is_taken_up_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(epochs: int) -> Any:
        return train(
            _noisy_network(),
            _rows([9, 8]),
            optimizer=keras.optimizers.SGD(0.1),
            epochs=epochs,
            checkpoint_path=str(tmp_path),
        )

    with monkeypatch.context() as patch:
        patch.setattr(reproducibility, "package_versions", lambda: {"keras": "3.0.1", "pillow": "1"})
        run(1)
    assert len(run(2).record.history["loss"]) == 2
    assert f"with keras 3.0.1 instead of {keras.__version__}: what follows" in caplog.text
    caplog.clear()
    run(3)
    assert "was written with" not in caplog.text


def test_a_record_is_plain_and_has_what_an_asynchronous_run_counts_among_the_rest() -> None:
    rows = _rows([9, 8])
    for mode, more in (("synchronous", []), ("asynchronous", ["rule", "staleness", "updates"])):
        record = train(_noisy_network(), rows, optimizer=keras.optimizers.SGD(0.1), mode=mode).record
        plain = record.as_dict()
        assert json.loads(json.dumps(plain)) == plain
        assert TrainingRecord.of(plain) == record
        assert set(more) <= set(plain) and ("updates" in plain) == bool(more)
        assert plain["mode"] == mode and plain["rows"] == [9, 8]


def test_fewer_rows_than_workers_are_refused_before_training() -> None:
    with pytest.raises(CorpusError, match=r"1 rows to train on \(0 held out\) for 2 shards"):
        train(_noisy_network(), _rows([1, 0]), optimizer=keras.optimizers.SGD(0.1))


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            CorpusError("rows of clay", "rows of numbers", "Take others"),
            CorpusError,
            "worker 1: rows of clay",
        ),
        (OSError(errno.ENOSPC, "no space"), StorageError, "No space left on device"),
        (MemoryError("all of it"), ClusterError, "MemoryError: all of it"),
        (
            ZeroDivisionError("by a row"),
            TrainingError,
            "before they could begin: ZeroDivisionError: by a row",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_before_a_worker_connects_is_told_in_its_own_words(
    error: Exception, kind: type[Exception], words: str, mode: str
) -> None:
    rows = _rows([9, 8])

    def failing() -> Any:
        raise error
        yield

    workers = ThreadLauncher(
        [lambda: rows[0].batches(0), failing], retries=1 if mode == "asynchronous" else 0
    )
    with pytest.raises(kind, match=words) as caught:
        train(_noisy_network(), rows, optimizer=keras.optimizers.SGD(0.1), mode=mode, launch=workers)
    assert type(caught.value) is kind


def _spooled() -> list[str]:
    """The files of rows that this process holds open; no folder has them."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(descriptor.readlink()))
    return [name for name in found if "seedlings-shard-" in name]


@pytest.mark.parametrize("what", ["its rows", "the server", "a port"])
def test_a_worker_that_fails_before_it_has_begun_leaves_no_rows_on_disk(what: str) -> None:
    rows, credentials, seen = _rows([9])[0], Credentials.make(), list[str]()
    recipe = Recipe(
        1, b"", "mse", [], {}, "number", 0, (5,), "float32", None, 4, seed=0, threads=1, budget_bytes=0
    )

    def batches() -> Any:
        yield from rows.batches(0)
        seen.extend(_spooled())
        if what == "its rows":
            raise OSError(errno.EIO, "unreadable")

    with Listener("127.0.0.1") as listener, Listener("127.0.0.1") as other:
        port = other.port
        if what == "the server":
            other.close()
        address = "127.0.0.1", port if what == "the server" else listener.port
        task = TrainTask("run", 0, 1, address, credentials, recipe, worker_ports=(port,))
        with ParameterServer(None, listener, credentials), pytest.raises((OSError, ClusterError)):  # type: ignore[arg-type]
            worker.work(task, 0, 0, batches(), None)
    assert seen and not _spooled()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mode": "fast"}, "mode='fast'"),
        ({"rule": "upstream", "mode": "asynchronous"}, "rule='upstream'"),
        ({"rule": "adag"}, "rule='adag' with mode='synchronous'"),
        ({"elasticity": 1.5}, r"elasticity=1\.5"),
        ({"drop_slow": 1.0}, r"drop_slow=1\.0"),
        ({"drop_slow": 2.0, "mode": "asynchronous"}, "mode='asynchronous'"),
        ({"held_out_share": 1.0}, r"validation_split=1\.0"),
    ],
)
def test_options_look_at_themselves(given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        RunOptions(**{"mode": "synchronous", "frequency": "batch", "num_epochs": 1, **given})


def test_shares_far_from_what_was_asked_are_said_with_their_numbers() -> None:
    assert uneven_shares([350, 360], [140, 150], 0.3) == []
    assert uneven_shares([7, 0], [0, 0], 0.0) == []  # chance
    (held_out,) = uneven_shares([250, 250], [0, 500], 0.3)
    assert "500 of 1,000 rows are held out, 50.0% where 30.0% were asked for" in held_out
    (workers,) = uneven_shares([750, 250], [0, 0], 0.0)
    assert "the shards have 750, 250 rows" in workers


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [5, 2, 13])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = balanced_class_weights([{"0": 5, "2": 3}, {"1": 2, "2": 10}], 3)
    assert [found[str(number)] for number in range(3)] == pytest.approx(expected.tolist(), rel=1e-15)


@pytest.mark.parametrize("frequency", ["epoch", "batch", 3])
def test_an_asynchronous_run_that_is_taken_up_ends_though_a_worker_was_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frequency: str | int
) -> None:
    real, is_ahead = worker.Computation._train, threading.Event()
    counts: list[int] = []

    def train_in_turn(self: Any, work: Any, payload: Any, shard: Any, **how: Any) -> Any:
        """The second worker waits until the first one is in its second epoch."""
        if shard.number == 1:
            is_ahead.wait(HANG_SECONDS)
        elif work.steps.epoch == 1:
            counts.append(1)
        result = real(self, work, payload, shard, **how)
        if shard.number == 0 and counts:
            is_ahead.set()
        return result

    class Dies(keras.callbacks.Callback):
        checkpointed = ()

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise RuntimeError("the driver dies")

    monkeypatch.setattr(worker.Computation, "_train", train_in_turn)
    rows, options = _rows([25, 20]), {"checkpoint_path": str(tmp_path), "has_given_weights": True}

    def run(*callbacks: Any) -> Any:
        how = {**options, "mode": "asynchronous", "frequency": frequency, "callbacks": list(callbacks)}
        return train(_noisy_network(), rows, optimizer=keras.optimizers.SGD(0.01), epochs=3, **how)

    with pytest.raises(RuntimeError, match="the driver dies"):
        run(Dies())
    ended = run()
    assert [len(values) for values in ended.history.values()] == [3] * len(ended.history)
    updates_of_epoch = {"epoch": (1, 1), "batch": (7, 5), 3: (3, 2)}[frequency]
    assert ended.record.updates.updates < 3 * sum(updates_of_epoch)


def test_what_goes_wrong_as_an_update_is_applied_ends_the_run_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, count = Master.apply_gradient, iter(range(100))

    def short(self: Any, vector: Any) -> Any:
        if next(count) == 3:
            raise MemoryError("the driver is short of memory")
        return real(self, vector)

    monkeypatch.setattr(Master, "apply_gradient", short)
    rows = _rows([12, 12])
    with pytest.raises(MemoryError, match="the driver is short of memory"):
        train(
            _noisy_network(),
            rows,
            optimizer=keras.optimizers.SGD(0.01),
            mode="asynchronous",
            launch=launcher(rows, retries=3),
        )
