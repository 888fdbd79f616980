"""Formats of artefacts: the files in a folder decide, else the end of the name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.classifier.runtime import LOADERS
from deploy.formats import format_of
from deploy.registry import RUNTIMES

MARKERS = {
    "model.ncnn.param": "_ncnn_model",
    "model.xml": "_openvino_model",
    "network.npz": "_integer_model",
}


@pytest.mark.parametrize("name", ["v2", "best.pt", "best_ncnn_model", "best_openvino_model"])
@pytest.mark.parametrize("marker", list(MARKERS))
def test_files_of_a_folder_decide_whatever_it_is_called(marker: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / marker).touch()
    assert format_of(tmp_path / name, RUNTIMES) == MARKERS[marker]


@pytest.mark.parametrize("form", list(RUNTIMES))
def test_name_decides_where_there_are_no_files(form: str) -> None:
    assert format_of(f"somewhere/best{form}", RUNTIMES) == format_of(f"best{form.upper()}", RUNTIMES) == form


def test_what_is_no_artefact_has_no_format(tmp_path: Path) -> None:
    assert format_of(tmp_path, RUNTIMES) is None
    assert format_of("best.pt", LOADERS) is None
    # No loader of classifiers reads OpenVINO.
    (tmp_path / "model.xml").touch()
    assert format_of(tmp_path, LOADERS) is None
