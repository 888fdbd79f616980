"""How large the inputs of an ncnn network's layers become on real pictures: what int8 calibration measures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from deploy.ncnn.bin import Floats
from deploy.ncnn.param import ParamLayer
from deploy.ncnn.runtime import INPUT_BLOB, open_network
from deploy.packages import optional_package
from deploy.runtime import RuntimeOptions

Int8Method: TypeAlias = Literal["kl", "minmax"]
Histogram: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

NUM_BINS, NUM_LEVELS = 2048, 128
# Candidates for a range lie so many bins apart; finer ones move it by less than half a percent.
_BINS_APART = 8
# Stands for a chance of zero, whose logarithm is none.
_LEAST_CHANCE = 1e-9


def input_ranges(
    folder: Path,
    layers: tuple[ParamLayer, ...],
    wanted: Collection[str],
    *,
    images: Sequence[Tensor],
    method: Int8Method,
) -> dict[str, float]:
    """The magnitude that the largest int8 number shall stand for, at the input of each layer.

    Args:
        folder: An fp32 export.
        layers: Of its `.param`.
        wanted: Names of layers.
        images: Each (1, 3, H, W) float32, RGB in [0, 1].
        method: "minmax" takes the largest magnitude seen; "kl" cuts off rare large ones, see `kl_range`.

    Returns:
        By name of the layer; positive.
    """
    sources = _sources(layers)
    blob_of = {layer.name: sources.get(layer.inputs[0], layer.inputs[0]) for layer in layers if layer.name in wanted}
    read = _reader(folder, sorted(set(blob_of.values())))
    largest = _largest(read, images)
    if method == "kl":
        histograms = _histograms(read, images, largest)
        largest = {blob: kl_range(histograms[blob], largest[blob]) for blob in largest}
    # A blob that is zero on all pictures may have any range.
    return {name: largest[blob] or 1.0 for name, blob in blob_of.items()}


def _sources(layers: tuple[ParamLayer, ...]) -> dict[str, str]:
    """Of each blob that is only a copy: the blob it is a copy of."""
    copies: dict[str, str] = {}
    for layer in layers:
        if layer.kind == "Split":
            copies.update(dict.fromkeys(layer.outputs, copies.get(layer.inputs[0], layer.inputs[0])))
    return copies


_Read: TypeAlias = Callable[[Tensor], Iterator[tuple[str, Floats]]]


def _reader(folder: Path, blobs: list[str]) -> _Read:
    """From an image to its blobs, in one forward pass."""
    ncnn = optional_package("ncnn", purpose="int8 calibration")
    net = open_network(ncnn, folder, options=RuntimeOptions(), keeps_blobs=True)

    def read(image: Tensor) -> Iterator[tuple[str, Floats]]:
        with net.create_extractor() as extractor:
            extractor.input(INPUT_BLOB, ncnn.Mat(image[0].contiguous().numpy()))
            for blob in blobs:
                _, values = extractor.extract(blob)
                yield blob, np.array(values)  # a copy: the blob goes with its extractor

    return read


def _largest(read: _Read, images: Sequence[Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}
    for image in images:
        for blob, values in read(image):
            found[blob] = max(found.get(blob, 0.0), float(np.abs(values).max()))
    return found


def _histograms(read: _Read, images: Sequence[Tensor], largest: dict[str, float]) -> dict[str, Histogram]:
    """Of each blob's magnitudes: how many lie in each of 2048 equal parts of its range, zeros left out.

    A zero is exact in any range, and after a ReLU zeros drown the rest.
    """
    found = {blob: np.zeros(NUM_BINS) for blob in largest}
    for image in images:
        for blob, values in read(image):
            bins_per_unit = np.float32(NUM_BINS / (largest[blob] or np.inf))
            parts = (np.abs(values) * bins_per_unit).astype(np.intp).ravel()
            counts = np.bincount(parts, minlength=NUM_BINS + 1)
            counts[0] -= np.count_nonzero(values == 0)
            counts[NUM_BINS - 1] += counts[NUM_BINS]  # the largest itself
            found[blob] += counts[:NUM_BINS]
    return found


def kl_range(histogram: Histogram, largest: float) -> float:
    """The range whose 128 levels tell most about the magnitudes.

    Of each candidate, the magnitudes as they are, larger ones counted at its end, are compared with what is left of
    them in 128 levels; the one of the least Kullback-Leibler divergence is taken. Migacz, "8-bit inference with
    TensorRT", GTC 2017.

    Args:
        histogram: (2048,) counts of magnitudes in equal parts of [0, largest].
        largest: Upper end of the last part.
    """
    ends = range(NUM_LEVELS, NUM_BINS + 1, _BINS_APART)
    best = min(ends, key=lambda end: _divergence(histogram, end))
    return largest * best / NUM_BINS


def _divergence(histogram: Histogram, end: int) -> float:
    """Of the first `end` parts from what 128 levels keep of them; infinite where there is nothing to compare."""
    inside = histogram[:end]
    total = inside.sum()
    if total == 0:
        return np.inf
    starts = np.arange(NUM_LEVELS) * end // NUM_LEVELS
    is_filled = inside > 0
    # A level's count is shared by those of its parts that hold anything.
    counts, num_filled = np.add.reduceat(inside, starts), np.add.reduceat(is_filled.astype(np.int64), starts)
    shares = counts / np.maximum(num_filled, 1)
    kept = np.repeat(shares, np.diff(starts, append=end)) * is_filled / total
    clipped = inside.copy()
    clipped[-1] += histogram[end:].sum()
    clipped /= clipped.sum()
    is_seen = clipped > 0
    ratio = clipped[is_seen] / np.maximum(kept[is_seen], _LEAST_CHANCE)
    return float((clipped[is_seen] * np.log(ratio)).sum())
