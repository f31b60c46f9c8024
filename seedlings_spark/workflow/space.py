"""What a search chooses from: options of `train` in a TOML file, fixed ones and ones with a range.

[train]                # alike in all trials; what is not named is as train has it
epochs = 20
num_workers = 1

[space]
network = ["plain", "residual"]                       # one of these
learning_rate = { low = 1e-4, high = 1e-2, log = true }
batch_size = { low = 16, high = 64, step = 16 }
"""

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedlings_spark import choices, config
from seedlings_spark.config import TrainOptions
from seedlings_spark.errors import OptionError

# What `tune` itself is told, or decides.
_NOT_HERE = ("corpus", "store", "name", "run", "promote")
# What is done beside the training of a network: no trial is the better for it.
_AFTERWARDS = ("calibrate", "quantize", "folds", "show_augmentation")
_RANGE = {"low", "high", "log", "step"}
_FINE_TUNE, _CURRICULUM = "fine_tune", "curriculum"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both allowed.

    Args:
        low: The lowest.
        high: The highest.
        log: Whether each factor is as likely as another one of the same size.
        step: Distance of the values from each other, from `low` on; 0 for any.
    """

    low: float
    high: float
    log: bool = False
    step: float = 0.0


@dataclass(frozen=True)
class Space:
    """Options of the trials of a search.

    Args:
        fixed: Option -> its value in all trials.
        dimensions: Option -> its range, or the values that it can have.
    """

    fixed: Mapping[str, Any]
    dimensions: Mapping[str, Range | tuple[Any, ...]]

    def distributions(self) -> dict[str, Any]:
        """Option -> Optuna's distribution; of values the place in their list."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        made: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, tuple):
                made[name] = CategoricalDistribution(range(len(dimension)))
            elif isinstance(dimension.low, int):
                made[name] = IntDistribution(
                    dimension.low, int(dimension.high), dimension.log, int(dimension.step) or 1
                )
            else:
                made[name] = FloatDistribution(
                    dimension.low, dimension.high, dimension.log, dimension.step or None
                )
        return made

    def largest(self, *names: str) -> dict[str, Any]:
        """Of these options, those that are searched, each with the largest number that it can have."""
        found = {name: self.dimensions[name] for name in names if name in self.dimensions}
        return {
            name: max(dimension) if isinstance(dimension, tuple) else dimension.high
            for name, dimension in found.items()
        }

    def first(self) -> dict[str, Any]:
        """All options that are searched, each with the first value that it can have."""
        return {
            name: dimension[0] if isinstance(dimension, tuple) else dimension.low
            for name, dimension in self.dimensions.items()
        }

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a trial from what Optuna has chosen."""
        chosen = {}
        for name, dimension in self.dimensions.items():
            chosen[name] = dimension[params[name]] if isinstance(dimension, tuple) else params[name]
        return chosen


def read(file: str) -> Space:
    """Read a search space.

    Args:
        file: A TOML file of this machine, or of the driver's working directory.

    Raises:
        OptionError: It is no such file, or holds an unknown option, a value that the option cannot have, or a range
            without a value in it; says in which line.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"--space {file} ({getattr(error, 'strerror', None) or error})",
            "a TOML file with the tables [train] and [space]",
            "Check the path and the file; docs/search.md has an example",
        ) from None
    unknown = sorted(set(tables) - {"train", "space"})
    fixed, dimensions = tables.get("train", {}), tables.get("space", {})
    if unknown or not isinstance(fixed, dict) or not isinstance(dimensions, dict):
        raise OptionError(
            f"{', '.join(unknown) or 'no table'} in {file}",
            "the tables [train], of fixed options, and [space], of those that are searched",
            "Correct the file",
        )
    found = {name: _dimension(name, value, _place(file, text, name)) for name, value in dimensions.items()}
    if choices.STAGED in (fixed.get(_FINE_TUNE), *dimensions.get(_FINE_TUNE, ())):
        raise OptionError(
            f"{_FINE_TUNE} = {choices.STAGED} in {_place(file, text, _FINE_TUNE)}",
            "all, head or a number: trials that run side by side do not train a head first",
            "Search over layer_decay with fine_tune = all, and train the best with staged",
        )
    if choices.BY_LOSS in (fixed.get(_CURRICULUM), *dimensions.get(_CURRICULUM, ())):
        raise OptionError(
            f"{_CURRICULUM} = {choices.BY_LOSS} in {_place(file, text, _CURRICULUM)}",
            "none or length: trials that run side by side have no first pass",
            "Search without it, and give --curriculum to train",
        )
    for name in fixed:
        _refuse_others(name, _place(file, text, name))
        if name in found:
            raise OptionError(
                f"{name} in both tables of {file}",
                "an option that is either fixed or searched",
                "Remove one of them",
            )
    return Space(config.checked(TrainOptions, fixed, f"[train] of {file}"), found)


def _place(file: str, text: str, name: str) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[=.]", line):
            return f"line {number} of {file}"
    return file


def _refuse_others(name: str, place: str) -> None:
    if name in _NOT_HERE:
        raise OptionError(
            f"{name} in {place}", "an option of what is trained, not of where", f"Give {name} to tune itself"
        )
    if name == "ema":
        raise OptionError(
            f"ema in {place}",
            "options that the epochs of a trial tell the worth of: the average is made after the last one",
            "Search without it, and give --ema to train",
        )


def _dimension(name: str, value: Any, place: str) -> Range | tuple[Any, ...]:
    """A range or a list of values, each of them one that the option can have."""
    _refuse_others(name, place)
    if name in _AFTERWARDS:
        raise OptionError(
            f"{name} in {place}", "options that change the training", f"Put {name} into [train], for --final"
        )
    if isinstance(value, list):
        chosen = tuple(_value(name, each, place) for each in value)
        if not chosen or len(set(chosen)) != len(chosen):
            raise OptionError(f"{name} = {value} in {place}", "different values, at least one", "Correct it")
        return chosen
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= _RANGE:
        raise OptionError(
            f"{name} = {value} in {place}",
            "a list of values, or a range such as { low = 1e-4, high = 1e-2, log = true }",
            "Correct it, or put it into [train]",
        )
    ends = [_value(name, value[end], place) for end in ("low", "high")]
    field = next(each for each in dataclasses.fields(TrainOptions) if each.name == name)
    if field.type not in (int, float):
        raise OptionError(f"a range for {name} in {place}", "a range for a number", "Give a list of values")
    low, high, log, step = *ends, value.get("log", False), value.get("step", 0)
    is_step = isinstance(step, int | float) and not isinstance(step, bool) and 0 <= step < math.inf
    if not low < high or not isinstance(log, bool) or not is_step or (log and (step or low <= 0)):
        raise OptionError(
            f"{name} = {value} in {place}",
            "low below high, log = true for positive numbers without a step, a step above 0",
            "Correct the range",
        )
    if isinstance(low, int) and step != int(step):
        raise OptionError(f"step = {step} for {name} in {place}", "a whole number", "Correct the step")
    return Range(low, high, log, step)


def _value(name: str, value: Any, place: str) -> Any:
    """A value that the option can have."""
    found = config.checked(TrainOptions, {name: value}, place)
    if value == choices.AUTO and name == "num_workers":
        raise OptionError(
            f"{name} = {value!r} in {place}",
            "a number: trials that run side by side share the slots, and their results do not depend on it",
            "Put it into [train], or give whole numbers",
        )
    if len(found) > 1:
        others = ", ".join(sorted(set(found) - {name}))
        raise OptionError(
            f"{name} = {value!r} in {place}, which is {others}, too",
            "one option in a line",
            f"Give whole numbers, and {others} in a line of its own",
        )
    return found[name]
