"""Scripts that take detectors and classifiers: which settings a classifier has no use for."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from utils.config.values import given_flags

logger = logging.getLogger(__name__)


def warn_of_detector_flags(config: Any, *, own: Collection[str]) -> None:
    """Name the settings that were given and change nothing.

    Args:
        config: All settings of a script, a dataclass.
        own: Those that mean something for a classifier.
    """
    if flags := given_flags(config, (item.name for item in fields(config) if item.name not in own)):
        logger.warning("%s: for detectors; with a classifier it changes nothing", flags)
