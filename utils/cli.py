"""Command lines built from dataclasses: flags, `--config` files, one-line errors, exit codes."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import tyro

from utils.config_values import checked_values, required_fields
from utils.errors import ConfigError, UserError
from utils.files import read_yaml

Config = TypeVar("Config")

USAGE_EXIT = 2
INTERRUPT_EXIT = 130
# Characters of a file name in a message.
_MAX_NAME = 200

_CONFIG_HELP = "--config FILE takes settings from a YAML, such as a run folder's opt.yaml; flags override them."


def run_script(
    main: Callable[[Config], object],
    config_type: type[Config],
    *,
    bare: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line into `config_type`, call `main`, and end the process.

    Exit codes: 0 done, 1 a check of the script failed (`main` returned False), 2 a user's mistake, shown in one
    line, 130 interrupted.

    Args:
        main: The script's entry point, also callable from Python.
        config_type: Its dataclass; one flag per field, `img_size` being `--img-size`.
        bare: Flags that may stand without a value, and the value they then take.
        argv: The arguments; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text of this terminal
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        config = parse(config_type, sys.argv[1:] if argv is None else argv, bare=bare or {})
        outcome = main(config)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(USAGE_EXIT)
    except OSError as error:
        # Without a number it comes from a library's own logic, not from the system: ours to mend.
        if error.errno is None:
            raise
        sys.stderr.write(f"error: {_system_message(error)}\n")
        sys.exit(USAGE_EXIT)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPT_EXIT)
    if outcome is False:
        sys.exit(1)


def _system_message(error: OSError) -> str:
    """What the system refused, such as room on a full disk to TensorBoard's writer."""
    place = f"{str(error.filename)[:_MAX_NAME]}: " if error.filename else ""
    return f"{place}{error.strerror}; check the path, its rights and the free space"


def parse(config_type: type[Config], argv: Sequence[str], *, bare: Mapping[str, str]) -> Config:
    """Flags over `--config` YAML over defaults.

    Raises:
        ConfigError: The YAML cannot be read, or has a key that is no field or a value of the wrong kind; a flag is
            unknown, missing, or has such a value.
    """
    arguments, config_file = _split_config(_fill_bare(argv, bare))
    unchecked = _without_checks(config_type)
    default = _read_config(unchecked, config_file) if config_file else None
    try:
        with redirect_stderr(io.StringIO()) as told:
            parsed = tyro.cli(
                unchecked,
                args=_without_redundant(arguments, default or unchecked),
                default=default if default is not None else tyro.MISSING_NONPROP,
                config=(tyro.conf.FlagCreatePairsOff,),
                description=f"{config_type.__doc__}\n\n{_CONFIG_HELP}",
            )
    except SystemExit as error:
        if not error.code:  # --help
            raise
        raise ConfigError(_in_one_line(told.getvalue())) from None
    return config_type(**{item.name: getattr(parsed, item.name) for item in fields(config_type)})  # type: ignore[arg-type]


def _in_one_line(box: str) -> str:
    """What tyro says of a wrong flag, without the frame, the details below the first paragraph, and the help."""
    lines = [line.strip("╭╮╰╯│ ").strip() for line in box.splitlines()[1:]]
    end = next((i for i, line in enumerate(lines) if not line.strip("─")), len(lines))
    return f"{' '.join(lines[:end]).rstrip('.')}; --help lists all flags"


def _without_checks(config_type: type[Config]) -> type[Config]:
    """The dataclass without its own checks: what tyro builds, so that what they find is told in one line of ours."""
    # tyro reads the help of a field from the source of the class, which module and name lead to.
    values = {name: getattr(config_type, name) for name in ("__doc__", "__module__", "__qualname__")}
    values["__post_init__"] = lambda self: None
    return type(config_type.__name__, (config_type,), values)


def _without_redundant(argv: Sequence[str], defaults: Any) -> list[str]:
    """Arguments without switches that say what holds anyway, such as --st; tyro knows only those that change it."""
    redundant = set()
    for item in fields(defaults):
        value = getattr(defaults, item.name, None)
        if isinstance(value, bool):
            flag = item.name.replace("_", "-")
            redundant.add(f"--{flag}" if value else f"--no-{flag}")
    return [argument for argument in argv if argument.replace("_", "-") not in redundant]


def config_from_values(config_type: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    """Build `config_type` from plain values, whose names are its fields (or the flags' spelling).

    Raises:
        ConfigError: A name is no field, a value is of the wrong kind, or a field without a default is missing.
    """
    checked = checked_values(config_type, values, where=where)
    missing = [name for name in required_fields(config_type) if name not in checked]
    if missing:
        raise ConfigError(f"{where} has no {missing[0]!r}; add it")
    return config_type(**checked)


def _read_config(config_type: type[Config], path: str) -> Config:
    """The defaults that a YAML gives; fields it leaves out and that have no default stay open for flags."""
    checked = checked_values(config_type, read_yaml(path, what="configuration"), where=path)
    defaults: dict[str, Any] = dict.fromkeys(required_fields(config_type), tyro.MISSING)
    for field in fields(config_type):  # type: ignore[arg-type]
        if field.default is not MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not MISSING:
            defaults[field.name] = field.default_factory()
    # Made without __init__: settings are validated together, once the flags have had their say.
    unchecked = object.__new__(config_type)
    for name, value in {**defaults, **checked}.items():
        object.__setattr__(unchecked, name, value)
    return unchecked


def _split_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Take `--config FILE` or `--config=FILE` out of the arguments."""
    rest: list[str] = []
    config_file: str | None = None
    items = iter(argv)
    for item in items:
        if item == "--config":
            config_file = next(items, None)
            if config_file is None:
                raise ConfigError("--config has no value; give a YAML file, such as a run folder's opt.yaml")
        elif item.startswith("--config="):
            config_file = item.removeprefix("--config=")
        else:
            rest.append(item)
    return rest, config_file


def _fill_bare(argv: Sequence[str], bare: Mapping[str, str]) -> list[str]:
    filled: list[str] = []
    for i, item in enumerate(argv):
        filled.append(item)
        is_last = i + 1 == len(argv)
        if item in bare and (is_last or argv[i + 1].startswith("--")):
            filled.append(bare[item])
    return filled
