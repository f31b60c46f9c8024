"""The tree of means, beside sums in exact arithmetic."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from seedlings_spark.training.tree import (
    Mean,
    mean_of,
    most_nodes,
    most_nodes_of_any,
    nodes_within,
    shards_of,
)


def _mean(vectors: list[NDArray[np.floating]], samples: list[int], num_workers: int) -> Mean:
    """As that many workers and their master make it."""

    def leaf(node: range) -> Mean | None:
        return Mean(vectors[node.start], samples[node.start]) if len(node) == 1 else None

    count = len(vectors)
    sent = {}
    for rank in range(num_workers):
        for node in nodes_within(shards_of(rank, num_workers, count), count):
            sent[node] = mean_of(node, leaf)
    return mean_of(range(count), sent.get)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 8, 12])
def test_the_mean_is_the_same_to_the_bit_whoever_holds_which_shard(num_shards: int) -> None:
    rng = np.random.default_rng(num_shards)
    vectors = [rng.normal(size=300).astype(np.float32) for _ in range(num_shards)]
    samples = [int(count) for count in rng.integers(0, 40, num_shards)]
    samples[-1] += 1
    exact = [
        float(
            sum(Fraction(float(v[place])) * n for v, n in zip(vectors, samples, strict=True)) / sum(samples)
        )
        for place in range(300)
    ]
    means = [_mean(vectors, samples, num_workers) for num_workers in range(1, num_shards + 1)]
    assert {mean.samples for mean in means} == {sum(samples)}
    assert len({mean.vector.tobytes() for mean in means}) == 1
    assert means[0].vector.dtype == np.float32
    np.testing.assert_allclose(means[0].vector, exact, rtol=0, atol=1e-6)


def test_what_is_the_same_in_all_vectors_stays_so_to_the_bit() -> None:
    same = np.float32([0.1, 1e-30, -3e8, 7.7])
    mean = _mean([same] * 7, [3, 1, 4, 1, 5, 9, 2], 3)
    assert mean.vector.tobytes() == same.tobytes()


def test_a_vector_without_samples_is_not_looked_at() -> None:
    nothing = np.array([np.nan, np.inf])
    mean = _mean([nothing, np.array([1.0, 2.0]), nothing], [0, 3, 0], 2)
    assert mean.vector.tolist() == [1.0, 2.0] and mean.samples == 3


def test_a_number_that_is_not_finite_shows_in_the_mean_and_the_arguments_stay_as_they_are() -> None:
    vectors = [np.array([1.0, 1.0, 1.0]), np.array([np.inf, -np.inf, np.nan])]
    before = [vector.copy() for vector in vectors]
    for pair in (vectors, vectors[::-1]):
        assert not np.isfinite(_mean(pair, [1, 1], 1).vector).any()
    for one, other in zip(vectors, before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_workers_hold_all_shards_in_blocks_and_send_few_vectors() -> None:
    for num_shards in range(1, 33):
        for num_workers in range(1, num_shards + 1):
            blocks = [shards_of(rank, num_workers, num_shards) for rank in range(num_workers)]
            assert [shard for block in blocks for shard in block] == list(range(num_shards))
            assert {len(one) for one in blocks} <= {num_shards // num_workers, -(-num_shards // num_workers)}
            for block in blocks:
                nodes = nodes_within(block, num_shards)
                assert [shard for node in nodes for shard in node] == list(block)
            if num_workers & (num_workers - 1) == 0 and num_shards % num_workers == 0:
                assert most_nodes(num_workers, num_shards) == 1
    assert most_nodes(3, 8) == 2


def test_no_block_of_neighbours_needs_more_vectors_than_two_of_each_level() -> None:
    for num_shards in range(1, 33):
        edges = itertools.combinations(range(num_shards + 1), 2)
        most = max(len(nodes_within(range(first, last), num_shards)) for first, last in edges)
        assert most <= most_nodes_of_any(num_shards)
    assert len(nodes_within(range(1, 15), 16)) == 6 <= most_nodes_of_any(16) == 8
