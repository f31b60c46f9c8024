from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedlings_spark.training import curriculum
from seedlings_spark.training.shard import BLOCK_BYTES, WINDOW_BYTES, Shard, batch_edges, epoch_order


@given(st.integers(0, 500), st.integers(1, 60))
def test_every_row_is_in_exactly_one_batch_and_batches_are_alike_in_size(
    num_rows: int, num_steps: int
) -> None:
    edges = batch_edges(num_rows, num_steps)
    sizes = np.diff(edges)
    assert edges[0] == 0 and edges[-1] == num_rows and len(sizes) == num_steps
    assert sizes.max() - sizes.min() <= 1


@given(st.integers(0, 3000), st.sampled_from([1, 12288, BLOCK_BYTES, 3 * WINDOW_BYTES]), st.integers(0, 5))
def test_an_epoch_visits_every_row_once(num_rows: int, row_bytes: int, epoch: int) -> None:
    order = epoch_order(7, epoch, 1, num_rows, row_bytes)
    assert sorted(order.tolist()) == list(range(num_rows))


def test_the_order_is_a_pure_function_of_seed_epoch_and_rank() -> None:
    order = epoch_order(1, 2, 3, 1000, 12288).tolist()
    assert order == epoch_order(1, 2, 3, 1000, 12288).tolist()
    for other in [(0, 2, 3), (1, 3, 3), (1, 2, 0)]:
        assert order != epoch_order(*other, 1000, 12288).tolist()


def test_a_shard_of_one_window_is_shuffled_as_a_whole() -> None:
    num_rows = WINDOW_BYTES // 65536
    order = epoch_order(0, 0, 0, num_rows, 65536)
    # Neighbours of a block of 16 rows are spread over the whole epoch.
    places = np.argsort(order)[:16]
    assert places.max() - places.min() > num_rows // 2


def test_beyond_a_window_rows_of_a_block_stay_in_one_window() -> None:
    row_bytes = BLOCK_BYTES // 4
    num_rows = 4 * 64 * 3  # three windows
    places = np.argsort(epoch_order(0, 0, 0, num_rows, row_bytes))
    for block in places.reshape(-1, 4):
        assert len({place // 256 for place in block}) == 1


@given(st.lists(st.integers(0, 3), max_size=200), st.integers(0, 12), st.integers(1, 9))
def test_a_curriculum_goes_through_the_easy_rows_alike_often_and_lets_the_others_in(
    given_levels: list[int], epoch: int, num_epochs: int
) -> None:
    levels = np.array(given_levels, np.uint8)
    order = curriculum.order(7, epoch, 1, levels, 12288, num_epochs)
    assert len(order) == len(levels)
    if epoch >= num_epochs:
        assert order.tolist() == epoch_order(7, epoch, 1, len(levels), 12288).tolist()
    if not len(levels):
        return
    quarters = sum(epoch * 3 >= place * num_epochs for place in range(4))
    easy = np.flatnonzero(levels < max(quarters, levels.min() + 1))
    visits = np.bincount(order, minlength=len(levels))
    assert visits.sum() == visits[easy].sum()
    assert visits[easy].max() - visits[easy].min() <= 1


def _filled(budget_bytes: int, directory: str | None = None) -> tuple[Shard, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 255, (100, 4, 5, 3), dtype=np.uint8)
    shard = Shard((4, 5, 3), "uint8", budget_bytes=budget_bytes, directory=directory)
    for start in range(0, 100, 7):
        rows = slice(start, min(start + 7, 100))
        shard.append(features[rows], np.arange(100.0)[rows], np.arange(100.0)[rows] / 10)
    return shard, features


@pytest.mark.parametrize("budget_bytes", [10**6, 60 * 50, 1])
def test_rows_come_back_as_they_were_in_memory_and_from_disk(budget_bytes: int, tmp_path: Path) -> None:
    shard, features = _filled(budget_bytes, str(tmp_path))
    assert shard.is_spooled == (budget_bytes < 60 * 100) and len(shard) == 100
    rows = np.array([99, 0, 42, 42, 7])
    batch = shard.read(rows)
    assert (batch.features == features[rows]).all()
    assert batch.labels.tolist() == [99, 0, 42, 42, 7] and batch.weights[0] == 9.9
    shard.close()


def test_a_spooled_shard_leaves_no_file_behind(tmp_path: Path) -> None:
    shard, _ = _filled(1, str(tmp_path))
    assert shard.is_spooled and list(tmp_path.iterdir()) == []
    shard.close()


def test_an_epoch_has_the_same_batches_in_memory_and_from_disk(tmp_path: Path) -> None:
    order, edges = epoch_order(3, 1, 0, 100, 60), batch_edges(100, 8)
    found = []
    for budget in (10**6, 500):
        shard, _ = _filled(budget, str(tmp_path))
        found.append([batch.features.tobytes() for batch in shard.batches(order, edges, 2, 8)])
        shard.close()
    assert found[0] == found[1] and len(found[0]) == 6


def test_an_empty_shard_gives_empty_batches() -> None:
    shard = Shard((2,), "float32", budget_bytes=10)
    batches = list(shard.batches(epoch_order(0, 0, 0, 0, 8), batch_edges(0, 3), 0, 3))
    assert [len(batch) for batch in batches] == [0, 0, 0]
    assert batches[0].features.shape == (0, 2)


def test_features_of_numbers_keep_their_dtype(tmp_path: Path) -> None:
    for budget in (10**6, 1):
        shard = Shard((3,), "float64", budget_bytes=budget, directory=str(tmp_path))
        values = np.random.default_rng(1).normal(size=(5, 3))
        shard.append(values, np.zeros(5), np.ones(5))
        assert (shard.read(np.arange(5)).features == values).all()
        shard.close()
