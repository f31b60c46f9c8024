"""Update rules of asynchronous training: how a worker's work enters the master model. Pure functions.

A worker pulls weights, takes some steps on its own, and pushes the weights it ended with; meanwhile the master
(`center`) has moved on. `staleness` counts the updates of others that were applied between its pull and its push.
Each rule returns the new center and the weights from which that worker goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seedlings_spark.training.weights import Vector

DEFAULT = "dynsgd"


@dataclass(frozen=True)
class Push:
    """What a rule is given.

    Args:
        center: The master's weights now.
        pulled: The weights that the worker started from.
        pushed: The weights that it ended with.
        num_steps: Steps that it took in between.
        staleness: Updates applied since its pull.
        elasticity: alpha of the elastic rules, above 0 and at most 1.
    """

    center: Vector
    pulled: Vector
    pushed: Vector
    num_steps: int
    staleness: int
    elasticity: float


def downpour(push: Push) -> tuple[Vector, Vector]:
    """The whole change is added (Downpour SGD; Dean et al. 2012, "Large scale distributed deep networks").

    Every worker moves the master as far as if it were alone: with many workers and large steps it overshoots.
    """
    center = push.center + (push.pushed - push.pulled)
    return center, center


def adag(push: Push) -> tuple[Vector, Vector]:
    """The change divided by its number of steps is added (accumulated gradient normalization; Hermans, Spanakis
    and Moeckel 2017, arXiv:1710.02368, equation 4).
    """
    center = push.center + (push.pushed - push.pulled) / _like(push, push.num_steps)
    return center, center


def dynsgd(push: Push) -> tuple[Vector, Vector]:
    """The change divided by staleness + 1 is added (DynSGD; Jiang, Cui, Zhang and Yu 2017, "Heterogeneity-aware
    distributed parameter servers", SIGMOD).

    With one worker nothing is ever stale, and n equal workers each move the master by about an n-th: the rule
    needs no setting for the number of workers.
    """
    center = push.center + (push.pushed - push.pulled) / _like(push, push.staleness + 1)
    return center, center


def aeasgd(push: Push) -> tuple[Vector, Vector]:
    """Worker and master are drawn towards each other by alpha of their distance, and the worker goes on from where
    it then is (asynchronous elastic averaging; Zhang, Choromanska and LeCun 2015, arXiv:1412.6651, algorithm 1).
    """
    elastic = (push.pushed - push.center) * _like(push, push.elasticity)
    return push.center + elastic, push.pushed - elastic


def eamsgd(push: Push) -> tuple[Vector, Vector]:
    """The exchange of `aeasgd`, for workers whose own steps are SGD with Nesterov momentum (the same paper,
    algorithm 2).
    """
    return aeasgd(push)


RULES: dict[str, Callable[[Push], tuple[Vector, Vector]]] = {
    "downpour": downpour,
    "adag": adag,
    "dynsgd": dynsgd,
    "aeasgd": aeasgd,
    "eamsgd": eamsgd,
}
# Their workers go on from weights of their own: they take steps of their own also at frequency `batch`.
ELASTIC = ("aeasgd", "eamsgd")


def gradient_factor(rule: str, staleness: int) -> float:
    """What a pushed gradient of one batch is multiplied with before the master's optimizer takes its step.

    One step needs no normalisation, so `adag` is `downpour` here.
    """
    return 1.0 / (staleness + 1) if rule == "dynsgd" else 1.0


def statistics(center: Vector, pushed: Vector, staleness: int) -> Vector:
    """Weights that are not trained (moving statistics): they move to the worker's by 1 / (staleness + 1) of the way.

    It is a mean of the two, not a sum of changes: a variance stays positive.
    """
    return center + (pushed - center) / center.dtype.type(staleness + 1)


def _like(push: Push, number: float) -> Any:
    """The number in the vectors' own precision, so that they keep it."""
    return push.center.dtype.type(number)
