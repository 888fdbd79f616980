"""Scripts that take detectors and classifiers: which settings a classifier has no use for."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import fields
from typing import Any

logger = logging.getLogger(__name__)


def warn_of_detector_flags(config: Any, *, own: Collection[str]) -> None:
    """Name the settings that were given and change nothing.

    Args:
        config: All settings of a script, a dataclass.
        own: Those that mean something for a classifier.
    """
    others = [item for item in fields(config) if item.name not in own]
    given = [item.name for item in others if getattr(config, item.name) != item.default]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        logger.warning("%s: for detectors; with a classifier it changes nothing", flags)
