"""`ClassifierSpec`: the description of a classifier in its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from utils.config.values import checked_values, required_fields
from utils.errors import CheckpointError, ConfigError

# Value of "kind" that marks the description of a classifier in a checkpoint.
_KIND = "classifier"
# Largest number of classes, and of pixels per side: the limit of torch's indices.
_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """The description of a classifier without its widths, which follow from the shapes of its weights.

    Attributes:
        name: Key of `models.classifiers.CLASSIFIERS`; empty for a network that code elsewhere builds.
        num_classes: Number of classes, the length of the logits.
        image_chw: Channels, height and width of an image.
        mean: Mean per channel, subtracted from images in [0, 1] before the network.
        std: Standard deviation per channel, by which images are then divided.
    """

    name: str
    num_classes: int
    image_chw: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.image_chw) != 3 or min(self.image_chw) < 1 or max(self.image_chw) > _MOST:
            raise ConfigError(f"image size: got {self.image_chw}, expected channels, height and width")
        if not 2 <= self.num_classes <= _MOST:
            raise ConfigError(f"a classifier of {self.num_classes} classes: expected 2 to {_MOST}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.image_chw[0]:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected {self.image_chw[0]} numbers")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"mean: got {self.mean}, expected finite numbers")
        # Written so that NaN fails as well.
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"std: got {self.std}, expected positive numbers")

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data for checkpoints."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": _KIND, **values}

    @staticmethod
    def describes(values: object) -> bool:
        """Return whether a checkpoint's description is of a classifier."""
        return isinstance(values, Mapping) and values.get("kind") == _KIND

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> ClassifierSpec:
        """Rebuild from `to_dict`; `where` names its origin in messages.

        Raises:
            CheckpointError: The data describe something else, such as a detector.
        """
        if not cls.describes(values):
            raise CheckpointError(f"{where}: not a classifier; give one, or the YAML of a detector's data")
        rest = {name: value for name, value in values.items() if name != "kind"}
        try:
            checked = checked_values(cls, rest, where="its description")
            if missing := [name for name in required_fields(cls) if name not in checked]:
                raise CheckpointError(f"{where} has no {missing[0]!r}; use an undamaged copy")
            return cls(**checked)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from None
