"""TensorRT as a runtime, around a pretended engine: there is no GPU here. One line for what is not there."""

from __future__ import annotations

import ctypes
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exporting import network
from test_tensorrt import engine_of, metadata_of

from deploy.outputs.heads import ExportMetadata
from deploy.settings import RuntimeOptions
from deploy.tensorrt.engine_file import write_engine
from deploy.tensorrt.runtime import EngineSession, load_tensorrt
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return network("tiny")


@pytest.fixture
def stored(tiny: Detector, tmp_path: Path) -> Path:
    """A file with a plan that no TensorRT would take."""
    path = tmp_path / "best.engine"
    write_engine(path, engine_of(tiny))
    return path


def test_machine_without_gpu_says_what_to_do(stored: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"runs on an NVIDIA GPU, got device cpu; use --device 0 .*or export to ONNX"
    ):
        load_tensorrt(stored, device=CPU, options=RuntimeOptions())


def test_machine_without_the_package_says_what_to_do(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(ConfigError, match=r"needs the package tensorrt_rtx .*run: pip install"):
        load_tensorrt(stored, device=GPU, options=RuntimeOptions())


class PretendedEngine:
    """An engine that is its own context: head i holds i plus the mean of the images."""

    def __init__(self, metadata: ExportMetadata) -> None:
        self.metadata = metadata
        self.batches: list[tuple[int, ...]] = []
        self.addresses: dict[str, int] = {}

    def create_execution_context(self) -> PretendedEngine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert name == "images"
        self.batches.append(shape)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, _, height, width = self.batches[-1]
        stride = self.metadata.strides[int(name[-1])]
        return (batch, 24, height // stride, width // stride)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape)

    def execute_async_v3(self, stream: int) -> bool:
        mean = self.numbers("images", self.batches[-1]).mean()
        for level, name in enumerate(("head0", "head1")):
            self.numbers(name, self.get_tensor_shape(name))[:] = level + mean
        return stream == 7


def session_of(
    model: Detector, monkeypatch: pytest.MonkeyPatch, *, handle: int = 7, **settings: Any
) -> EngineSession:
    """Around a pretended engine, on the CPU."""
    stream = SimpleNamespace(cuda_stream=handle, wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    stored = engine_of(model, **settings)
    return EngineSession(PretendedEngine(stored.metadata), stored, path=Path("best.engine"), device=CPU)


def test_session_hands_torch_memory_to_the_engine(tiny: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = session_of(tiny, monkeypatch)(torch.full((1, 3, 32, 48), 0.5))
    assert [tuple(item.shape) for item in maps] == [(1, 24, 4, 6), (1, 24, 2, 3)]
    assert [item.unique().tolist() for item in maps] == [[0.5], [1.5]]


def test_dynamic_session_splits_what_is_more_than_its_largest_batch(
    tiny: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny, monkeypatch, dynamic=True)
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 32, 32)
    assert [tuple(item.shape) for item in session(images)] == [(5, 24, 4, 4), (5, 24, 2, 2)]
    assert session(images)[1][:, 0, 0, 0].tolist() == [1.5, 1.5, 3.5, 3.5, 5]


@pytest.mark.parametrize("hw", [(8, 16), (80, 64), (64, 112)])
def test_dynamic_session_refuses_a_size_it_was_not_built_for(
    hw: tuple[int, int], tiny: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny, monkeypatch, dynamic=True)
    with pytest.raises(ConfigError, match=f"images of {hw[0]}x{hw[1]} pixels, expected 16x16 to 64x96; export it"):
        session(torch.zeros(1, 3, *hw))


def test_engine_that_fails_is_one_line(tiny: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(tiny, monkeypatch, handle=0)
    with pytest.raises(CheckpointError, match="best.engine: TensorRT cannot run the engine; export it again"):
        session(torch.zeros(1, 3, 32, 48))


def pretended_package(monkeypatch: pytest.MonkeyPatch, engine: PretendedEngine | None) -> None:
    """A `tensorrt_rtx` 1.8 that makes this engine of any plan, beside a pretended GPU."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    package = SimpleNamespace(__version__="1.8", Logger=logger, Runtime=lambda logger: runtime)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", package)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")


def test_engine_of_another_gpu_or_version_is_one_line(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_package(monkeypatch, None)
    message = (
        r"built for tensorrt_rtx 1\.7 and compute capability 8\.9, and tensorrt_rtx 1\.8 does not load it on H200"
    )
    with pytest.raises(CheckpointError, match=message):
        load_tensorrt(stored, device=GPU, options=RuntimeOptions())


def test_options_that_an_engine_ignores_are_told(
    tiny: Detector, stored: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretended_package(monkeypatch, PretendedEngine(metadata_of(tiny)))
    # Its anchors would go to the GPU.
    monkeypatch.setattr(ExportMetadata, "runtime", lambda metadata, session, **_: metadata)
    load_tensorrt(stored, device=GPU, options=RuntimeOptions(half=True, threads=2))
    assert "best.engine computes in fp32, as it was exported" in caplog.text
    assert "best.engine runs on the GPU; the option is ignored" in caplog.text
