"""Devices that exist and that do not, seeds, and memory that runs out."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import torch

from utils import device as module
from utils.device import amp_dtype, memory_advice, seed_everything, select_device
from utils.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """As many GPUs as the parameter says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("text", ["0", "1", "cuda", "cuda:0", "0,1", "-1"])
def test_gpu_that_is_not_there_is_refused_with_a_remedy(gpus: None, text: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {text}: this machine has 0 usable GPUs; use --device cpu"):
        select_device(text)


@pytest.mark.parametrize(
    ("gpus", "text", "expected"),
    [
        (0, "", "cpu"),
        (0, "CPU", "cpu"),
        (2, "", "cuda:0"),
        (2, "cpu", "cpu"),
        (2, "1", "cuda:1"),
        (2, "cuda:1", "cuda:1"),
        (2, "cuda", "cuda:0"),
    ],
    indirect=["gpus"],
)
def test_device_is_the_one_named(gpus: None, text: str, expected: str) -> None:
    assert str(select_device(text)) == expected


@pytest.mark.parametrize("gpus", [4], indirect=True)
def test_each_process_takes_the_gpu_of_its_local_rank(gpus: None) -> None:
    assert [select_device("2,3", local_rank=rank).index for rank in (0, 1)] == [2, 3]
    with pytest.raises(ConfigError, match="has 4 usable GPUs"):
        select_device("2,9", local_rank=1)


@pytest.mark.parametrize("text", ["gpu", "0,", "0;1"])
def test_text_that_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected cpu, or GPU indices"):
        select_device(text)


def test_precision_follows_what_the_hardware_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16, on_cpu, on_gpu in ((True, torch.bfloat16, torch.bfloat16), (False, None, torch.float16)):
        monkeypatch.setattr(module, "_cpu_computes_bf16", lambda has=has_bf16: has)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert (amp_dtype(CPU), amp_dtype(GPU)) == (on_cpu, on_gpu)


def test_precision_can_be_chosen() -> None:
    assert amp_dtype(GPU, "off") is None
    assert amp_dtype(CPU, "bf16") == torch.bfloat16
    assert amp_dtype(GPU, "fp16") == torch.float16
    with pytest.raises(ConfigError, match="needs a GPU; use --amp bf16 or --amp off"):
        amp_dtype(CPU, "fp16")


def test_same_seed_gives_the_same_numbers_everywhere() -> None:
    draws = []
    for _ in range(2):
        seed_everything(7)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002 - what is tested
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        cv2.error("OpenCV(4) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory.\nmore lines"),
    ],
)
def test_failed_allocation_says_what_to_lower_in_one_line(error: Exception) -> None:
    with pytest.raises(ConfigError) as caught, memory_advice("lower --batch-size (now 64)"):
        raise error
    assert str(caught.value).startswith("out of memory (")
    assert str(caught.value).endswith("; lower --batch-size (now 64)")
    assert "\n" not in str(caught.value)


def test_memory_error_without_words_is_named_too() -> None:
    with pytest.raises(ConfigError, match="out of memory; lower"), memory_advice("lower --img-size"):
        raise MemoryError


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_advice("lower --batch-size"):
        raise RuntimeError("shapes differ")
