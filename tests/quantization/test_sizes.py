"""At every size of images a quantised network is right, or says for which it was made."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantised import made, noise
from tiny import ROOT, TINY_CFG
from torch import Tensor, nn

from deploy import load_runtime
from deploy.integer.export import Forms, takes_any_size, write_integer
from deploy.outputs.classifier import ClassifierSource
from models.detector import build_model
from models.spec import ModelSpec
from quantization.lowering.lower import lower
from quantization.network import QuantizedNetwork
from quantization.rounding.compensation import compensate_
from quantization.storage.binary import program_bytes, program_from_bytes, save_program
from quantization.storage.reader import run
from quantization.storage.text import load_yaml
from utils.errors import CheckpointError, DataError

OWN = (24, 24)
OTHERS = ((48, 48), (24, 48), (32, 32), (40, 28))


class Of(nn.Module):
    """Something between a convolution and a head, always with the same weights."""

    def __init__(self, body: Callable[[Tensor], Tensor], wide: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.head = nn.Conv2d(wide, 4, 1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.first(x)))


def joined(y: Tensor, coarse: Tensor) -> Tensor:
    return torch.cat((y, F.interpolate(coarse, size=y.shape[2:])), 1)


def chunks(y: Tensor, axis: int) -> Tensor:
    one, other = y.chunk(2, dim=axis)
    return one + other


def crop(y: Tensor) -> Tensor:
    border = y.shape[2] // 4
    return y[:, :, border:-border, border:-border]


def shuffled(y: Tensor) -> Tensor:
    rows, columns = y.shape[2], y.shape[3]
    return y.view(-1, 2, 4, rows, columns).transpose(1, 2).reshape(-1, 8, rows, columns)


ONE_SIZE: Mapping[str, nn.Module] = {
    "pyramid pooling": Of(lambda y: joined(y, F.adaptive_avg_pool2d(y, 4)), wide=16),
    "adaptive pooling": Of(lambda y: F.adaptive_avg_pool2d(y, 2)),
    "chunks of rows": Of(lambda y: chunks(y, 2)),
    "chunks of columns": Of(lambda y: chunks(y, 3)),
    "crop": Of(crop),
    "crop of a fixed size": Of(lambda y: y[:, :, :28, :28]),
    "crop of a size far away": Of(lambda y: y[:, :, :1000]),
    "window of the size of the map": Of(lambda y: F.avg_pool2d(y, y.shape[2:])),
    "mean over the end": Of(lambda y: F.avg_pool2d(y, 3, 3, ceil_mode=True)),
    "rows in the shape": Of(lambda y: y.flatten(2).view(-1, 8, y.shape[2], y.shape[3])),
    "divided by rows": Of(lambda y: y / y.shape[2]),
    "times a power of the area": Of(lambda y: y * (y.shape[2] * y.shape[3]) ** -0.5),
    "to a fixed size": Of(lambda y: F.interpolate(y, size=(48, 48))),
    "shuffle": Of(shuffled),
}
ANY_SIZE: Mapping[str, nn.Module] = {
    "maximum over the end": Of(lambda y: F.max_pool2d(y, 3, 2, ceil_mode=True)),
    "padding at one side": Of(lambda y: F.pad(y, (0, 1, 2, 0))),
    "border cut off": Of(lambda y: y[:, :, 1:-1, 2:]),
    "every second pixel": Of(lambda y: y[:, :, ::2, 1::2]),
    "up by a factor": Of(lambda y: F.interpolate(y, scale_factor=2)),
}
# Right at sizes that differ by a multiple.
STEPS: Mapping[str, tuple[nn.Module, int]] = {
    "up to the size of another map": (Of(lambda y: joined(y, F.max_pool2d(y, 4)), wide=16), 4),
    "whole windows": (Of(lambda y: F.avg_pool2d(y, 4, ceil_mode=True)), 4),
}


def quantised(model: nn.Module) -> QuantizedNetwork:
    # 12 bits, so that a wrong result is far from what rounding costs.
    return made(model, noise(4, 3, *OWN), weight_bits=12, activation_bits=12, input_bits=12, table_bits=4)


def assert_right(network: QuantizedNetwork, model: nn.Module, hw: tuple[int, int]) -> None:
    """Fake mode, integers and the numpy reader give what the network gives."""
    images = noise(2, 3, *hw, seed=1)
    with torch.no_grad():
        expected = model(images)
        found = {}
        for network.mode in ("fake", "integer"):
            found[network.mode] = network(images)
    (read,) = run(program_from_bytes(program_bytes(network.to_program(), layout="csr")), images.numpy())
    found["read"] = torch.from_numpy(read).float()
    for name, result in found.items():
        assert result.shape == expected.shape, name
        # Most values, since those that calibration has not seen may lie beyond its range.
        assert (result - expected).square().mean().sqrt() < 0.02 * expected.std(), name


def assert_refused(network: QuantizedNetwork, hw: tuple[int, int], words: str) -> None:
    images = noise(2, 3, *hw)
    for network.mode in ("float", "fake", "integer"):
        with pytest.raises(DataError, match=words) as caught:
            network(images)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=words):
        run(program_from_bytes(program_bytes(network.to_program(), layout="dense")), images.numpy())


@pytest.mark.parametrize("name", ONE_SIZE)
def test_what_depends_on_the_size_holds_for_one(name: str) -> None:
    model = ONE_SIZE[name]
    network = quantised(model)
    assert network.graph.size_step == 0
    assert_right(network, model, OWN)
    for hw in OTHERS:
        assert_refused(network, hw, "the network holds for 24x24 alone; resize the images, or quantise it for their")


@pytest.mark.parametrize("name", ANY_SIZE)
def test_what_does_not_depend_on_the_size_holds_for_all(name: str) -> None:
    model = ANY_SIZE[name]
    network = quantised(model)
    for hw in (OWN, *OTHERS, (25, 31)):
        assert_right(network, model, hw)


@pytest.mark.parametrize("name", STEPS)
def test_what_holds_for_whole_multiples_is_refused_between_them(name: str) -> None:
    model, step = STEPS[name]
    network = quantised(model)
    assert network.graph.size_step == step
    for hw in (OWN, *OTHERS):
        assert_right(network, model, hw)
    assert_refused(network, (26, 24), "holds for 24x24 and sizes that differ from it by multiples of 4;")


def test_mean_over_whole_maps_is_right_or_refused_by_name() -> None:
    gate = Of(lambda y: y * torch.sigmoid(F.adaptive_avg_pool2d(y, 1)))
    network = quantised(gate)
    assert_right(network, gate, OWN)
    images = noise(2, 3, 40, 28, seed=1)
    network.mode = "fake"
    with torch.no_grad():
        assert (network(images) - gate(images)).abs().max() < 0.02
    network.mode = "integer"
    with pytest.raises(DataError, match="'adaptive_avg_pool2d' averages over a whole map"):
        network(images)


def test_network_of_one_size_by_its_last_layer_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 22 * 22, 5))
    assert_refused(quantised(model), (48, 48), "holds for 24x24 alone")


def test_node_that_depends_on_the_size_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        quantised(ONE_SIZE["crop"])
    assert "getitem.2 depends on the size of the images: the network holds for 24x24 alone" in caplog.text


def test_numbers_that_are_no_parameters_are_compared_as_well() -> None:
    """Without a copy that has shapes alone, the network itself runs at other sizes."""
    scale = torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1)
    plain, pooled = Of(lambda y: y * scale), Of(lambda y: F.adaptive_avg_pool2d(y * scale, 2))
    assert lower(plain.eval(), image_shape=(3, *OWN)).size_step == 1
    assert lower(pooled.eval(), image_shape=(3, *OWN)).size_step == 0


def test_calibration_and_rounding_refuse_images_of_another_size() -> None:
    network = quantised(ONE_SIZE["crop"])
    for act in (network.calibrate, lambda images: compensate_(network, images)):
        with pytest.raises(DataError, match="holds for 24x24 alone"):
            act([noise(1, 3, 48, 48)])


def test_detector_takes_every_multiple_of_its_stride() -> None:
    detector = build_model(ModelSpec.from_yaml(TINY_CFG)).eval()
    images = noise(2, 3, 64, 64)
    network = made(detector, images)
    program = network.to_program()
    assert takes_any_size(program, 16)
    for hw in ((32, 128), (96, 64), (16, 16)):
        network.mode = "float"
        with torch.no_grad():
            assert [head.shape[2:] for head in network(noise(1, 3, *hw))] == [
                (hw[0] // stride, hw[1] // stride) for stride in detector.strides
            ]
    # What a network that holds for one size is told by costs a detector's file nothing.
    assert (
        len(program_bytes(program, layout="dense"))
        <= len(program_bytes(replace(program, size_step=0), layout="dense")) + 4
    )


def classifier_program(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A classifier with pooling to a fixed size, in a file."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2).flatten(1))

    model = Pooled().eval()
    save_program(quantised(model).to_program(), tmp_path / "network.npz")
    return tmp_path / "network.npz", model


def test_command_of_the_reader_refuses_another_size_in_one_line(tmp_path: Path) -> None:
    path, model = classifier_program(tmp_path)
    for hw, code in ((OWN, 0), ((48, 48), 2)):
        images = noise(3, 3, *hw)
        np.savez(tmp_path / "images.npz", images=images.numpy())
        command = [sys.executable, "-m", "quantization.storage", str(path), str(tmp_path / "images.npz")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == code
        if code:
            assert done.stderr.count("\n") == 1
            assert "images of shape (3, 48, 48): the network holds for 24x24 alone" in done.stderr
        else:
            with torch.no_grad():
                assert json.loads(done.stdout)["classes"] == model(images).argmax(1).tolist()


def test_artefact_of_one_size_refuses_others_when_it_is_loaded(tmp_path: Path) -> None:
    path, model = classifier_program(tmp_path)
    source = ClassifierSource(
        model=model, image_chw=(3, *OWN), names=tuple("abcde"), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    folder = tmp_path / "pooled_integer_model"
    program = program_from_bytes(path.read_bytes())
    write_integer(program, folder, source=source, forms=Forms())
    runtime = load_runtime(folder, device=torch.device("cpu"))
    assert runtime.input_hw == OWN
    assert runtime(noise(2, 3, *OWN)).shape == (2, 5)
    with pytest.raises((DataError, CheckpointError, ValueError), match="24"):
        runtime(noise(2, 3, 48, 48))
    assert not takes_any_size(program, 24)


def test_file_of_version_1_holds_for_its_own_size_where_it_may_contain_that() -> None:
    program = load_yaml(ROOT / "tests" / "quantization" / "version1.yaml")
    images = (np.arange(64).reshape(1, 1, 8, 8) / 64).astype(np.float32)
    # As the code that wrote the file read it.
    assert run(program, images)[0].sum() == pytest.approx(-0.1514658212661743, rel=1e-9)
    with pytest.raises(DataError, match="the network holds for 8x8 alone"):
        run(program, np.zeros((1, 1, 16, 16), np.float32))
