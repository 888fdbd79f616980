"""How many optimiser steps a run has decides what its settings leave open.

v5.0's recipe was made for COCO (118,000 images, 300 epochs: half a million steps of 64 images), and its fine-tuning
for Pascal VOC (16,551 images, 50 epochs: 13,000 steps). From `ShortRuns.long_steps` on, a run has it unchanged. A few
hundred images in 60 epochs make some 200 steps, too few to get far. What then helps (numbers in docs/training.md):

- Steps of fewer images. The loss is a sum over images, so a quarter of the images makes four steps of a quarter of
  the length, and the gradient is measured four times as often.
- Last epochs without mosaics. Batch norms and boxes settle on whole images, which the network will see in use.
- A learning rate that ends low. v5.0's ends at a fifth of its start, and weights averaged over 10,000 steps hide the
  noise of it; a short run cannot average for so long, so its last steps must be small.

All of them follow one number, the share of `long_steps` that the run has, so that a few images more never change a
run much. Below `least_share` nothing changes further. A data set has no other say, and neither have weights to start
from: a run from scratch is as short of steps.

Warm-up and averaging are limited to shares of the run, since v5.0's numbers of steps may be more than there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# v5.0 averages weights over about 10,000 steps: the last 2 % of its half a million.
_MOST_AVERAGED = 10_000
_AVERAGED_SHARE = 0.02
# Warm-up is at most one part of a run in so many: v5.0's 1000 batches are 77 epochs of 200 images.
_WARMUP_PARTS = 10


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """How much a run trains.

    Attributes:
        images: Training images.
        epochs: Passes over them.
    """

    images: int
    epochs: int

    def steps(self, images_per_step: int) -> int:
        """Return the optimiser steps of the whole run; an epoch ends with a step, if of fewer images."""
        return self.epochs * math.ceil(self.images / images_per_step)


@dataclass(frozen=True, kw_only=True)
class ShortRuns:
    """How a recipe changes in runs that are short of steps.

    Attributes:
        long_steps: Steps, of the images that the recipe has for one, from which a run has the recipe unchanged.
        least_share: Share of them below which nothing changes further, and least share of the images per step.
        closing_epochs: Most last epochs without mosaics.
        closing_share: Most of a run that these may be.
    """

    long_steps: int = 10_000
    least_share: float = 0.25
    closing_epochs: int = 20
    closing_share: float = 1 / 3

    def share(self, length: RunLength, nominal_batch: int) -> float:
        """Return the share of `long_steps` that a run has, from `least_share` to 1.

        Args:
            length: How much the run trains.
            nominal_batch: Images per step of the recipe.
        """
        return min(1.0, max(self.least_share, length.steps(nominal_batch) / self.long_steps))

    def nominal_batch(self, length: RunLength, nominal_batch: int, *, batch_size: int) -> int:
        """Return the images per step of a run: the recipe's or fewer, in parts of `least_share`.

        Args:
            length: How much the run trains.
            nominal_batch: Images per step of the recipe.
            batch_size: Images per batch, of which a step has at least one.
        """
        part = nominal_batch * self.least_share
        parts = round(self.share(length, nominal_batch) / self.least_share)
        return min(nominal_batch, max(batch_size, round(parts * part)))

    def closing(self, length: RunLength, nominal_batch: int) -> int:
        """Return the last epochs of a run without mosaics."""
        missing = (1 - self.share(length, nominal_batch)) / (1 - self.least_share)
        return min(round(self.closing_epochs * missing), int(length.epochs * self.closing_share))

    def last_rate(self, length: RunLength, nominal_batch: int, *, lrf: float) -> float:
        """Return the last learning rate of a run as a share of its first, where the recipe has `lrf`."""
        return round(lrf * self.share(length, nominal_batch), 4)


def warmup_batches(warmup_epochs: float, *, epochs: int, batches: int, least: int, is_exact: bool = False) -> int:
    """Return the number of batches over which rates and momentum rise.

    Args:
        warmup_epochs: Epochs of warm-up; 0 for none.
        epochs: Epochs of the run.
        batches: Batches per epoch.
        least: Fewest batches; v5.0 has 1000. In any case ours are at most a tenth of the run.
        is_exact: Whether the epochs were asked for, and are not changed.
    """
    if warmup_epochs <= 0:
        return 0
    wanted = round(warmup_epochs * batches)
    if is_exact:
        return min(wanted, epochs * batches)
    return min(max(wanted, least), max(1, epochs * batches // _WARMUP_PARTS))


def averaged_steps(total: int) -> float:
    """Return over about how many optimiser steps weights are averaged at the end of a run of `total`."""
    return min(_MOST_AVERAGED, max(1.0, _AVERAGED_SHARE * total))
