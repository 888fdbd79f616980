"""A tiny detector and its export to ncnn, which several files of tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from exporting import network
from int8_exports import exported

from models.detector import Detector


@pytest.fixture(scope="module")
def model() -> Detector:
    return network("tiny")


@pytest.fixture(scope="module")
def plain(model: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector in fp32, not to be changed."""
    return exported(model, tmp_path_factory.mktemp("fp32") / "tiny_ncnn_model")
