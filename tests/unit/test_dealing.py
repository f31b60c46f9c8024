"""Which worker loses shards to whom, from timings that are made up."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from seedlings_spark.training import worker
from seedlings_spark.training.dealing import Move, Paces, dealt, moves
from seedlings_spark.training.messages import Handing
from seedlings_spark.training.worker import HeldShard, Recipe, _empty_shards, _read_shards, _Shards


def _last_is_done(sizes: tuple[int, ...], seconds: list[float]) -> float:
    return max(size * each for size, each in zip(sizes, seconds, strict=True))


@pytest.mark.parametrize(
    ("sizes", "seconds", "expected"),
    [
        ((2, 2), [3.1, 1.0], (1, 3)),
        ((2, 2), [2.9, 1.0], (2, 2)),  # within the factor
        ((2, 2, 2, 2), [1.0, 1.1, 9.0, 0.9], (2, 3, 1, 2)),  # to a neighbour: one shard moves
        ((4, 4, 4, 4), [1.0, 4.0, 4.0, 1.0], (7, 1, 1, 7)),  # half of all of them are slow
        ((1, 3), [1.0, 1.0], (2, 2)),  # it has recovered
        ((1, 3), [2.5, 1.0], (1, 3)),  # not quite
        ((1, 3), [1.9, 1.0], (2, 2)),
        ((1, 1), [9.0, 1.0], (1, 1)),  # each keeps one
        ((8,), [1.0], (8,)),
        ((3, 3, 2), [1.0, 1.4, 1.0], (3, 3, 2)),
        ((2, 2), [float("nan"), 1.0], (2, 2)),
        ((2, 2), [0.0, 1.0], (2, 2)),
    ],
)
def test_a_worker_that_is_slower_by_more_than_the_factor_loses_shards_until_it_has_recovered(
    sizes: tuple[int, ...], seconds: list[float], expected: tuple[int, ...]
) -> None:
    assert dealt(sizes, seconds, 3.0) == expected


def test_no_other_sizes_would_be_done_sooner_and_the_same_seconds_move_nothing_again() -> None:
    seconds = [1.0, 7.0, 1.0]
    found = dealt((4, 4, 4), seconds, 2.0)
    every = (sizes for sizes in itertools.product(range(1, 11), repeat=3) if sum(sizes) == 12)
    assert _last_is_done(found, seconds) == min(_last_is_done(sizes, seconds) for sizes in every)
    assert dealt(found, [1.05, 7.3, 0.98], 2.0) == found


def test_only_shards_whose_holder_changes_are_moved() -> None:
    assert moves((2, 2, 2), (1, 3, 2)) == [Move(1, 0, 1)]
    assert moves((2, 2, 2), (1, 2, 3)) == [Move(1, 0, 1), Move(3, 1, 2)]
    assert moves((2, 2), (2, 2)) == []


def test_the_pace_of_a_worker_is_the_median_of_an_epoch_without_the_first_time_of_a_generation() -> None:
    paces = Paces()
    for seconds in ([90.0, 80.0], [4.0, 3.0], [400.0, 3.0], [4.0, 9.0]):
        paces.took(0, (2, 1), 2, seconds)
    assert paces.of_epoch(0) == [1.0, 1.5]
    assert paces.of_epoch(0) == []
    paces.took(0, (2, 1), 1, [4.0, 3.0])
    paces.took(1, (2, 1), 1, [90.0, 80.0])  # a generation that has traced anew
    assert paces.of_epoch(0) == paces.of_epoch(1) == []


# Two shards, of which the second one has nothing that is held out; each with labels of two numbers.
HELD_OUT = [[False, True, False, True, False], [False] * 4]


def _recipe(budget_bytes: int) -> Recipe:
    plain = {"network": b"", "loss": "", "metrics": [], "optimizer": {}, "labels": "vector", "num_classes": 0}
    sizes = {"num_shards": 3, "batch_size": 2, "seed": 7, "threads": 1, "budget_bytes": budget_bytes}
    shapes = {"row_shape": (3, 1), "row_dtype": "uint8", "label_shape": (2,), "augmentation": None}
    return Recipe(**plain, **sizes, **shapes, curriculum_epochs=3)  # type: ignore[arg-type]


def _batches() -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(0)
    for shard, held_out in enumerate(HELD_OUT):
        count = len(held_out)
        rows = {
            worker.SHARD: np.full(count, shard, np.int32),
            worker.FEATURES: pa.array([bytes(row) for row in rng.integers(0, 256, (count, 3), np.uint8)]),
            worker.LABEL: pa.array(rng.normal(size=(count, 2)).tolist()),
            worker.WEIGHT: rng.uniform(size=count),
            worker.HELD_OUT: np.array(held_out),
            worker.LEVEL: np.arange(count) % 4,
        }
        yield pa.RecordBatch.from_pydict(rows)


def _content(shard: HeldShard, recipe: Recipe) -> list[bytes]:
    """All that a step of a shard depends on."""
    orders = [shard.order(recipe.seed, epoch, recipe.curriculum_epochs).tobytes() for epoch in range(4)]
    parts = [part.read(np.arange(len(part))).packed() for part in (shard.train, shard.held_out)]
    return [*orders, *parts]


@pytest.mark.parametrize("budget_bytes", [10**6, 0], ids=["in memory", "on disk"])
def test_a_shard_that_has_changed_hands_is_the_same_to_the_bit(budget_bytes: int) -> None:
    recipe = _recipe(budget_bytes)
    with _empty_shards(recipe, range(2)) as of_giver, _empty_shards(recipe, range(2, 3)) as of_taker:
        _read_shards(of_giver, recipe, _batches())
        expected = [_content(shard, recipe) for shard in of_giver]
        giver, taker = _Shards(0, recipe, of_giver), _Shards(1, recipe, of_taker)
        for held_out, count in ((False, 4), (True, 0)):
            for first in range(0, max(1, count), 3):
                part = Handing(shard=1, held_out=held_out, first=first, last=min(first + 3, count))
                rows = giver.hand_over(replace(part, is_asked=True), b"", None)
                assert len(rows) <= recipe.row_bytes * 3
                taker.hand_over(part, memoryview(rows), None)
        for each in (giver, taker):
            each.hand_over(Handing(sizes=(1, 2)), b"", None)
        assert [shard.number for shard in of_giver] == [0] and _content(of_giver[0], recipe) == expected[0]
        assert [shard.number for shard in of_taker] == [1, 2] and _content(of_taker[0], recipe) == expected[1]
        assert of_taker[0].train.is_spooled == (budget_bytes == 0)
