"""Whole numbers as few bytes: by hand, exact, and no larger in memory than the file allows."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantization.storage.budget import Budget
from quantization.storage.coding import Stream, decode, encode
from utils.errors import CheckpointError

LEAST, MOST = -(2**63), 2**63 - 1


def plenty() -> Budget:
    return Budget(10**6)


def coded(values: list[int]) -> tuple[Stream, bytes]:
    """As stored, deflate undone."""
    stream, data = encode(np.array(values, np.int64))
    return stream, zlib.decompress(data, -15) if data else b""


@given(st.lists(st.one_of(st.integers(LEAST, MOST), st.integers(-9, 9)), max_size=40))
@example([LEAST, MOST])
@example([MOST, LEAST, 0])
@example([])
def test_any_numbers_come_back(values: list[int]) -> None:
    stream, data = encode(np.array(values, np.int64))
    found = decode(Stream.from_list(stream.as_list()), data, budget=plenty())
    assert found.dtype == np.int64
    assert found.tolist() == values


@pytest.mark.parametrize("bits", range(1, 17))
def test_random_numbers_of_each_width_come_back_in_as_many_bits(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, 400) - 2 ** (bits - 1)
    stream, data = encode(values)
    assert decode(stream, data, budget=plenty()).tolist() == values.tolist()
    assert stream.bits == (bits if bits <= 8 else 16)
    assert len(data) <= 400 * stream.bits / 8 + 8


def test_two_bit_numbers_are_packed_from_the_lowest_bits() -> None:
    # Less their smallest: 3 0 2 1, so 0b01_10_00_11.
    stream, raw = coded([1, -2, 0, -1])
    assert (stream.count, stream.low, stream.bits, stream.start) == (4, -2, 2, None)
    assert raw == bytes([0b01100011])


def test_numbers_of_two_bytes_stand_as_all_low_bytes_and_then_all_high_ones() -> None:
    stream, raw = coded([0, 0xFF34, 0, 0xFE12])
    assert stream.bits == 16
    assert raw == bytes([0x00, 0x34, 0x00, 0x12, 0x00, 0xFF, 0x00, 0xFE])


def test_numbers_all_alike_take_no_bytes() -> None:
    stream, data = encode(np.full(1000, -7))
    assert (stream.low, stream.bits, data) == (-7, 0, b"")


def test_a_smooth_table_is_stored_as_differences() -> None:
    table = np.rint(127 * np.tanh(np.linspace(-3, 3, 1024))).astype(np.int64)
    stream, data = encode(table)
    assert stream.start == int(table[0])
    assert len(data) < 110


@pytest.mark.parametrize(
    "fields",
    [
        [1, 2, 3],
        "streams",
        None,
        [4, 0, 9, None, 4],
        [4, 0, -1, None, 4],
        [-1, 0, 8, None, 0],
        [2**70, 0, 0, None, 0],
        [4, 2**64, 8, None, 4],
        [4, 0, 8, 2**64, 4],
        [0, 0, 8, 1, 0],
        [4, 0, 8, None, -4],
        [4, 0.5, 8, None, 4],
    ],
)
def test_fields_out_of_range_are_refused(fields: Any) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        Stream.from_list(fields)


@pytest.mark.parametrize("change", [{"count": 3}, {"count": 5}, {"bits": 16}, {"bits": 0}])
def test_numbers_of_another_count_or_width_than_their_bytes_are_refused(change: dict[str, int]) -> None:
    stream, data = encode(np.array([1, 200, 3, 90]))
    with pytest.raises(CheckpointError, match="damaged"):
        decode(replace(stream, **change), data, budget=plenty())


def test_bytes_that_are_no_deflate_are_refused() -> None:
    stream, data = encode(np.array([1, 200, 3, 90]))
    with pytest.raises(CheckpointError, match="damaged"):
        decode(stream, b"\xff" * len(data), budget=plenty())


def test_bytes_that_unpack_to_very_many_are_not_unpacked() -> None:
    bomb = zlib.compressobj(wbits=-15)
    data = bomb.compress(bytes(10**7)) + bomb.flush()
    with pytest.raises(CheckpointError, match="do not fill the 4 bytes"):
        decode(Stream(count=4, low=0, bits=8, start=None, num_bytes=len(data)), data, budget=plenty())


def test_more_numbers_than_the_file_may_hold_are_refused_before_they_are_made() -> None:
    with pytest.raises(CheckpointError, match="1000000000000 numbers are declared, which a file of 500 bytes"):
        decode(Stream(count=10**12, low=0, bits=0, start=None, num_bytes=0), b"", budget=Budget(500))


def test_a_budget_is_used_up() -> None:
    budget = Budget(0)
    budget.take(2**24)
    with pytest.raises(CheckpointError, match="1 numbers"):
        budget.take(1)
