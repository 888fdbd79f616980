"""The one size of images that some exported files take, and what to say to any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.runtime import RuntimeModel
from utils.errors import ConfigError

# Longer side in pixels where none is asked for and the network takes any.
DEFAULT_IMG_SIZE = 640


@dataclass(frozen=True, kw_only=True)
class FixedFrame:
    """The size that a detector, or a member of an ensemble, was exported for.

    Attributes:
        hw: Height and width in pixels.
        name: Name of the exported file, for messages.
        stride: Image sizes are rounded up to a multiple of it.
    """

    hw: tuple[int, int]
    name: str
    stride: int

    @classmethod
    def of(cls, runtimes: Sequence[RuntimeModel], paths: Sequence[str | Path] = ()) -> FixedFrame | None:
        """Find the one size that all of these runtimes take; None where they take any.

        Args:
            runtimes: One detector, or the members of an ensemble.
            paths: Their files, for messages.

        Raises:
            ConfigError: They take different ones.
        """
        names = [*map(str, paths), *["the exported network"] * (len(runtimes) - len(paths))]
        fixed = {runtime.input_hw: name for runtime, name in zip(runtimes, names, strict=True) if runtime.input_hw}
        if len(fixed) > 1:
            (first, name), (second, other), *_ = fixed.items()
            raise ConfigError(f"{name} takes images of {first} and {other} of {second}; export them for one size")
        stride = max(max(runtime.strides) for runtime in runtimes)
        return next((cls(hw=hw, name=name, stride=stride) for hw, name in fixed.items()), None)

    def check(self, img_size: int, *, setting: str = "--img-size (img_size in Python)") -> None:
        """Refuse an image size that was asked for and is not this one.

        Args:
            img_size: Longer side in pixels.
            setting: Name of what asked for it, for messages.

        Raises:
            ConfigError: Names the size that can be had.
        """
        own = max(self.hw)
        if math.ceil(img_size / self.stride) * self.stride != own:
            raise ConfigError(
                f"{setting}: got {img_size}, but {self.name} takes images of height and width {self.hw} only; "
                f"give {own}, or export the network again for {img_size}"
            )
