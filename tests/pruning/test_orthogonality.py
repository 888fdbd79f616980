"""Overlap of filters by hand, and new ones that overlap with none while there is room."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pruning.repr.orthogonality import new_filters, overlap


def largest_cosine(first: Tensor, second: Tensor) -> float:
    """Over all pairs of rows."""
    return float((torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T).abs().max())


def drawn(shape: tuple[int, int], *, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_overlap_of_three_filters_is_that_by_hand() -> None:
    # Lengths do not count: the third lies at 45 degrees between the others, whose cosine is 0.
    found = overlap(torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
    half = 2**-0.5
    assert found.tolist() == pytest.approx([half / 3, half / 3, 2 * half / 3])


def test_opposite_filters_overlap_as_much_as_equal_ones() -> None:
    assert overlap(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).tolist() == pytest.approx([0.5, 0.5])


def test_filter_of_zeros_gets_a_number() -> None:
    assert overlap(torch.tensor([[0.0, 0.0], [0.0, 1.0]])).tolist() == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize(("surviving", "dropped", "size"), [(7, 3, 27), (20, 12, 44), (200, 56, 576)])
def test_new_filters_are_orthogonal_to_surviving_dropped_and_each_other(
    surviving: int, dropped: int, size: int
) -> None:
    stay, old = drawn((surviving, size)), drawn((dropped, size), seed=1)
    made, num_orthogonal = new_filters(stay, old, generator=np.random.default_rng(0))
    made = made.float()  # as they are stored
    assert num_orthogonal == dropped
    assert largest_cosine(made, torch.cat((stay, old))) < 1e-5
    among = torch.nn.functional.normalize(made)
    assert float((among @ among.T - torch.eye(dropped)).abs().max()) < 1e-5


def test_filters_that_nearly_repeat_each_other_leave_the_new_ones_orthogonal() -> None:
    stay = drawn((1, 40)) + 1e-4 * drawn((9, 40), seed=1)
    old = drawn((6, 40), seed=2)
    made, _ = new_filters(stay, old, generator=np.random.default_rng(0))
    assert largest_cosine(made.float(), torch.cat((stay, old))) < 1e-5


def test_equal_filters_take_the_room_of_one() -> None:
    stay, old = drawn((1, 54)).repeat(50, 1), drawn((4, 54), seed=1)
    made, num_orthogonal = new_filters(stay, old, generator=np.random.default_rng(0))
    assert num_orthogonal == 4
    assert largest_cosine(made.float(), torch.cat((stay, old))) < 1e-5


def test_beyond_the_room_filters_are_random() -> None:
    # 5 + 4 filters of 11 weights leave a space of 2 dimensions for 4.
    stay, old = drawn((5, 11)), drawn((4, 11), seed=1)
    made, num_orthogonal = new_filters(stay, old, generator=np.random.default_rng(0))
    both = torch.cat((stay, old)).double()
    assert num_orthogonal == 2
    assert largest_cosine(made[:2], both) < 1e-5
    assert min(largest_cosine(row[None], both) for row in made[2:]) > 0.1


def test_a_full_layer_gets_random_filters_only() -> None:
    made, num_orthogonal = new_filters(drawn((9, 9)), drawn((3, 9), seed=1), generator=np.random.default_rng(0))
    assert num_orthogonal == 0
    assert made.isfinite().all()
    assert made.shape == (3, 9)


def test_new_filters_have_the_mean_norm_of_the_surviving() -> None:
    stay = torch.zeros(2, 6)
    stay[0, 0], stay[1, 1] = 1.0, 5.0
    made, _ = new_filters(stay, 100 * drawn((5, 6)), generator=np.random.default_rng(0))
    assert torch.linalg.vector_norm(made, dim=1).tolist() == pytest.approx([3.0] * 5)


def test_filters_of_zeros_take_no_room() -> None:
    stay = torch.zeros(3, 4)
    stay[0, 0] = 1.0
    _, num_orthogonal = new_filters(
        stay, torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0]]), generator=np.random.default_rng(0)
    )
    assert num_orthogonal == 2


def test_the_same_seed_draws_the_same_filters() -> None:
    first, second = (new_filters(drawn((3, 9)), drawn((2, 9)), generator=np.random.default_rng(5))[0] for _ in "ab")
    assert torch.equal(first, second)
