"""Mosaics of the images of a batch, with true or predicted boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.boxes.boxes import cxcywh_to_xyxy
from utils.datasets.loading.batch import Batch
from utils.plots.draw import draw_boxes
from utils.plots.save import save_image

Array = np.ndarray[Any, Any]

MAX_IMAGES = 16
MAX_SIDE = 1920  # pixels of the whole mosaic
MIN_TILE = 320  # pixels of an image's longer side; smaller ones are enlarged, because captions do not shrink
MIN_SCORE_DRAWN = 0.25


def plot_labels(batch: Batch, path: str | Path, *, names: Sequence[str]) -> None:
    """Write the first 16 images of a batch with their true boxes (train_batchN.jpg, val_batchN_labels.jpg)."""
    targets = batch.targets.detach().cpu().numpy()
    height, width = batch.images.shape[2:]
    boxes = []
    for number in range(min(len(batch), MAX_IMAGES)):
        own = targets[targets[:, 0] == number]
        xyxy = cxcywh_to_xyxy(own[:, 2:6]) * np.array([width, height, width, height], np.float32)
        boxes.append(np.concatenate([xyxy, np.ones((len(own), 1)), own[:, 1:2]], 1))
    save_image(_mosaic(batch, boxes, names=names, show_score=False), path)


def plot_predictions(batch: Batch, boxes: Sequence[Array], path: str | Path, *, names: Sequence[str]) -> None:
    """Write the first 16 images of a batch with their predicted boxes (val_batchN_pred.jpg).

    Args:
        batch: Batch of images.
        boxes: Boxes of each image (n, 6): xyxy in pixels of the batch, score, class. Scores under .25 are not drawn.
        path: JPEG to write.
        names: Class names by id.
    """
    sure = [found[found[:, 4] >= MIN_SCORE_DRAWN] for found in boxes[:MAX_IMAGES]]
    save_image(_mosaic(batch, sure, names=names, show_score=True), path)


def _mosaic(batch: Batch, boxes: Sequence[Array], *, names: Sequence[str], show_score: bool) -> Array:
    """Draw a near-square grid of tiles, each with its boxes and file name, as (H, W, 3) uint8."""
    count = min(len(batch), MAX_IMAGES)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height, width = batch.images.shape[2:]
    scale = min(max(1.0, MIN_TILE / max(width, height)), MAX_SIDE / max(columns * width, rows * height))
    tile_w, tile_h = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.full((rows * tile_h, columns * tile_w, 3), 255, np.uint8)
    for number in range(count):
        tile = _tile(batch, number, boxes[number], names=names, show_score=show_score, size_wh=(tile_w, tile_h))
        top, left = number // columns * tile_h, number % columns * tile_w
        canvas[top : top + tile_h, left : left + tile_w] = tile
    return canvas


def _tile(
    batch: Batch,
    number: int,
    boxes: Array,
    *,
    names: Sequence[str],
    show_score: bool,
    size_wh: tuple[int, int],
) -> Array:
    image = batch.images[number].detach().cpu()
    if image.dtype != torch.uint8:
        image = image.float().mul(255).round().clamp(0, 255).to(torch.uint8)
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # (3, H, W) -> (H, W, 3)
    height, width = pixels.shape[:2]
    gain = np.array([size_wh[0] / width, size_wh[1] / height] * 2)
    labels = [names[int(row[5])] + (f" {row[4]:.2f}" if show_score else "") for row in boxes]
    tile = draw_boxes(
        cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA if size_wh[0] <= width else cv2.INTER_LINEAR),
        boxes[:, :4] * gain,
        labels=labels,
        class_ids=boxes[:, 5],
    )
    # OpenCV crashes on names that are not UTF-8.
    name = Path(batch.infos[number].path).name[:40].encode(errors="replace").decode()
    cv2.putText(tile, name, (4, tile.shape[0] - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    cv2.rectangle(tile, (0, 0), (tile.shape[1] - 1, tile.shape[0] - 1), (255, 255, 255), 1)
    return tile
