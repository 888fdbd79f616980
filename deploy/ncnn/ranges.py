"""Ranges of the inputs of an ncnn network's layers on real images, for int8 calibration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from deploy.artefact.packages import optional_package
from deploy.choices import Int8Method
from deploy.ncnn.bin import Floats
from deploy.ncnn.param import ParamLayer
from deploy.ncnn.runtime import INPUT_BLOB, open_network
from deploy.settings import RuntimeOptions

Histogram: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

NUM_BINS, NUM_LEVELS = 2048, 128
# Distance between candidates for a range, in bins; finer steps change it by less than half a percent.
_BINS_APART = 8
# Replaces a probability of zero, which has no logarithm.
_LEAST_CHANCE = 1e-9


def input_ranges(
    folder: Path,
    layers: tuple[ParamLayer, ...],
    wanted: Collection[str],
    *,
    images: Sequence[Tensor],
    method: Int8Method,
) -> dict[str, float]:
    """Measure the magnitude that the largest int8 value represents, at the input of each layer.

    Args:
        folder: Folder of an fp32 export.
        layers: Layers of its `.param`.
        wanted: Names of the layers to measure.
        images: Images, each (1, C, H, W) float32, in the form of network input.
        method: "minmax" takes the largest magnitude seen; "kl" cuts off rare large ones, see `kl_range`.

    Returns:
        Positive magnitudes, by name of the layer.
    """
    sources = _sources(layers)
    blob_of = {layer.name: sources.get(layer.inputs[0], layer.inputs[0]) for layer in layers if layer.name in wanted}
    read = _reader(folder, sorted(set(blob_of.values())))
    largest = _largest(read, images)
    if method == "kl":
        histograms = _histograms(read, images, largest)
        largest = {blob: kl_range(histograms[blob], largest[blob]) for blob in largest}
    # A blob that is zero on all images may have any range.
    return {name: largest[blob] or 1.0 for name, blob in blob_of.items()}


def _sources(layers: tuple[ParamLayer, ...]) -> dict[str, str]:
    """Map each blob that is only a copy to the blob it is a copy of."""
    copies: dict[str, str] = {}
    for layer in layers:
        if layer.kind == "Split":
            copies.update(dict.fromkeys(layer.outputs, copies.get(layer.inputs[0], layer.inputs[0])))
    return copies


_Read: TypeAlias = Callable[[Tensor], Iterator[tuple[str, Floats]]]


def _reader(folder: Path, blobs: list[str]) -> _Read:
    """Build a function that yields the named blobs of an image, in one forward pass."""
    ncnn = optional_package("ncnn", purpose="int8 calibration")
    net = open_network(ncnn, folder, options=RuntimeOptions(), keeps_blobs=True)

    def read(image: Tensor) -> Iterator[tuple[str, Floats]]:
        pixels = image[0].contiguous().numpy()  # named, because a Mat does not keep the array that it points into
        with net.create_extractor() as extractor:
            extractor.input(INPUT_BLOB, ncnn.Mat(pixels))
            for blob in blobs:
                _, values = extractor.extract(blob)
                yield blob, np.array(values)  # a copy: the extractor frees the blob

    return read


def _largest(read: _Read, images: Sequence[Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}
    for image in images:
        for blob, values in read(image):
            found[blob] = max(found.get(blob, 0.0), float(np.abs(values).max()))
    return found


def _histograms(read: _Read, images: Sequence[Tensor], largest: dict[str, float]) -> dict[str, Histogram]:
    """Count the magnitudes of each blob in 2048 equal bins of its range, zeros left out.

    A zero is exact in any range, and after a ReLU zeros would outnumber the rest.
    """
    found = {blob: np.zeros(NUM_BINS) for blob in largest}
    for image in images:
        for blob, values in read(image):
            bins_per_unit = np.float32(NUM_BINS / (largest[blob] or np.inf))
            parts = (np.abs(values) * bins_per_unit).astype(np.intp).ravel()
            counts = np.bincount(parts, minlength=NUM_BINS + 1)
            counts[0] -= np.count_nonzero(values == 0)
            counts[NUM_BINS - 1] += counts[NUM_BINS]  # the largest magnitude itself
            found[blob] += counts[:NUM_BINS]
    return found


def kl_range(histogram: Histogram, largest: float) -> float:
    """Choose the range whose 128 levels keep most information about the magnitudes.

    For each candidate range, the distribution of magnitudes, with larger ones counted in its last bin, is compared
    with the same distribution at 128 levels; the range with the smallest Kullback-Leibler divergence is taken.
    Migacz, "8-bit inference with TensorRT", GTC 2017.

    Args:
        histogram: Counts (2048,) of magnitudes in equal bins of [0, largest].
        largest: Upper end of the last bin.
    """
    ends = range(NUM_LEVELS, NUM_BINS + 1, _BINS_APART)
    best = min(ends, key=lambda end: _divergence(histogram, end))
    return largest * best / NUM_BINS


def _divergence(histogram: Histogram, end: int) -> float:
    """Compute the divergence of the first `end` bins from their form at 128 levels; infinite if they are empty."""
    inside = histogram[:end]
    total = inside.sum()
    if total == 0:
        return np.inf
    starts = np.arange(NUM_LEVELS) * end // NUM_LEVELS
    is_filled = inside > 0
    # The count of a level is shared by those of its bins that are not empty.
    counts, num_filled = np.add.reduceat(inside, starts), np.add.reduceat(is_filled.astype(np.int64), starts)
    shares = counts / np.maximum(num_filled, 1)
    kept = np.repeat(shares, np.diff(starts, append=end)) * is_filled / total
    clipped = inside.copy()
    clipped[-1] += histogram[end:].sum()
    clipped /= clipped.sum()
    is_seen = clipped > 0
    ratio = clipped[is_seen] / np.maximum(kept[is_seen], _LEAST_CHANCE)
    return float((clipped[is_seen] * np.log(ratio)).sum())
