"""`ExportJob`: all that a format needs to write an artefact, whatever the network returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploy.artefact.packages import optional_package
from deploy.formats import FORMATS, check_precision
from deploy.int8.mixes import Int8Mix
from deploy.outputs.metadata import Metadata
from deploy.outputs.outputs import Source
from deploy.settings import ExportSettings, FormatSettings
from deploy.verification.verify import MeasureMetric
from quantization.layer_errors import LayerError
from quantization.network import QuantizedNetwork
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportJob:
    """A network to export, with its settings.

    Attributes:
        source: Network, and what follows from its task.
        settings: Settings that every format needs.
        calibration: Real images (1, C, H, W) in the form of network input, for int8; empty otherwise.
        special: Settings that only some formats use.
        rounded: The network in int8 with scales and weights that are trained already, of which nothing is learnt any
            more; None for one that is calibrated here.
        measure: Function that measures mAP50-95 or accuracy; None without data.
        tell: Function that takes what each layer loses in int8; None if nobody asks.
        tell_mix: Function that takes the precision of each layer, where a budget chose it; None if nobody asks.
    """

    source: Source
    settings: ExportSettings = ExportSettings()  # noqa: RUF009 - immutable
    calibration: Sequence[Tensor] = ()
    special: FormatSettings = FormatSettings()  # noqa: RUF009 - immutable
    rounded: QuantizedNetwork | None = None
    measure: MeasureMetric | None = None
    tell: Callable[[Sequence[LayerError]], None] | None = None
    tell_mix: Callable[[Int8Mix], None] | None = None

    def metadata(self, name: str, path: Path) -> Metadata:
        """Build the metadata of an artefact that is about to be written.

        Args:
            name: Name of its format in `deploy.formats.FORMATS`.
            path: Path of the artefact.

        Raises:
            ConfigError: The path or precision does not fit the format, a package is missing, or the settings do not
                fit the network.
        """
        form = FORMATS[name]
        if not path.name.endswith(form.suffix):
            raise ConfigError(f"{name} artefact {path}: expected a name that ends in {form.suffix}")
        check_precision(name, self.settings.precision)
        packages = {package: optional_package(package, purpose=f"export to {name}") for package in form.packages}
        versions = {package: str(module.__version__) for package, module in packages.items()}
        return self.source.metadata(format=form.suffix, settings=self.settings, versions=versions)

    def example(self, metadata: Metadata) -> Tensor:
        """Return black images (B, C, H, W) for tracing."""
        return torch.zeros(self.settings.batch_size, *metadata.image_chw)
