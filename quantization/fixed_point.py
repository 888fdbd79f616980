"""Real factors as an integer multiplication and a shift, so that nothing overflows 64 bits.

Jacob et al., arXiv 1712.05877, section 2.2: M = M0 * 2^-k with M0 of 31 bits; here with fewer where sums are large.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantization.affine import round_half_up

MOST_SHIFT = 62
LARGEST_MULTIPLIER = 2**31 - 1
# What the sum of a product and the half that rounds it must stay below.
_LIMIT = 2**62


def fixed_point(real: float, *, bound: int) -> tuple[int, int]:
    """M and k such that real is about M * 2^-k, as exactly as 31 bits and `bound` allow.

    Args:
        real: Not negative.
        bound: Largest magnitude of what is multiplied.

    Returns:
        M in [0, 2^31) and k in [1, 62], with bound * M + 2^(k-1) below 2^62 + 2^61.
    """
    multipliers, shift = common_fixed_point([real], bounds=[bound])
    return multipliers[0], shift


def common_fixed_point(reals: Sequence[float], *, bounds: Sequence[int]) -> tuple[list[int], int]:
    """The same for several factors with one shift, whose products are summed.

    Args:
        reals: Not negative.
        bounds: Largest magnitude of what each is multiplied with.
    """
    for shift in range(MOST_SHIFT, 1, -1):
        # Multiplication by a power of two is exact.
        multipliers = [round_half_up(real * 2**shift) for real in reals]
        total = sum(bound * multiplier for bound, multiplier in zip(bounds, multipliers, strict=True))
        if max(multipliers) <= LARGEST_MULTIPLIER and total < _LIMIT:
            return multipliers, shift
    # Factors this large clamp every number but zero, whatever they are.
    return [min(round_half_up(real * 2), LARGEST_MULTIPLIER) for real in reals], 1
