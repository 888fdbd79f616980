"""Two runtimes that share no code, torch and numpy, give the same integers, before and after a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_programs import random_images, random_program

from models.classifiers import LeNet5
from quantization.execution.executor import Executor
from quantization.network import quantize
from quantization.program.program import IntegerProgram
from quantization.ranges.config import QuantConfig
from quantization.storage.binary import load_program, program_bytes, program_from_bytes, save_program
from quantization.storage.reader import run, run_integers
from utils.errors import CheckpointError


def assert_same_integers(program: IntegerProgram, *, seed: int) -> None:
    images = random_images(program, seed=seed)
    stored = program_from_bytes(program_bytes(program, layout="csr"))
    for one, other in zip(Executor(program)(torch.from_numpy(images)), run_integers(stored, images), strict=True):
        np.testing.assert_array_equal(one.numpy(), other)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_random_programs_give_the_same_integers(seed: int) -> None:
    assert_same_integers(random_program(seed), seed=seed)


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(),
        QuantConfig(weight_bits=4, activation_bits=4, per_channel=False),
        QuantConfig(weight_bits=3, activation_bits=6, weight_symmetric=False, activation_symmetric=True),
        QuantConfig(weight_bits=12, activation_bits=16, weight_symmetric=False),
    ],
)
def test_lenet5_gives_the_same_numbers_with_torch_and_from_its_file(tmp_path: Path, config: QuantConfig) -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 1, 28, 28)
    network = quantize(LeNet5().eval(), [images], config=config, image_shape=(1, 28, 28))
    network.mode = "integer"
    path = tmp_path / "lenet5.npz"
    save_program(network.to_program(), path, layout="csc")
    (found,) = run(load_program(path, fingerprint=network.fingerprint), images.numpy())
    expected = network(images)
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_array_equal(found.astype(np.float32), expected.numpy())
    with pytest.raises(CheckpointError, match="another network"):
        load_program(path, fingerprint="0" * 64)
