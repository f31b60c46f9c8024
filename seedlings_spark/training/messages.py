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
class Rows:
    """What a worker says of the rows of one shard.

    Args:
        train: To train on.
        held_out: Held out.
        fingerprint: Of all of them, with labels, weights and marks.
        of_class: Rows to train on of each class, by its number; empty without classes.
        of_quarter: With a curriculum, as `curriculum.rows_of_quarter` gives it.
    """

    train: int
    held_out: int
    fingerprint: str
    of_class: Mapping[str, int] = field(default_factory=dict)
    of_quarter: Sequence[Sequence[int]] = ()

    @classmethod
    def parse(cls, header: Any) -> "Rows":
        """The counterpart of `asdict`.

        Raises:
            Superseded: It is none.
        """
        _check("shards", isinstance(header, Mapping))
        found = cls(**_known(cls, header))
        _check("train", _is_whole(found.train))
        _check("held_out", _is_whole(found.held_out))
        _check("fingerprint", isinstance(found.fingerprint, str))
        _check("of_class", isinstance(found.of_class, Mapping))
        _check("of_class", all(_is_whole(count) for count in found.of_class.values()))
        _check("of_quarter", isinstance(found.of_quarter, list | tuple))
        _check("of_quarter", all(_are_whole(counts) for counts in found.of_quarter))
        return found


@dataclass(frozen=True)
class Open:
    """A worker says who it is.

    Args:
        run: Id of the run.
        generation: Generation of the workers.
        rank: That it wants to hold.
        attempt: Tells two attempts of one rank apart.
        shards: Rows of the shards that the rank holds, in their order.
        environment: What its results depend on.
        failure: Why it cannot begin, if it cannot.
        address: (host, port) where other workers reach it; () where they need not.
    """

    run: str
    generation: int
    rank: int
    attempt: int = 0
    shards: Sequence[Rows] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    address: Sequence[Any] = ()

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
        shards = given.get("shards", ())
        _check("shards", isinstance(shards, list | tuple))
        given["shards"] = tuple(map(Rows.parse, shards))
        found = cls(**given)
        for name in ("generation", "rank", "attempt"):
            _check(name, _is_whole(getattr(found, name)))
        _check("run", isinstance(found.run, str))
        _check("environment", isinstance(found.environment, Mapping))
        _check("address", isinstance(found.address, list | tuple) and len(found.address) in (0, 2))
        if found.address:
            host, port = found.address
            _check("address", isinstance(host, str) and _is_whole(port))
        return found


@dataclass(frozen=True)
class Begin:
    """What holds for a worker's whole run.

    Args:
        steps: Steps of an epoch.
        precision: To compute in.
        exchanged: What it hands in.
        class_weight: Class number -> weight.
        among_workers: Whether it may be asked to average with the other workers, and to hold the optimizer for that.
        owned_steps: Whether it then makes the optimizer's step on the slice that it owns only.
    """

    steps: int
    precision: str
    exchanged: Exchanged
    class_weight: Mapping[str, float] = field(default_factory=dict)
    among_workers: bool = False
    owned_steps: bool = False

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
        peers: (host, port) of all workers by rank, where they are to average among themselves.
    """

    number: int | str
    steps: Steps | None
    rates: Sequence[float] = ()
    counters: Sequence[float] = ()
    loss_scale: float = 1.0
    counts: Sequence[Sequence[int]] = ()
    iterations: int | None = None
    peers: Sequence[Sequence[Any]] = ()

    def header(self) -> dict[str, Any]:
        """As it travels."""
        return asdict(self)

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> "Work":
        """The counterpart of `header`."""
        steps = header["steps"]
        return cls(**{**header, "steps": None if steps is None else Steps(**steps)})


@dataclass(frozen=True)
class Handing:
    """What a worker does while shards change hands, in place of work; its answer has a header of the same kind.

    Args:
        sizes: The shards that each worker holds from now on; () while rows are on their way.
        shard: Whose rows these are.
        is_asked: Whether the worker is to give them; else they come with this.
        held_out: Whether they are those that are held out.
        first: Place of the first one among them.
        last: The place after the last one.
    """

    sizes: Sequence[int] = ()
    shard: int = 0
    is_asked: bool = False
    held_out: bool = False
    first: int = 0
    last: int = 0

    def header(self) -> dict[str, Any]:
        """As it travels."""
        return {_HANDING: asdict(self)}

    @staticmethod
    def is_in(header: Mapping[str, Any]) -> bool:
        """Whether a message has such a header, or is the answer to one."""
        return _HANDING in header

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> "Handing | None":
        """The counterpart of `header`; None of another message."""
        return cls(**header[_HANDING]) if _HANDING in header else None


_HANDING = "handing"


@dataclass(frozen=True)
class Part:
    """What has been made of one shard's part of a piece of work.

    Args:
        samples: Rows that were looked at.
        loss: Sum over them; NaN after a bad step.
        metrics: Sums of the metrics' variables.
        bad_step: The first step whose loss was not finite, or None.
        is_finite: Whether all numbers of its gradient, weights or state are.
        counters: What the worker's optimizer has counted, after steps of its own.
        counts: What its network's layers have counted: of each variable its numbers.
    """

    samples: int
    loss: float
    metrics: NDArray[np.float64]
    bad_step: int | None = None
    is_finite: bool = True
    counters: Sequence[float] = ()
    counts: Sequence[Sequence[int]] = ()

    def header(self) -> dict[str, Any]:
        """As it travels."""
        # JSON has no number that is none; NumPy makes NaN of null again.
        loss = None if math.isnan(self.loss) else self.loss
        metrics = [None if math.isnan(value) else value for value in self.metrics.tolist()]
        return {**vars(self), "loss": loss, "metrics": metrics}

    @classmethod
    def parse(cls, header: Any) -> "Part":
        """The counterpart of `header`.

        Raises:
            Superseded: It is none.
        """
        _check("parts", isinstance(header, Mapping))
        given = _known(cls, header)
        _check("samples", _is_whole(given["samples"]) and given["samples"] >= 0)
        _check("bad_step", given.get("bad_step") is None or _is_whole(given["bad_step"]))
        _check("is_finite", isinstance(given.get("is_finite", True), bool))
        try:
            given["metrics"] = np.asarray(given["metrics"], np.float64)
            given["loss"] = float("nan") if given["loss"] is None else float(given["loss"])
            given["counters"] = tuple(float(value) for value in given.get("counters", ()))
            given["counts"] = tuple(
                tuple(int(value) for value in values) for values in given.get("counts", ())
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise Superseded(f"a result that cannot be read: {error}") from None
        _check("metrics", given["metrics"].ndim == 1)
        return cls(**given)


@dataclass(frozen=True)
class Result:
    """What one worker has made of one piece of work.

    Args:
        number: Number of the work.
        parts: One of each of its shards, in their order.
        vectors: Means of gradients, weights or state, one of each node of `tree.nodes_within` its shards; none after an
            evaluation. They travel behind the header, one after the other.
        seconds: That the worker computed for it.
        computed: Of these, seconds for the parts of its shards.
    """

    number: int | str
    parts: Sequence[Part]
    vectors: Sequence[Vector] = ()
    seconds: float = 0.0
    computed: float = 0.0

    @property
    def samples(self) -> int:
        """Rows that were looked at."""
        return sum(part.samples for part in self.parts)

    def header(self) -> dict[str, Any]:
        """As it travels, without the vectors."""
        parts = [part.header() for part in self.parts]
        return {"number": self.number, "parts": parts, "seconds": self.seconds, "computed": self.computed}

    def payload(self) -> Any:
        """The vectors as they travel."""
        if not self.vectors:
            return b""
        return self.vectors[0] if len(self.vectors) == 1 else np.concatenate(self.vectors)

    @classmethod
    def parse(
        cls, header: Mapping[str, Any], payload: memoryview, layout: Layout, num_parts: int = 1
    ) -> "Result":
        """The counterpart of `header`.

        Args:
            header: Header of a message.
            payload: Payload of the message; the vectors are views of it.
            layout: Layout of each vector.
            num_parts: Number of shards that the worker holds.

        Raises:
            Superseded: It is none.
        """
        given = _known(cls, header)
        _check("number", isinstance(given["number"], int | str))
        _check("seconds", _is_number(given.get("seconds")))
        _check("computed", _is_number(given.get("computed", 0.0)))
        _check("parts", isinstance(given["parts"], list | tuple) and len(given["parts"]) == num_parts)
        parts = tuple(map(Part.parse, given["parts"]))
        if len(payload) % max(1, layout.nbytes):
            raise Superseded(f"a result of {len(payload)} bytes, expected {layout.nbytes} for each vector")
        flat: Vector = np.frombuffer(payload, layout.dtype)
        vectors = tuple(flat.reshape(-1, layout.size)) if flat.size else ()
        seconds, computed = float(given["seconds"]), float(given.get("computed", 0.0))
        return cls(given["number"], parts, vectors, seconds, computed)


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


def _are_whole(values: object) -> bool:
    return isinstance(values, list) and all(_is_whole(value) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
