"""Each rule against a transcription of its paper's formula, on a small quadratic with two workers that take turns."""

from collections.abc import Callable

import numpy as np
import pytest

from seedlings_spark import choices
from seedlings_spark.training import rules
from seedlings_spark.training.rules import Push

A = np.array([[3.0, 1.0], [1.0, 2.0]])
TARGETS = [np.array([1.0, -2.0]), np.array([0.0, 4.0])]  # each worker has data of its own
RATE, STEPS, ALPHA = 0.05, 3, 0.3
START = np.array([5.0, 5.0])


def _gradient(weights: np.ndarray, worker: int) -> np.ndarray:
    return A @ (weights - TARGETS[worker])


def _local_steps(weights: np.ndarray, worker: int) -> np.ndarray:
    for _ in range(STEPS):
        weights = weights - RATE * _gradient(weights, worker)
    return weights


def _ours(rule: str, rounds: int = 40) -> np.ndarray:
    """Both pull, then both push, the second one stale by one update."""
    center, starts = START.copy(), [START.copy(), START.copy()]
    for _ in range(rounds):
        pushed = [_local_steps(start, worker) for worker, start in enumerate(starts)]
        pulled, starts = starts, [center, center]
        for worker in (0, 1):
            push = Push(center, pulled[worker], pushed[worker], STEPS, worker, ALPHA)
            center, starts[worker] = rules.RULES[rule](push)
        if rule not in rules.ELASTIC:
            starts = [center, center]
    return center


def _accumulated(scale: Callable[[int], float], rounds: int = 40) -> np.ndarray:
    """Dean et al. 2012: a worker accumulates its gradients and sends the sum; the server steps by RATE times it."""
    center = START.copy()
    for _ in range(rounds):
        sums = []
        for worker in (0, 1):
            local, total = center.copy(), np.zeros(2)
            for _ in range(STEPS):
                gradient = _gradient(local, worker)
                total += gradient
                local -= RATE * gradient
            sums.append(total)
        for worker in (0, 1):
            center = center - RATE * sums[worker] * scale(worker)
    return center


@pytest.mark.parametrize(
    ("rule", "scale"),
    [
        ("downpour", lambda staleness: 1.0),
        ("adag", lambda staleness: 1.0 / STEPS),  # Hermans et al. 2017, eq. 4: divided by the number of steps
        ("dynsgd", lambda staleness: 1.0 / (staleness + 1)),  # Jiang et al. 2017: by the staleness
    ],
)
def test_accumulated_gradients_enter_as_the_paper_says(rule: str, scale: Callable[[int], float]) -> None:
    np.testing.assert_allclose(_ours(rule), _accumulated(scale), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", rules.ELASTIC)
def test_elastic_averaging_is_algorithm_1_of_the_paper(rule: str) -> None:
    center, workers = START.copy(), [START.copy(), START.copy()]
    for _ in range(40):
        workers = [_local_steps(x, worker) for worker, x in enumerate(workers)]
        for worker in (0, 1):
            x = workers[worker]
            workers[worker] = x - ALPHA * (x - center)
            center = center + ALPHA * (x - center)
    np.testing.assert_allclose(_ours(rule), center, rtol=0, atol=1e-12)


def test_each_rule_that_can_be_chosen_is_there() -> None:
    assert tuple(rules.RULES) == choices.RULES


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_rule_comes_near_the_optimum_of_both_workers(rule: str) -> None:
    optimum = np.mean(TARGETS, axis=0)
    assert np.linalg.norm(_ours(rule, 400) - optimum) < 0.5 * np.linalg.norm(START - optimum)


@pytest.mark.parametrize("rule", ["downpour", "dynsgd"])
def test_a_lone_worker_is_never_held_back(rule: str) -> None:
    pushed = np.array([1.0, 2.0])
    center, start = rules.RULES[rule](Push(START, START, pushed, 7, 0, ALPHA))
    assert np.array_equal(center, pushed) and np.array_equal(start, pushed)


@pytest.mark.parametrize("rule", rules.RULES)
def test_rules_keep_the_dtype_and_change_nothing_in_place(rule: str) -> None:
    arrays = [np.arange(4, dtype=np.float32) + shift for shift in (0, 1, 3)]
    before = [array.copy() for array in arrays]
    for result in rules.RULES[rule](Push(*arrays, num_steps=3, staleness=2, elasticity=0.45)):
        assert result.dtype == np.float32
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, before, strict=True))


def test_only_dynsgd_shrinks_a_stale_gradient() -> None:
    assert [rules.gradient_factor(rule, 3) for rule in rules.RULES] == [1.0, 1.0, 0.25, 1.0, 1.0]
    assert rules.gradient_factor("dynsgd", 0) == 1.0


def test_a_moving_variance_stays_positive_whatever_the_staleness() -> None:
    center = np.array([0.1, 5.0])
    for staleness in range(5):
        center = rules.statistics(center, np.array([0.01, 0.02]), staleness)
        assert (center > 0).all()
