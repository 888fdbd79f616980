"""What pnnx leaves out is an error though it ends with code 0, and a `.param` is checked before it is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.ncnn.param import input_blobs, output_blobs, read_param
from deploy.ncnn.pnnx import convert_to_ncnn
from utils.errors import CheckpointError, ConfigError

PARAM = """7767517
4 5
Input     in0    0 1 in0
Split     split  1 2 in0 a b
Swish     silu   1 1 a c
BinaryOp  add    2 1 c b out0 0=0
"""


class EverySecondPixel(nn.Module):
    """The slice of Focus, which pnnx drops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(x[..., ::2, ::2]),)


def written(folder: Path, text: str) -> Path:
    path = folder / "model.ncnn.param"
    path.write_text(text)
    return path


def test_param_gives_layers_with_their_blobs(tmp_path: Path) -> None:
    layers = read_param(written(tmp_path, PARAM))
    assert [layer.kind for layer in layers] == ["Input", "Split", "Swish", "BinaryOp"]
    assert (layers[3].inputs, layers[3].outputs) == (("c", "b"), ("out0",))
    assert (input_blobs(layers), output_blobs(layers)) == (("in0",), ("out0",))


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("7767517", "hello", r"is not an ncnn param file"),
        ("Swish     silu   1 1 a c\n", "", r"declares 4/5 layers and blobs but has 3/4"),
        ("4 5\n", "4\n", r"declares 4 layers and blobs"),
        (" 2 1 c b out0", " 2 1 x b out0", r"layer add reads blob x, which no earlier layer produces"),
        (" 1 1 a c", " 1 1 a", r"layer silu names too few blobs"),
        ("Swish     silu   1 1 a c", "Swish silu", r"line 'Swish silu' is not a layer"),
    ],
)
def test_edited_param_is_one_line(old: str, new: str, finding: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=finding) as caught:
        read_param(written(tmp_path, PARAM.replace(old, new)))
    assert "\n" not in str(caught.value)


def test_missing_param_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ncnn\.param cannot be read"):
        read_param(tmp_path / "model.ncnn.param")


def test_operator_that_pnnx_leaves_out_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("pnnx", reason="the pnnx package is not installed")
    with pytest.raises(ConfigError, match=r"slice with step 2 is not supported"):
        convert_to_ncnn(EverySecondPixel().eval(), tmp_path, example=torch.zeros(1, 3, 8, 8))


def child(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Python in the place of pnnx."""
    run = subprocess.run
    monkeypatch.setattr("deploy.ncnn.pnnx.optional_package", lambda *_, **__: type("pnnx", (), {"EXEC_PATH": "pnnx"}))

    def instead(command: list[str], **settings: Any) -> Any:
        return run([sys.executable, "-c", program, *command[1:]], **settings)

    monkeypatch.setattr("deploy.ncnn.pnnx.subprocess.run", instead)


@pytest.mark.parametrize(
    ("program", "finding"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"pnnx exited with code -11 \(no output\)"),
        ("print('out of memory'); raise SystemExit(3)", r"pnnx exited with code 3 \(out of memory\)"),
        ("print('inline module = models.unknown.ErrorNet')", r"pnnx wrote no ncnn files"),
        ("print('pnnx attribute 5-rank tensor is not supported yet!')", r"\(pnnx attribute 5-rank"),
        ("print('ignore F.fold fold_1 param=2')", r"could not convert the network \(ignore F\.fold"),
        (
            "open('model.ncnn.bin', 'w').close(); "
            "open('model.ncnn.param', 'w').write('7767517\\n1 1\\naten::fold x 0 1 out0\\n')",
            r"ncnn has no operator aten::fold \(layer x\)",
        ),
    ],
)
def test_child_that_fails_is_one_line(
    program: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(monkeypatch, program)
    with pytest.raises(ConfigError, match=finding) as caught:
        convert_to_ncnn(nn.Conv2d(3, 1, 1).eval(), tmp_path, example=torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_network_of_known_operators_becomes_two_files(tmp_path: Path) -> None:
    pytest.importorskip("pnnx", reason="the pnnx package is not installed")
    param = convert_to_ncnn(nn.Conv2d(3, 2, 1).eval(), tmp_path, example=torch.zeros(1, 3, 8, 8), half=True)
    assert [layer.kind for layer in read_param(param)] == ["Input", "Convolution"]
    assert param.with_suffix(".bin").stat().st_size > 0
