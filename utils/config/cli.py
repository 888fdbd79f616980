"""Command lines built from dataclasses: flags, `--config` files, one-line errors, exit codes."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, TypeVar

import tyro

from utils.config.values import checked_values, required_fields
from utils.errors import ConfigError, UserError
from utils.storage.files import read_yaml

Config = TypeVar("Config")

# Value of a bare `--resume`: the newest run.
RESUME_LATEST = "latest"

USAGE_EXIT = 2
INTERRUPT_EXIT = 130
# Most characters of a file name in a message.
_MAX_NAME = 200

_CONFIG_HELP = "--config FILE reads settings from a YAML, such as a run folder's opt.yaml; flags override them."


def spelled(*names: str) -> Any:
    """Return an annotation that gives a flag further spellings."""
    return tyro.conf.arg(aliases=names)


def run_script(
    main: Callable[[Config], object] | str,
    config_type: type[Config],
    *,
    bare: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line into `config_type`, call `main`, and end the process.

    Exit codes: 0 done, 1 a check of the script failed (`main` returned False), 2 a user's mistake, reported in one
    line, 130 interrupted.

    Args:
        main: Function to call, or `module:function`, which is imported only after the command line is parsed, so that
            `--help` and a wrong flag do not load torch.
        config_type: Dataclass of the settings; one flag per field, `--img-size` for `img_size`.
        bare: Values of flags that may be given without one, by flag.
        argv: Arguments; None for those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may not fit the terminal's encoding
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        config = parse(config_type, sys.argv[1:] if argv is None else argv, bare=bare or {})
        outcome = _imported(main)(config) if isinstance(main, str) else main(config)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(USAGE_EXIT)
    except OSError as error:
        # Without errno the error is from a library, not from the system: a bug, which needs its traceback.
        if error.errno is None:
            raise
        sys.stderr.write(f"error: {_system_message(error)}\n")
        sys.exit(USAGE_EXIT)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPT_EXIT)
    if outcome is False:
        sys.exit(1)


def _imported(name: str) -> Callable[[Any], object]:
    """Import the function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Callable[[Any], object] = getattr(import_module(module), function)
    return found


def _system_message(error: OSError) -> str:
    """Return the message for an error of the system, such as a full disk when TensorBoard writes."""
    place = f"{str(error.filename)[:_MAX_NAME]}: " if error.filename else ""
    return f"{place}{error.strerror}; check the path, its permissions and the free space"


def parse(config_type: type[Config], argv: Sequence[str], *, bare: Mapping[str, str]) -> Config:
    """Merge flags over the `--config` YAML over defaults.

    Raises:
        ConfigError: The YAML cannot be read, has an unknown key or a value of the wrong type; a flag is unknown,
            missing, or has a value of the wrong type.
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
    """Extract tyro's message on a wrong flag, without the frame, details below the first paragraph, and help."""
    lines = [line.strip("╭╮╰╯│ ").strip() for line in box.splitlines()[1:]]
    end = next((i for i, line in enumerate(lines) if not line.strip("─")), len(lines))
    return f"{' '.join(lines[:end]).rstrip('.')}; --help lists all flags"


def _without_checks(config_type: type[Config]) -> type[Config]:
    """Return the dataclass without its own checks, which run after tyro, so that their errors are ours."""
    # tyro finds the source of the class, and in it the help of each field, by module and name.
    values = {name: getattr(config_type, name) for name in ("__doc__", "__module__", "__qualname__")}
    values["__post_init__"] = lambda self: None
    return type(config_type.__name__, (config_type,), values)


def _without_redundant(argv: Sequence[str], defaults: Any) -> list[str]:
    """Remove switches that repeat the default, such as --st; tyro accepts only those that change it."""
    redundant = set()
    for item in fields(defaults):
        value = getattr(defaults, item.name, None)
        if isinstance(value, bool):
            flag = item.name.replace("_", "-")
            redundant.add(f"--{flag}" if value else f"--no-{flag}")
    return [argument for argument in argv if argument.replace("_", "-") not in redundant]


def config_from_values(config_type: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    """Build `config_type` from plain values by field name, which may be spelled like the flag.

    Raises:
        ConfigError: A name is not a field, a value is of the wrong type, or a field without a default is missing.
    """
    checked = checked_values(config_type, values, where=where)
    missing = [name for name in required_fields(config_type) if name not in checked]
    if missing:
        raise ConfigError(f"{where} has no {missing[0]!r}; add it")
    return config_type(**checked)


def _read_config(config_type: type[Config], path: str) -> Config:
    """Read defaults from a YAML; fields that it omits and that have no default remain for flags to set."""
    checked = checked_values(config_type, read_yaml(path, what="configuration"), where=path)
    defaults: dict[str, Any] = dict.fromkeys(required_fields(config_type), tyro.MISSING)
    for field in fields(config_type):  # type: ignore[arg-type]
        if field.default is not MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not MISSING:
            defaults[field.name] = field.default_factory()
    # Built without __init__, because settings are validated together after the flags are applied.
    unchecked = object.__new__(config_type)
    for name, value in {**defaults, **checked}.items():
        object.__setattr__(unchecked, name, value)
    return unchecked


def _split_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Separate `--config FILE` or `--config=FILE` from the other arguments."""
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
