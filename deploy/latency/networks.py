"""Whole networks whose times show what layers leave over: the dense one, and random cuts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from deploy.choices import Precision
from deploy.formats import FORMATS, resolve
from deploy.job import ExportJob
from deploy.outputs.outputs import Source
from deploy.settings import ExportSettings
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.selection.latency import Conditions
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.surgery.cut import cut

# Shares of the channels that the networks lack, and the multiple that their widths are of.
_CUT_SHARES = (0.0, 0.25, 0.5, 0.7)
_ALIGNED = 8
_NUM_CALIBRATION = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network whose layers are timed.

    Attributes:
        model: The network.
        image_chw: Channels, height and width of the image.
        trace_chw: Image size to trace it with, as in `ChannelGraph.of`.
        source_of: Function that makes a source of artefacts of it, and of it when cut.
    """

    model: nn.Module
    image_chw: tuple[int, int, int]
    trace_chw: tuple[int, int, int] | None
    source_of: Callable[[nn.Module], Source]


def cut_networks(subject: Subject, graph: ChannelGraph) -> Iterator[tuple[nn.Module, IntArray]]:
    """Yield networks of several widths, with the channels that they lack; the dense one is the first."""
    widest = max(len(group.ids) for group in graph.groups)
    for share in _CUT_SHARES:
        settings = PlanSettings(
            criterion="random",
            percent=share,
            shortcuts="tied",
            rounding=Rounding(unit=min(_ALIGNED, widest)),
            trace_chw=subject.trace_chw,
        )
        dropped = Planner.of(subject.model, settings).decide().dropped
        yield cut(subject.model, graph, dropped, carry=False) if len(dropped) else subject.model, dropped


def export_network(model: nn.Module, subject: Subject, conditions: Conditions, path: Path) -> Tensor:
    """Export a network for the runtime of the conditions, and return noise as images for it.

    Args:
        model: Network of the subject, perhaps cut.
        subject: Where it comes from.
        conditions: Runtime, precision and image size.
        path: File or folder to write; its name ends with the suffix of the format.

    Returns:
        Images (2, C, H, W).

    Raises:
        ConfigError: A package is missing, or the network cannot be exported.
    """
    form, precision = FORMATS[conditions.runtime], cast(Precision, conditions.precision)
    _, height, width = subject.image_chw
    source = subject.source_of(model)
    images = source.noise(_NUM_CALIBRATION, subject.image_chw)
    job = ExportJob(
        source=source,
        settings=ExportSettings(image_hw=(height, width), precision=precision),
        calibration=[image[None] for image in images] if precision == "int8" else (),
    )
    resolve(form.write)(job, path)
    return images
