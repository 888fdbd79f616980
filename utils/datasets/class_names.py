"""What a network and data call the same classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)


def compare_class_names(own: Sequence[str], given: Sequence[str], *, weights: str, data: str) -> None:
    """Tell of classes that are called differently; a network without names is passed.

    Args:
        own: Names of the network's classes, or none.
        given: Names of the data's, as many.
        weights, data: What the user calls the two.
    """
    if own and tuple(own) != tuple(given):
        logger.warning("%s and %s call their classes differently; they are paired by position", weights, data)
