"""What workers and master say to each other, as types; `wire` carries their headers.

A header comes from another process: whatever is missing in it, or of another type, makes its worker one that is not
wanted, and harms no other.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seedlings_spark import errors
from seedlings_spark.errors import SeedlingsError, TrainingError
from seedlings_spark.training import rules
from seedlings_spark.training.server import Superseded
from seedlings_spark.training.weights import Layout, Vector

_T = TypeVar("_T")


class Exchanged(enum.StrEnum):
    """What a worker hands in after training steps, and what it is given to start from."""

    GRADIENT = "gradient"  # of one step, from the master's weights: the master's optimizer makes the step
    WEIGHTS = "weights"  # after steps of its own, with an optimizer whose slots stay with it
    STATE = "state"  # weights and optimizer slots, after steps of its own

    @classmethod
    def of(cls, mode: str, frequency: str | int, rule: str) -> "Exchanged":
        """What a run exchanges.

        Args:
            mode: "synchronous", "asynchronous" or "hogwild".
            frequency: "batch", "epoch" or a number of steps.
            rule: One of `rules.RULES`, or "".
        """
        if frequency == "batch" and rule not in rules.ELASTIC:
            return cls.GRADIENT
        return cls.STATE if mode == "synchronous" else cls.WEIGHTS

    @property
    def is_local(self) -> bool:
        """Whether workers take steps of their own."""
        return self != Exchanged.GRADIENT


@dataclass(frozen=True)
class Failure:
    """Why a worker cannot begin, in the three parts of our errors.

    Args:
        kind: The class of the error.
        found: See `errors.SeedlingsError`.
        expected: The same.
        remedy: The same.
    """

    kind: str
    found: str
    expected: str
    remedy: str

    @classmethod
    def of(cls, error: SeedlingsError) -> "Failure":
        """As it travels."""
        return cls(type(error).__name__, error.found, error.expected, error.remedy)

    def error(self, rank: int) -> SeedlingsError:
        """The error as the driver raises it.

        Args:
            rank: Rank of the worker.
        """
        kind = getattr(errors, self.kind, None)
        is_ours = isinstance(kind, type) and issubclass(kind, SeedlingsError)
        made = kind if is_ours else TrainingError
        return made(f"worker {rank}: {self.found}", self.expected, self.remedy)  # type: ignore[misc]


@dataclass(frozen=True)
class Open:
    """A worker says who it is.

    Args:
        run: Id of the run.
        generation: Generation of the workers.
        rank: That it wants to hold.
        attempt: Tells two attempts of one rank apart.
        rows: To train on.
        held_out_rows: Held-out rows of its shard.
        rows_fingerprint: Fingerprint of all its rows, with labels, weights and marks.
        weight_of_class: Rows of each class, by its number; empty without classes.
        environment: What its results depend on.
        failure: Why it cannot begin, if it cannot.
    """

    run: str
    generation: int
    rank: int
    attempt: int = 0
    rows: int = 0
    held_out_rows: int = 0
    rows_fingerprint: str = ""
    weight_of_class: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None

    def header(self) -> dict[str, Any]:
        """As it travels."""
        return asdict(self)

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> "Open":
        """The counterpart of `header`.

        Raises:
            Superseded: It is none.
        """
        given = _known(cls, header)
        if given.get("failure") is not None:
            _check("failure", isinstance(given["failure"], Mapping))
            given["failure"] = Failure(**_known(Failure, given["failure"]))
            _check("failure", all(isinstance(text, str) for text in vars(given["failure"]).values()))
        found = cls(**given)
        for name in ("generation", "rank", "attempt", "rows", "held_out_rows"):
            _check(name, _is_whole(getattr(found, name)))
        for name in ("run", "rows_fingerprint"):
            _check(name, isinstance(getattr(found, name), str))
        _check("environment", isinstance(found.environment, Mapping))
        _check("weight_of_class", isinstance(found.weight_of_class, Mapping))
        _check("weight_of_class", all(_is_whole(count) for count in found.weight_of_class.values()))
        return found


@dataclass(frozen=True)
class Begin:
    """What holds for a worker's whole run.

    Args:
        steps: Steps of an epoch.
        precision: To compute in.
        exchanged: What it hands in.
        class_weight: Class number -> weight.
    """

    steps: int
    precision: str
    exchanged: Exchanged
    class_weight: Mapping[str, float] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """As it travels."""
        return asdict(self)

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> "Begin":
        """The counterpart of `header`."""
        return cls(**{**header, "exchanged": Exchanged(header["exchanged"])})


@dataclass(frozen=True)
class Steps:
    """Steps to train.

    Args:
        epoch: From 0.
        first: Step of the epoch.
        last: The step after the last one.
    """

    epoch: int
    first: int
    last: int


@dataclass(frozen=True)
class Work:
    """A piece of work; the weights or state to start from come with it.

    Args:
        number: Tells it from all others.
        steps: To train; None where the rows that are held out are to be evaluated.
        rates: The optimizer's learning rates that are no schedules.
        counters: What the master's optimizer has counted.
        loss_scale: What the loss is multiplied with before its gradient is taken.
        counts: What the network's layers have counted: of each variable its numbers.
        iterations: Steps that the worker's own optimizer is to have counted, where workers do not wait for others.
    """

    number: int | str
    steps: Steps | None
    rates: Sequence[float] = ()
    counters: Sequence[float] = ()
    loss_scale: float = 1.0
    counts: Sequence[Sequence[int]] = ()
    iterations: int | None = None

    def header(self) -> dict[str, Any]:
        """As it travels."""
        return asdict(self)

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> "Work":
        """The counterpart of `header`."""
        steps = header["steps"]
        return cls(**{**header, "steps": None if steps is None else Steps(**steps)})


@dataclass(frozen=True)
class Result:
    """What one worker has made of one piece of work.

    Args:
        number: Number of the work.
        samples: Rows it looked at.
        loss: Sum over them; NaN after a bad step.
        metrics: Sums of the metrics' variables.
        bad_step: The first step whose loss was not finite, or None.
        vector: Gradient, weights or state; empty after an evaluation. It travels beside the header.
        seconds: That the worker computed for it.
        counters: What its optimizer has counted, after steps of its own.
        counts: What its network's layers have counted: of each variable its numbers.
    """

    number: int | str
    samples: int
    loss: float
    metrics: NDArray[np.float64]
    bad_step: int | None
    vector: Vector
    seconds: float = 0.0
    counters: Sequence[float] = ()
    counts: Sequence[Sequence[int]] = ()

    def header(self) -> dict[str, Any]:
        """As it travels, without the vector."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "vector"}
        loss = None if math.isnan(self.loss) else self.loss
        return {**found, "loss": loss, "metrics": self.metrics.tolist()}

    @classmethod
    def parse(cls, header: Mapping[str, Any], payload: memoryview, layout: Layout) -> "Result":
        """The counterpart of `header`.

        Args:
            header: Header of a message.
            payload: Payload of the message; the vector is a view of it.
            layout: Layout of the vector.

        Raises:
            Superseded: It is none.
        """
        given = _known(cls, {"vector": None, **header})
        _check("samples", _is_whole(given.get("samples")) and given["samples"] >= 0)
        _check("bad_step", given.get("bad_step") is None or _is_whole(given["bad_step"]))
        _check("seconds", _is_number(given.get("seconds")))
        try:
            vector: Vector = np.frombuffer(payload, layout.dtype)
            given["vector"], given["metrics"] = vector, np.asarray(given["metrics"], np.float64)
            given["loss"] = float("nan") if given["loss"] is None else float(given["loss"])
            given["seconds"] = float(given["seconds"])
            given["counters"] = tuple(float(value) for value in given.get("counters", ()))
            given["counts"] = tuple(
                tuple(int(value) for value in values) for values in given.get("counts", ())
            )
            found = cls(**given)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Superseded(f"a result that cannot be read: {error}") from None
        if found.metrics.ndim != 1 or vector.size not in (0, layout.size):
            raise Superseded(
                f"a result of {vector.size} numbers for {found.samples} samples, expected {layout.size} numbers"
            )
        return found


def _known(kind: type[_T], header: Mapping[str, Any]) -> dict[str, Any]:
    """The header's values of this type's fields; others are left out.

    Raises:
        Superseded: One without a default is missing.
    """
    known: Any = fields(kind)  # type: ignore[arg-type]
    for one in known:
        is_needed = one.default is MISSING and one.default_factory is MISSING
        if is_needed and one.name not in header:
            raise Superseded(f"a message without {one.name!r}")
    return {one.name: header[one.name] for one in known if one.name in header}


def _check(name: str, is_right: bool) -> None:
    if not is_right:
        raise Superseded(f"a message whose {name} is none")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
