"""Reading of text and YAML files, and atomic writing: temporary file, fsync, rename."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError

# Errors of zipfile for a file that is no archive, is damaged, or has features that nothing here writes.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError, struct.error)
# Errors of numpy for an .npz: arrays truncated, of objects, or declared larger than memory; or another file type.
NPZ_ERRORS = (*ZIP_ERRORS, OSError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)

# A list of numbers in indented JSON, each on a line; no text in JSON contains the end of a line.
_NUMBERS = re.compile(r'\[(\n[^\[\]{}"]*)\]')

# Most bytes of a file name on common file systems.
LONGEST_NAME = 255


def check_writable(folder: str | Path) -> None:
    """Check that a folder, which need not exist yet, can be written to, before its contents are computed.

    Raises:
        ConfigError: The folder cannot be created or written to.
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {folder}: {there} is not a writable folder; choose another folder")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Raises:
        ConfigError: The folder cannot be written to (full or read-only disk).
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> Path:
    """Return a hidden name in the same folder; a digest replaces a name that is too long to extend."""
    name, ending = os.fsencode(path.name), f".{os.getpid()}.tmp"
    has_room = len(name) + len(ending) < LONGEST_NAME
    return path.with_name(f".{path.name if has_room else hashlib.sha256(name).hexdigest()}{ending}")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, *, has_flat_lists: bool = False) -> None:
    """Write `value` atomically as indented JSON; NaN and infinity become null, which every parser accepts.

    Args:
        path: File to write.
        value: Plain data.
        has_flat_lists: Whether each list of numbers is on one line, rather than each of its numbers.
    """
    text = json.dumps(_finite(value), indent=2)
    if has_flat_lists:
        text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_yaml(path: str | Path, value: Any) -> None:
    """Write `value` atomically as YAML, keys in the given order."""
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def is_unicode(name: str) -> bool:
    """Return whether a file name is valid Unicode; on others, as from old archives, OpenCV crashes the process."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte-order mark; the mark is dropped.

    Raises:
        UnicodeDecodeError: The text is neither.
    """
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig")


def read_yaml(path: str | Path, *, what: str, loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """Read a YAML mapping.

    Args:
        path: YAML file.
        what: Kind of file that is expected ("data set", "model"), for messages.
        loader: PyYAML class that gives values their types; `BaseLoader` returns every value as text.

    Raises:
        ConfigError: The file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        value = yaml.load(decode_text(Path(path).read_bytes()), loader)
    except FileNotFoundError:
        raise ConfigError(f"{what} file {path} does not exist; check the path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{what} file {path} cannot be read as YAML: {reason}; correct or replace it") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{what} file {path} contains {type(value).__name__}; expected 'key: value' lines")
    return value


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
