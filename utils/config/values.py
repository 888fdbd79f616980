"""Checks of plain values from YAML files and checkpoints against the fields of a configuration dataclass."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from utils.errors import ConfigError

logger = logging.getLogger(__name__)


def checked_values(config_type: type[Any], values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return values by field name, in the types of the fields; names may be spelled like flags (`img-size`).

    Raises:
        ConfigError: A name is not a field (the message lists the known ones), or a value is of another type.
    """
    known = [field.name for field in fields(config_type)]
    named = {str(name).replace("-", "_"): value for name, value in values.items()}
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    hints = get_type_hints(config_type)
    checked = {}
    for name, value in named.items():
        try:
            checked[name] = fitted(value, hints[name])
        except ValueError as error:
            raise ConfigError(f"{where}: {name} is {value!r}, expected {error}") from None
    return checked


def required_fields(config_type: type[Any]) -> list[str]:
    """Return the names of the fields without a default."""
    return [
        field.name for field in fields(config_type) if field.default is MISSING and field.default_factory is MISSING
    ]


def fitted(value: Any, hint: Any) -> Any:
    """Convert a value to the type that `hint` names.

    A list becomes a tuple, a single value a tuple of one, and a number becomes text where text is expected
    (`device: 0`).

    Raises:
        ValueError: The value does not fit; the message names what is expected.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _fitted_to_one_of(value, get_args(hint))
    if origin is Literal:
        if value not in get_args(hint):
            raise ValueError(f"one of {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(fitted(item, get_args(hint)[0]) for item in items)
    return _fitted_to_class(value, hint)


def _fitted_to_one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    expected = []
    for hint in hints:
        try:
            return fitted(value, hint)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _fitted_to_class(value: Any, kind: type[Any]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float:
        try:
            return float(value if is_number or isinstance(value, str) else "")  # YAML reads 1e-3 as text
        except ValueError:
            raise ValueError("a number") from None
    if kind is str and is_number:
        return str(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (kind is int and not is_number):
        names = {bool: "true or false", int: "an integer", str: "text", Path: "a path", NoneType: "nothing"}
        raise ValueError(names.get(kind, kind.__name__))
    return value


def check_least(config: object, **least: float) -> None:
    """Refuse settings that are too small or NaN.

    Args:
        config: Object with the settings as attributes; a setting of None was not given and passes.
        least: Smallest allowed value by name of the setting.

    Raises:
        ConfigError: A setting is too small; the message names the flag of the first.
    """
    for name, smallest in least.items():
        if (value := getattr(config, name)) is not None and not value >= smallest:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {smallest:g}")


def height_width(sides: Sequence[int]) -> tuple[int, int]:
    """Return height and width in pixels of `--img-size`, which is one side or both.

    Raises:
        ConfigError: There are not one or two sides.
    """
    if len(sides) not in (1, 2):
        raise ConfigError(f"--img-size: got {len(sides)} numbers; give one side, or height and width")
    return sides[0], sides[-1]


def check_shares(config: object, *names: str) -> None:
    """Refuse settings that are not a share from 0 to 1.

    Args:
        config: Object with the settings as attributes.
        names: Names of the settings.

    Raises:
        ConfigError: A setting is outside 0 to 1; the message names the flag of the first.
    """
    for name in names:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected 0 to 1")


def given_flags(config: Any, names: Iterable[str]) -> str:
    """Return the flags of the settings that differ from their defaults, for messages; empty if none does.

    Args:
        config: Dataclass instance with the settings.
        names: Names of the settings; those that `config` does not have are left out.
    """
    defaults = {item.name: item.default for item in fields(config)}
    given = [name for name in names if name in defaults and getattr(config, name) != defaults[name]]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def warn_of_ignored(config: Any, reasons: Mapping[str, Iterable[str]]) -> None:
    """Warn of given settings that have no effect.

    Args:
        config: Dataclass instance with the settings.
        reasons: Names of settings without effect, by reason.
    """
    for reason, names in reasons.items():
        if flags := given_flags(config, names):
            logger.warning("%s; without effect: %s", reason, flags)


def round_up(img_size: int, stride: int) -> int:
    """Round an image size up to a multiple of the stride, with a warning if that changes it."""
    rounded = math.ceil(img_size / stride) * stride
    if rounded != img_size:
        logger.warning("image size %d is not a multiple of the stride %d; using %d", img_size, stride, rounded)
    return rounded
