"""Rounding of weights that makes good for its own errors, in parts of the images."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from quantised import made, noise, settled
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quantization.network import QuantizedNetwork
from quantization.program.program import Affine
from quantization.ranges.affine import fake_quantise
from quantization.rounding import compensation
from quantization.rounding.compensation import Moments, compensate_
from quantization.rounding.held_values import HeldReals, HeldValues
from utils.errors import DataError


class Branches(nn.Module):
    """Shortcuts, so that results are read long after they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.SiLU())
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.SiLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=2))
        self.down = nn.Conv2d(8, 6, 3, 2)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat((x, x + self.inner(x)), 1)
        return self.last(torch.relu(self.down(x)).mean((2, 3)))


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still there, at the worst moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in torch.utils._pytree.tree_leaves(result):
            if isinstance(item, Tensor):
                self._count(item.untyped_storage())
        self.most = max(self.most, self.now)
        return result

    def _count(self, storage: Any) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._seen:
            return
        self._seen.add(address)
        self.now += size
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def quantised(images: Tensor, **settings: object) -> QuantizedNetwork:
    torch.manual_seed(0)
    return made(settled(Branches(), noise(4, 3, 12, 12)), images, **settings)


@pytest.mark.parametrize("bits", [4, 8])
def test_parts_of_the_images_give_the_weights_of_all_at_once(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensation, "_MOST_ROWS", 300)  # of 7 * 144 in the first layer
    images = noise(7, 3, 12, 12)
    whole, parts = (quantised(images, weight_bits=bits, activation_bits=bits).double() for _ in range(2))
    images = images.double()
    compensate_(whole, [images])
    monkeypatch.setattr(compensation, "_MOST_PIXELS", 1)
    compensate_(parts, [images[:5], images[5:]])
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), name


def test_rows_are_the_same_however_the_images_are_cut() -> None:
    rows = torch.arange(23.0)[:, None]
    expected = rows[::4]
    for sizes in ([23], [5, 1, 1, 9, 7], [1] * 23):
        assert torch.equal(torch.cat(list(compensation._every(4, rows.split(sizes)))), expected)


def test_compensated_weights_are_nearer_to_the_network() -> None:
    images = noise(16, 3, 12, 12)
    network = quantised(images, weight_bits=3)
    network.mode = "float"
    expected = network(images)
    network.mode = "fake"
    before = (network(images) - expected).square().mean()
    compensate_(network, [images])
    assert (network(images) - expected).square().mean() < 0.5 * before


def test_memory_grows_by_a_fraction_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensation, "_MOST_PIXELS", 1)
    peaks = {}
    for count in (8, 24):
        images = noise(count, 3, 12, 12)
        network = quantised(images)
        gc.collect()
        with LiveBytes() as live:
            compensate_(network, list(images.split(1)))
        peaks[count] = live.most
    per_image = (peaks[24] - peaks[8]) / 16
    assert per_image <= 3.5 * images[0].nbytes
    assert peaks[8] > images[0].nbytes


def test_weights_of_few_bits_make_good_for_activations_of_few_bits() -> None:
    images, others = noise(16, 3, 12, 12), noise(16, 3, 12, 12, seed=1)
    errors = []
    for is_compensated in (False, True):
        network = quantised(images, weight_bits=16, activation_bits=3)
        network.mode = "float"
        expected = network(others)
        network.mode = "fake"
        if is_compensated:  # there is next to nothing to make good of the weights' own rounding
            compensate_(network, [images])
        errors.append(float((network(others) - expected).square().mean().detach()))
    assert errors[1] < 0.5 * errors[0]


def test_weights_stand_in_by_least_squares() -> None:
    rows, weight = noise(200, 6).double(), noise(4, 6, seed=1).double()
    rounded = rows + 0.3 * noise(200, 6, seed=2).double()
    moments = Moments.of([(rows[:50], rounded[:50]), (rows[50:], rounded[50:])], weight)
    damping = (moments.rounded - rounded.t() @ rounded).diagonal().mean().sqrt() * torch.eye(6).double()
    # The damping is as if each input had been seen once more, alone and unrounded.
    inputs, results = torch.cat((rounded, damping)), torch.cat((rows, damping)) @ weight.t()
    expected = torch.linalg.lstsq(inputs, results).solution.t()
    assert torch.allclose(moments.standing_in(weight), expected, atol=1e-10)


def test_zeros_stay_zeros() -> None:
    images = noise(8, 3, 12, 12)
    network = quantised(images, weight_bits=4, activation_bits=4)
    weight, _ = network.weights("down")
    weight.data[:, ::2] = 0
    compensate_(network, [images])
    assert (weight[:, ::2] == 0).all()
    assert (weight[:, 1::2] != 0).any()


def test_without_images_is_an_error() -> None:
    with pytest.raises(DataError, match="without images"):
        compensate_(quantised(noise(2, 3, 12, 12)), [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "affine",
    [
        Affine(scale=0.013, zero_point=7, low=0, high=255),
        Affine(scale=0.013, zero_point=0, low=-127, high=127),
        Affine(scale=0.0013, zero_point=1200, low=1000, high=4095),
        Affine(scale=1e-4, zero_point=65535, low=0, high=65535),
        Affine(scale=1e-4, zero_point=0, low=-32767, high=32767),
    ],
)
def test_held_values_come_back_exactly(affine: Affine, dtype: torch.dtype) -> None:
    held = HeldValues(dtype, {"layer": affine}.get)
    images = [fake_quantise(8 * noise(2, 5, seed=seed).to(dtype) - 4, affine) for seed in range(3)]
    for image in images:
        held.add("layer", image)
    assert all(torch.equal(one, other) for one, other in zip(held.parts("layer"), images, strict=True))
    held.keep_only({"other"})
    with pytest.raises(KeyError):
        held.part("layer", 0)


@pytest.mark.parametrize("size", [1e-20, 1e-8, 1.0, 1e6, 1e30])
def test_held_reals_come_back_to_a_thousandth_whatever_their_size(size: float) -> None:
    held = HeldReals(torch.float64)
    images = [size * torch.tensor([0.1, -1e3, 1e4]).double(), size * torch.tensor([3.0, 0.0, 1e-5]).double()]
    for image in images:
        held.add("layer", image)
    held.add("other", torch.zeros(3))
    for found, expected in zip(held.parts("layer"), images, strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=0)
    held.keep_only({"other"})
    assert torch.equal(held.part("other", 0), torch.zeros(3).double())
    with pytest.raises(KeyError):
        held.part("layer", 0)
