"""Command lines built from dataclasses: flags, `--config` files, presets, one-line errors, exit codes."""

from __future__ import annotations

import io
import logging
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import tyro

from utils.config.shipped import find_shipped, shipped_names
from utils.config.values import checked_values, required_fields
from utils.errors import ConfigError, UserError
from utils.storage.files import read_yaml

Config = TypeVar("Config")

# Value of a bare `--resume`: the newest run.
RESUME_LATEST = "latest"

USAGE_EXIT = 2
INTERRUPT_EXIT = 130
# Folder of the settings that `--preset` names, for configurations with a field `preset`.
RECIPES = "data/recipes"
# Most characters of a file name in a message.
_MAX_NAME = 200

# Values of the options that are files.
_EXPECTED = {
    "--config": "a YAML file, such as a run folder's opt.yaml",
    "--preset": f"the name of a recipe in {RECIPES}, or a YAML file",
}
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
    line, 130 interrupted; a `KeyboardInterrupt` with a message says how to go on.

    Args:
        main: Function to call, or `module:function`, which is imported only after the command line is parsed, so that
            `--help` and a wrong flag do not load torch.
        config_type: Dataclass of the settings; one flag per field, `--img-size` for `img_size`.
        bare: Values of flags that may be given without one, by flag; several are separated by spaces.
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
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"interrupted; {interrupt}\n" if interrupt.args else "interrupted\n")
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
    """Merge flags over the `--config` YAML over the `--preset` over defaults.

    Raises:
        ConfigError: A YAML cannot be read, has an unknown key or a value of the wrong type; a flag is unknown,
            missing, or has a value of the wrong type.
    """
    joined = _join_repeated(_fill_bare(argv, bare), config_type)
    arguments, config_file = _split_option(joined, "--config")
    unchecked = _without_checks(config_type)
    values = _values_in(unchecked, config_file) if config_file else {}
    if any(field.name == "preset" for field in fields(config_type)):  # type: ignore[arg-type]
        arguments, given = _split_option(arguments, "--preset")
        if preset := given or values.get("preset"):
            values = {**_recipe(unchecked, preset), **values, "preset": preset}
    default = _with_defaults(unchecked, values) if values else None
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


def command_line(script: str, config: Any, *, without: Collection[str] = ()) -> str:
    """Return the command that runs a script with these settings; those that have their defaults are left out.

    Args:
        script: Name of the script, such as "train.py".
        config: Dataclass instance with its settings.
        without: Names of settings to leave out.
    """
    words = ["python", script]
    for field in fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default or field.name in without:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def _values_in(config_type: type[Any], path: str | Path) -> dict[str, Any]:
    """Read settings by field name from a YAML."""
    return checked_values(config_type, read_yaml(path, what="configuration"), where=str(path))


def _recipe(config_type: type[Any], preset: str) -> dict[str, Any]:
    """Read the settings of a preset: of a shipped recipe by its name, or of a YAML of the user's."""
    path = find_shipped(preset, RECIPES)
    if not path.is_file():
        raise ConfigError(
            f"--preset {preset}: no such recipe; choose from {', '.join(shipped_names(RECIPES))}, or give a YAML file"
        )
    values = _values_in(config_type, path)
    if "preset" in values:
        raise ConfigError(f"{path}: a recipe cannot name another one as its 'preset'; copy its settings")
    return values


def _with_defaults(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Build settings from values that were read; omitted fields without a default remain for flags to set."""
    defaults: dict[str, Any] = dict.fromkeys(required_fields(config_type), tyro.MISSING)
    for field in fields(config_type):  # type: ignore[arg-type]
        if field.default is not MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not MISSING:
            defaults[field.name] = field.default_factory()
    # Built without __init__, because settings are validated together after the flags are applied.
    unchecked = object.__new__(config_type)
    for name, value in {**defaults, **values}.items():
        object.__setattr__(unchecked, name, value)
    return unchecked


def _split_option(argv: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Separate `--config FILE` or `--config=FILE`, say, from the other arguments."""
    rest: list[str] = []
    value: str | None = None
    items = iter(argv)
    for item in items:
        if item == option:
            value = next(items, None)
            if value is None:
                raise ConfigError(f"{option} has no value; give {_EXPECTED[option]}")
        elif item.startswith(f"{option}="):
            value = item.removeprefix(f"{option}=")
        else:
            rest.append(item)
    return rest, value


def _fill_bare(argv: Sequence[str], bare: Mapping[str, str]) -> list[str]:
    filled: list[str] = []
    for i, item in enumerate(argv):
        filled.append(item)
        is_last = i + 1 == len(argv)
        if item in bare and (is_last or argv[i + 1].startswith("--")):
            filled += bare[item].split()
    return filled


def _join_repeated(argv: Sequence[str], config_type: type[Any]) -> list[str]:
    """Join the values of flags that add up (`adds_up` in their metadata); of others the last one counts."""
    adding = (field.name for field in fields(config_type) if field.metadata.get("adds_up"))
    several = {f"--{name.replace('_', '-')}" for name in adding}
    chunks: list[list[str]] = [[]]  # each flag with its values
    by_flag: dict[str, list[str]] = {}
    current = chunks[0]
    for item in argv:
        flag, equals, value = item.partition("=")
        name = flag.replace("_", "-")
        if name not in several:
            if item.startswith("--"):
                chunks.append([])
                current = chunks[-1]
            current.append(item)
            continue
        if name not in by_flag:
            by_flag[name] = [flag]
            chunks.append(by_flag[name])
        current = by_flag[name]
        current += [value] * bool(equals)
    return [word for chunk in chunks for word in chunk]
