import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from seedlings_spark.errors import OptionError
from seedlings_spark.training import checkpoint
from seedlings_spark.training.checkpoint import (
    Checkpoints,
    RunIdentity,
    TrainState,
    callback_state,
    declared_state,
    restore_callbacks,
)

STATE = TrainState(
    epoch=1,
    identity="this run",
    iterations=40,
    learning_rate=0.1,
    stopped=False,
    history={"loss": [0.1 + 0.2]},
    callbacks=[],
    next_updates=[3, 4],
    state=np.array([1.0, np.pi], np.float32),
    arrays={"best": np.eye(2)},
)


def _same(one: TrainState | None, other: TrainState) -> bool:
    assert one is not None
    arrays = all(np.array_equal(one.arrays[name], value) for name, value in other.arrays.items())
    plain = all(
        vars(one)[name] == value for name, value in vars(other).items() if name not in ("state", "arrays")
    )
    return (
        arrays
        and plain
        and one.state.tobytes() == other.state.tobytes()
        and one.state.dtype == other.state.dtype
    )


def test_without_a_checkpoint_there_is_nothing_to_take_up(tmp_path: Path) -> None:
    assert Checkpoints(str(tmp_path / "none")).latest("this run") is None


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path / "a folder"))
    checkpoints.save(STATE)
    assert _same(checkpoints.latest("this run"), STATE)


@pytest.mark.parametrize("length", [0, 1, 100, 400, -1])
def test_a_newest_one_that_is_cut_short_falls_back_to_the_one_before(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(STATE)
    checkpoints.save(replace(STATE, epoch=2))
    newest = tmp_path / "epoch-000002.npz"
    newest.write_bytes(newest.read_bytes()[:length])
    assert _same(checkpoints.latest("this run"), STATE)
    assert "epoch-000002.npz cannot be read" in caplog.text


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(replace(STATE, state=np.full(1000, 7.0)))
    file = tmp_path / "epoch-000001.npz"
    content = bytearray(file.read_bytes())
    content[content.rindex(np.float64(7.0).tobytes())] ^= 1
    file.write_bytes(bytes(content))
    assert checkpoints.latest("this run") is None


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(STATE)
    with pytest.raises(OptionError, match="other options"):
        checkpoints.latest("another run")


def test_a_refused_checkpoint_names_the_options_that_differ(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    identity = RunIdentity({"batch_size": "8", "seed": "0", "network": '{"name": "dense_3"}' + "a" * 2000})
    checkpoints.save(replace(STATE, identity=identity.text(), parts=identity.shown()))
    again = RunIdentity({**identity.parts, "network": '{"name": "dense_7"}' + "a" * 2000})
    assert checkpoints.latest(again.text(), again.shown()) is not None  # the number counts objects
    for parts, weights, words in (
        ({"batch_size": "16"}, None, "other options: batch_size 8 instead of 16. "),
        ({"seed": "1", "network": "b" * 2000}, None, "other options: seed 0 instead of 1, network. "),
        ({}, np.ones(2), "other options: initial weights. "),
    ):
        other = RunIdentity({**identity.parts, **parts}, weights)
        with pytest.raises(OptionError) as caught:
            checkpoints.latest(other.text(), other.shown())
        assert words in str(caught.value)


def test_what_was_the_number_of_workers_is_that_of_shards(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    before = RunIdentity({"mode": "synchronous", "num_workers": "2"})
    checkpoints.save(replace(STATE, identity=before.text(), parts=before.shown()))
    same, other = (RunIdentity({"mode": "synchronous", "shards": count}) for count in "24")
    assert checkpoints.latest(same.text(), same.shown()) is not None
    with pytest.raises(OptionError, match=r"other options: shards 2 instead of 4\. "):
        checkpoints.latest(other.text(), other.shown())


def test_the_last_two_are_kept_and_strangers_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints = Checkpoints(str(tmp_path))
    for epoch in range(1, 13):
        checkpoints.save(replace(STATE, epoch=epoch))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-000011.npz",
        "epoch-000012.npz",
        "notes.txt",
    ]


def test_no_flipped_bit_is_taken_as_good_and_none_ends_the_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(STATE)
    checkpoints.save(replace(STATE, epoch=2))
    newest = tmp_path / "epoch-000002.npz"
    whole = newest.read_bytes()
    chosen = set(random.Random(0).sample(range(8 * len(whole)), 40))
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Exception):  # noqa: B017 - whatever NumPy's and Python's readers raise
            checkpoint._read(bytes(damaged))
        if bit in chosen:
            newest.write_bytes(bytes(damaged))
            found = checkpoints.latest("this run")
            assert found is not None and found.epoch == 1


def test_a_checkpoint_of_before_there_was_a_hash_is_still_read(tmp_path: Path) -> None:
    meta = {name: value for name, value in asdict(STATE).items() if name not in ("state", "arrays")}
    text = np.frombuffer(json.dumps({"format": 1, **meta}).encode(), np.uint8)
    with (tmp_path / "epoch-000001.npz").open("wb") as file:
        np.savez(file, meta=text, state=STATE.state, **{"array best": np.eye(2)})
    assert _same(Checkpoints(str(tmp_path)).latest("this run"), STATE)


class Counting:
    checkpointed = ("wait", "best", "name", "best_weights")

    def __init__(self) -> None:
        self.wait, self.best, self.name, self.best_weights = 0, float("inf"), None, None
        self.patience = 3
        self.model = object()


def test_callbacks_get_back_what_they_declare_and_nothing_else() -> None:
    before = Counting()
    before.wait, before.best = 3, np.float32(0.25)  # type: ignore[assignment]
    before.best_weights = [np.eye(2), np.ones(3)]  # type: ignore[assignment]
    values, arrays = callback_state([before])
    assert "patience" not in values[0]
    after = Counting()
    after.patience = 9
    forged = [{**values[0], "patience": 1, "_path": "/home/somebody/.bashrc", "model": "none"}]
    restore_callbacks([after], replace(STATE, callbacks=forged, arrays=arrays))
    assert (after.wait, after.best, after.name, after.patience) == (3, 0.25, None, 9)
    assert not hasattr(after, "_path") and type(after.model) is object
    assert [array.tolist() for array in after.best_weights or []] == [[[1, 0], [0, 1]], [1, 1, 1]]


def test_a_callback_that_declares_nothing_begins_anew_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Silent:
        def __init__(self) -> None:
            self.seen = 0

    class Stopping(Counting):
        checkpointed = ("seen",)

    silent = Silent()
    restore_callbacks([silent], replace(STATE, callbacks=[{"class": "Silent", "seen": 7}]))
    assert silent.seen == 0 and "Silent begins anew" in caplog.text
    assert set(declared_state(Stopping()) or ()) == {"seen", *Counting.checkpointed}


def test_other_callbacks_than_before_begin_anew(caplog: pytest.LogCaptureFixture) -> None:
    after = Counting()
    restore_callbacks([after], replace(STATE, callbacks=[{"class": "EarlyStopping", "wait": 5}]))
    assert after.wait == 0 and "begin anew" in caplog.text
