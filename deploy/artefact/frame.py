"""The only image size that some exported files take, and the error for any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.artefact.runtime import DetectorRuntime
from utils.errors import ConfigError

# Longer side in pixels if none is given and the network takes any.
DEFAULT_IMG_SIZE = 640


@dataclass(frozen=True, kw_only=True)
class FixedFrame:
    """The image size that a detector, or a member of an ensemble, was exported for.

    Attributes:
        hw: Height and width in pixels.
        name: Name of the exported file, for messages.
        stride: Pixels to a multiple of which image sizes are rounded up.
    """

    hw: tuple[int, int]
    name: str
    stride: int

    @classmethod
    def of(cls, runtimes: Sequence[DetectorRuntime], paths: Sequence[str | Path] = ()) -> FixedFrame | None:
        """Find the only size that all of these runtimes take; None if they take any.

        Args:
            runtimes: One detector, or the members of an ensemble.
            paths: Files of the runtimes, for messages.

        Raises:
            ConfigError: The runtimes take different sizes.
        """
        names = [*map(str, paths), *["the exported network"] * (len(runtimes) - len(paths))]
        fixed = {runtime.input_hw: name for runtime, name in zip(runtimes, names, strict=True) if runtime.input_hw}
        if len(fixed) > 1:
            (first, name), (second, other), *_ = fixed.items()
            raise ConfigError(f"{name} takes images of {first} and {other} of {second}; export them for one size")
        stride = max(max(runtime.strides) for runtime in runtimes)
        return next((cls(hw=hw, name=name, stride=stride) for hw, name in fixed.items()), None)

    def check(self, img_size: int, *, setting: str = "--img-size (img_size in Python)") -> None:
        """Refuse any other image size.

        Args:
            img_size: Longer side in pixels, as requested.
            setting: Name of the setting that requests it, for messages.

        Raises:
            ConfigError: The size differs; the message names the supported one.
        """
        own = max(self.hw)
        if math.ceil(img_size / self.stride) * self.stride != own:
            raise ConfigError(
                f"{setting}: got {img_size}, but {self.name} takes images of height and width {self.hw} only; "
                f"give {own}, or export the network again for {img_size}"
            )
