"""Run folders get names of their own and say what cannot be made."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from utils.errors import ConfigError
from utils.storage.files import read_yaml
from utils.storage.run_folder import RunFolder, plain


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...] = (320, 640)
    path: Path = Path("a/b")


def test_second_and_third_run_get_numbers(tmp_path: Path) -> None:
    names = [RunFolder.create(project=tmp_path / "runs", name="exp").path.name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]


def test_existing_folder_is_used_when_asked(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp/kept.txt").write_text("kept")
    assert RunFolder.create(project=tmp_path, name="exp", exist_ok=True).path == tmp_path / "exp"
    assert (tmp_path / "exp/kept.txt").read_text() == "kept"


@pytest.mark.parametrize("exist_ok", [False, True])
def test_file_in_the_way_of_the_project_is_named(tmp_path: Path, exist_ok: bool) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"cannot create the run folder .*runs/exp.*; choose another --project"):
        RunFolder.create(project=tmp_path / "runs", name="exp", exist_ok=exist_ok)


def test_file_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "exp").write_text("mine")
    assert RunFolder.create(project=tmp_path, name="exp").path.name == "exp2"
    assert (tmp_path / "exp").read_text() == "mine"
    with pytest.raises(ConfigError, match="File exists"):
        RunFolder.create(project=tmp_path, name="exp", exist_ok=True)


def test_read_only_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(ConfigError, match="Read-only file system; choose another --project"):
        RunFolder.create(project=tmp_path, name="exp")


def test_settings_and_result_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.create(project=tmp_path, name="exp")
    folder.write_config(Settings())
    folder.write_result({"AP": 0.5})
    assert read_yaml(folder.path / "opt.yaml", what="settings") == {"sizes": [320, 640], "path": "a/b"}
    result = json.loads((folder.path / "result.json").read_text())
    assert result["AP"] == 0.5
    environment = result["environment"]
    assert {"command", "python", "torch", "threads", "machine", "packages"} == set(environment)
    assert environment["machine"]
    assert environment["packages"]["numpy"] == np.__version__


def test_plain_values_know_no_dataclasses_tuples_or_paths() -> None:
    assert plain({"a": (1, Path("x"))}) == {"a": [1, "x"]}
    settings = {"sizes": [320, 640], "path": "a/b"}
    assert plain(Settings()) == settings
    assert plain({"two": (Settings(), 1)}) == {"two": [settings, 1]}
