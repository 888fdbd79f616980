"""Where quantize.py writes is checked before anything long."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import quantize as quantize_run
from commands.quantize import run_quantization
from commands.quantize_config import QuantizeConfig
from deploy.integer.runtime import NETWORK_NAME
from tasks.task import Task
from utils.errors import ConfigError


class _Reached(Exception):
    """The network was about to be read."""


@pytest.fixture(autouse=True)
def stopped_at_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(task: Task, config: QuantizeConfig) -> None:
        raise _Reached

    monkeypatch.setattr(quantize_run._Subject, "of", opened)


def config(folder: Path) -> QuantizeConfig:
    return QuantizeConfig(weights="best.pt", data="mnist", output=str(folder), project=str(folder / "runs"))


def test_folder_of_something_else_is_refused_before_the_network_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "best_w8a8_integer_model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=f"exists and contains no {NETWORK_NAME}; move it away"):
        run_quantization(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_output_below_a_file_is_refused_before_the_network_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a writable folder; choose another folder"):
        run_quantization(config(tmp_path / "file" / "deeper"))


def test_earlier_artefact_and_new_folders_are_fine(tmp_path: Path) -> None:
    folder = tmp_path / "best_w8a8_integer_model"
    folder.mkdir()
    (folder / NETWORK_NAME).write_bytes(b"")
    for output in (tmp_path, tmp_path / "new" / "deeper"):
        with pytest.raises(_Reached):
            run_quantization(config(output))
    assert not (tmp_path / "new").exists()
