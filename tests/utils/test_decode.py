"""Decoding of raw heads by hand."""

from __future__ import annotations

import pytest
import torch

from utils.boxes.decode import decode_heads


def test_logits_of_zero_are_the_middle_of_the_cell_and_the_anchor() -> None:
    head = torch.zeros(1, 2, 2, 3, 6)
    boxes = decode_heads([head], torch.tensor([[[10.0, 20.0], [30.0, 40.0]]]), [8])
    assert boxes.shape == (1, 12, 6)
    # Anchor by anchor, row by row: the fifth place is row 1, column 1 of the first anchor.
    assert boxes[0, 4].tolist() == [12, 12, 10, 20, 0.5, 0.5]
    assert boxes[0, 11].tolist() == [20, 12, 30, 40, 0.5, 0.5]


def test_large_logits_reach_one_and_a_half_cells_and_four_anchors() -> None:
    head = torch.full((1, 1, 1, 1, 6), 50.0)
    box = decode_heads([head], torch.tensor([[[10.0, 20.0]]]), [16])[0, 0]
    assert box.tolist() == pytest.approx([24, 24, 40, 80, 1, 1])


def test_levels_follow_one_another_with_their_own_strides() -> None:
    heads = [torch.zeros(2, 1, 2, 2, 6), torch.zeros(2, 1, 1, 1, 6)]
    boxes = decode_heads(heads, torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), [8, 16])
    assert boxes.shape == (2, 5, 6)
    assert boxes[1, 0, :4].tolist() == [4, 4, 1, 2]
    assert boxes[1, 4, :4].tolist() == [8, 8, 3, 4]


def test_sixteen_bit_heads_are_decoded_in_float32() -> None:
    boxes = decode_heads([torch.zeros(1, 1, 1, 1, 6).half()], torch.ones(1, 1, 2), [8])
    assert boxes.dtype == torch.float32
