"""Formats of artefacts: the files in a folder decide, else the end of the name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.formats import FORMATS, exported_formats, format_of, resolve

MARKERS = {form.marker: form for form in FORMATS.values() if form.marker}


@pytest.mark.parametrize("name", ["v2", "best.pt", "best_ncnn_model", "best_openvino_model"])
@pytest.mark.parametrize("marker", list(MARKERS))
def test_files_of_a_folder_decide_whatever_it_is_called(marker: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / marker).touch()
    assert format_of(tmp_path / name) == MARKERS[marker]


@pytest.mark.parametrize("form", [form.suffix for form in FORMATS.values()])
def test_name_decides_where_there_are_no_files(form: str) -> None:
    for path in (f"somewhere/best{form}", f"best{form.upper()}"):
        found = format_of(path)
        assert found is not None
        assert found.suffix == form


def test_what_is_no_artefact_has_no_format(tmp_path: Path) -> None:
    assert format_of(tmp_path) is None
    assert format_of("best.pb") is None


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_function_of_the_table_exists(name: str) -> None:
    form = FORMATS[name]
    references = [form.write, form.load]
    assert all(callable(resolve(reference)) for reference in references if reference)
    assert bool(form.write) == bool(form.precisions)


def test_export_writes_five_formats() -> None:
    assert set(exported_formats()) == {"ncnn", "onnx", "openvino", "tensorrt", "torchscript"}
