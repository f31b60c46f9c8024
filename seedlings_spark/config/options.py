"""An option: its declaration as a dataclass field, and the checks of its value."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, cast

from seedlings_spark.choices import AUTO
from seedlings_spark.config.suggestions import did_you_mean
from seedlings_spark.errors import OptionError

_REQUIRED = object()
# Where a value comes from, if not from a file.
COMMAND_LINE = "the command line"
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class About(TypedDict, total=False):
    """What is known of an option besides its default and its text.

    Args:
        unit: Unit of a number.
        reason: Why the default is what it is.
        choices: The only values it can have.
        switch: Those that it has as a flag without a value, and as `--no-` flag: once it was true or false.
        least: Lower limit, itself allowed.
        above: Lower limit, itself not allowed.
        most: Upper limit, itself allowed.
        least_in: Name of the option that takes N where this whole number is given as a range N-M.
        most_in: Name of the option whose value is M where it is given as `choices.AUTO`, which is 1-M.
        group: Heading in `--help` of this option and of those behind it.
    """

    unit: str
    reason: str
    choices: Sequence[str]
    switch: tuple[str, str]
    least: float
    above: float
    most: float
    least_in: str
    most_in: str
    group: str


def option(default: Any, text: str, **about: Unpack[About]) -> Any:
    """A field that is an option.

    Args:
        default: Its value if nobody says otherwise.
        text: What it is, for `--help`.
        about: What else is known of it.
    """
    metadata = {
        "text": text,
        **dict.fromkeys(("unit", "reason", "least_in", "most_in", "group"), ""),
        **dict.fromkeys(("switch", "least", "above", "most")),
        **about,
        "choices": tuple(about.get("choices", ())),
        "required": default is _REQUIRED,
    }
    return dataclasses.field(default="" if default is _REQUIRED else default, metadata=metadata)


def required(text: str) -> Any:
    """A field that is an option without a default."""
    return option(_REQUIRED, text, reason="there is none that could be guessed")


@dataclass(frozen=True)
class Options:
    """Base of a job's options: checks that nothing is missing, and the limits that its fields state."""

    def __post_init__(self) -> None:
        fields = dataclasses.fields(self)
        missing = [field for field in fields if field.metadata["required"] and not getattr(self, field.name)]
        if missing:
            raise OptionError(
                f"no {', '.join(flag_of(field.name) for field in missing)}",
                "; ".join(f"{flag_of(field.name)}: {field.metadata['text']}" for field in missing),
                "Add what is missing, or give it as a key of a file for --config",
            )
        for field in fields:
            if field.metadata["most_in"] and getattr(self, field.name) == AUTO:
                self._take_most(field)
            _check(field, getattr(self, field.name), COMMAND_LINE)

    def _take_most(self, field: "dataclasses.Field[Any]") -> None:
        """Put the range that it stands for in the place of `AUTO`."""
        least, most = field.metadata["least_in"], field.metadata["most_in"]
        if not getattr(self, most):
            given = f"{flag_of(field.name)} {AUTO}"
            raise OptionError(
                f"{given} without {flag_of(most)}",
                f"{flag_of(most)}, which says how many there may be, and which the result depends on",
                f"Give it, as in {given} {flag_of(most)} 8",
            )
        object.__setattr__(self, least, getattr(self, least) or 1)
        object.__setattr__(self, field.name, getattr(self, most))


def flag_of(name: str) -> str:
    """The command-line flag of an option."""
    return "--" + name.replace("_", "-")


def ports_of(text: str) -> range | None:
    """Candidate ports of a server: "0" for any, "N", or "N-M"; None where it is none of these."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    return range(first, last + 1) if first <= last <= 65535 else None


def range_of(limits: Mapping[str, Any]) -> str:
    """The limits of a number in words; empty without any."""
    unit = f", in {limits['unit']}" if limits["unit"] else ""
    least, above, most = limits["least"], limits["above"], limits["most"]
    if least is not None and most is not None:
        return f"from {least} to {most}{unit}"
    lower = f"at least {least}" if least is not None else f"above {above}" if above is not None else ""
    upper = f"at most {most}" if most is not None else ""
    both = " and ".join(part for part in (lower, upper) if part)
    return both + unit if both else ""


def checked(options: Any, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Known names with values of the right type and range; the errors name the source."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    checked = {}
    for name, value in _without_ranges(fields, values, source).items():
        if name not in fields:
            raise OptionError(
                f"unknown option {name!r} in {source}",
                f"one of {', '.join(fields)}",
                did_you_mean(name, fields) or "Remove it",
            )
        if value == AUTO and fields[name].metadata["most_in"]:
            checked[name] = value
            continue
        checked[name] = _converted(fields[name], value, source)
        _check(fields[name], checked[name], source)
    return checked


def _without_ranges(
    fields: Mapping[str, "dataclasses.Field[Any]"], values: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The values, with two numbers in place of a range."""
    found = dict(values)
    for name, value in values.items():
        least = fields[name].metadata["least_in"] if name in fields else ""
        if least and isinstance(value, str) and (match := re.fullmatch(r"(\d{1,6})-(\d{1,6})", value)):
            if least in values:
                both = [_said(fields[each], values[each], source) for each in (name, least)]
                raise OptionError(
                    " with ".join(both),
                    "the least number once, in the range or by itself",
                    f"Remove {flag_of(least) if source == COMMAND_LINE else least}, or give no range",
                )
            found |= {least: int(match[1]), name: int(match[2])}
    return found


def _converted(field: "dataclasses.Field[Any]", value: object, source: str) -> Any:
    kinds = {"tuple[str, ...]": str, "tuple[float, ...]": float}
    item = kinds.get(str(field.type))
    if item is None:
        return _scalar(field, cast(type, field.type), value, source)
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(_scalar(field, item, one, source) for one in values)


def _scalar(field: "dataclasses.Field[Any]", kind: type, value: object, source: str) -> Any:
    accepted = (int, float) if kind is float else kind
    switch = field.metadata["switch"]
    if switch and isinstance(value, bool):
        return switch[not value]
    try:
        if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
            return kind(value)
        # A flag is text; a file has types, and a number in quotes is a mistake there.
        if isinstance(value, str) and kind in (int, float) and source == COMMAND_LINE:
            return kind(value)
    except (ValueError, OverflowError):
        pass
    limits = range_of(field.metadata)
    expected = _KINDS[kind] + (f", {limits}" if limits else "")
    if field.metadata["most_in"]:
        expected += f", a range such as 2-8, or {AUTO}"
    raise OptionError(_said(field, value, source), expected, _correct(field, source))


def _check(field: "dataclasses.Field[Any]", value: object, source: str) -> None:
    """Refuse what is outside of an option's choices or limits."""
    limits = field.metadata
    choices, least, above, most = (limits[name] for name in ("choices", "least", "above", "most"))
    for item in value if isinstance(value, tuple) else (value,):
        if choices and item not in choices:
            raise OptionError(
                _said(field, item, source),
                f"one of {', '.join(choices)}",
                did_you_mean(str(item), choices) or _correct(field, source),
            )
        if not isinstance(item, int | float) or isinstance(item, bool):
            continue
        inside = (least is None or item >= least) and (most is None or item <= most)
        finite = isinstance(item, int) or math.isfinite(item)
        if not finite or not inside or (above is not None and not item > above):
            raise OptionError(
                _said(field, item, source), range_of(limits) or "a finite number", _correct(field, source)
            )


def _said(field: "dataclasses.Field[Any]", value: object, source: str) -> str:
    """A value as it was given, and where."""
    if source == COMMAND_LINE:
        return f"{flag_of(field.name)} {value}"
    shown = toml_value(value) if isinstance(value, bool | int | float | str | list | tuple) else repr(value)
    return f"{field.name} = {shown} in {source}"


def _correct(field: "dataclasses.Field[Any]", source: str) -> str:
    return f"Correct {flag_of(field.name) if source == COMMAND_LINE else field.name + ' there'}"


def toml_value(value: object) -> str:
    """A value as TOML spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
