"""Plain values of YAML files and checkpoints, checked against the fields of a configuration dataclass."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from utils.errors import ConfigError

logger = logging.getLogger(__name__)


def checked_values(config_type: type[Any], values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Values by field name, in the types of the fields; names may have the flags' spelling (`img-size`).

    Raises:
        ConfigError: A name is no field (the known ones are listed), or a value is of another kind.
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
    """Names of the fields without a default."""
    return [
        field.name for field in fields(config_type) if field.default is MISSING and field.default_factory is MISSING
    ]


def fitted(value: Any, hint: Any) -> Any:
    """The value as the type that `hint` names.

    A list becomes a tuple, a single value a tuple of one, and a number text where text is wanted (`device: 0`).

    Raises:
        ValueError: It does not fit; the message says what would.
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
    """Refuse settings that are too small, or no number.

    Args:
        config: Has them as attributes; None is a setting that was not given.
        least: The smallest allowed value by name of the setting.

    Raises:
        ConfigError: The first that is too small, by its flag.
    """
    for name, smallest in least.items():
        if (value := getattr(config, name)) is not None and not value >= smallest:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {smallest:g}")


def check_shares(config: object, *names: str) -> None:
    """Refuse settings that are no share of something, 0 to 1.

    Args:
        config: Has them as attributes.
        names: Of the settings.

    Raises:
        ConfigError: The first that is none, by its flag.
    """
    for name in names:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected 0 to 1")


def given_flags(config: Any, names: Iterable[str]) -> str:
    """The flags of those settings that are not at their defaults, for messages; empty where all are.

    Args:
        config: A dataclass.
        names: Of its settings.
    """
    defaults = {item.name: item.default for item in fields(config)}
    given = [name for name in names if getattr(config, name) != defaults[name]]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def warn_of_ignored(config: Any, reasons: Mapping[str, Iterable[str]]) -> None:
    """Say which settings change nothing beside the others.

    Args:
        config: A dataclass.
        reasons: Why, and the settings that this holds for.
    """
    for reason, names in reasons.items():
        if flags := given_flags(config, names):
            logger.warning("%s; without effect: %s", reason, flags)
