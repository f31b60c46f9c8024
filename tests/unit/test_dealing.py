"""Which worker loses shards to whom, from timings that are made up."""

import itertools

import pytest

from seedlings_spark.training.dealing import Move, Paces, dealt, moves


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
