from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_factory import build_index, write_image, write_set
from PIL import Image

from utils.boxes.boxes import cxcywh_to_xyxy, unletterbox
from utils.config.hyp import Hyp
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.datasets.loading import image_cache
from utils.datasets.loading.dataset import DetectionDataset
from utils.datasets.reading.images import FILL
from utils.errors import ConfigError, DataError

ALL_ON = Hyp(mosaic9=0.5, mixup=0.5, degrees=10, shear=5, perspective=0.0005, flipud=0.5)


def test_a_plain_sample_is_the_letterboxed_picture(tmp_path: Path) -> None:
    dataset = DetectionDataset(build_index(tmp_path, hw=(48, 64)), img_size=128, hyp=Hyp())
    sample = dataset[(0, 1)]
    assert sample.image.shape == (3, 128, 128)
    assert sample.image.dtype == torch.uint8
    assert sample.image.is_contiguous()
    # 48 x 64 becomes 96 x 128, 16 px of border above and below.
    assert (sample.image[:, :16] == FILL).all()
    assert sample.image[:, 64, 64].tolist() == [90, 120, 150]
    torch.testing.assert_close(sample.targets, torch.tensor([[1, 0.5, 0.5, 0.5, 0.375]]))
    info = sample.info
    assert (info.index, info.original_hw, info.scale, info.padding) == (1, (48, 64), 2.0, (0, 16))


@pytest.mark.parametrize("hw", [(48, 64), (333, 500), (71, 40), (1, 1)])
@pytest.mark.parametrize("rect", [False, True])
def test_targets_map_back_to_the_original_boxes(tmp_path: Path, hw: tuple[int, int], rect: bool) -> None:
    index = build_label_index(load_data_config(write_set(tmp_path, {"1": "0 0.4 0.6 0.2 0.4\n"}, hw=hw)), "train")
    sample = DetectionDataset(index, img_size=160, hyp=Hyp(), rect=rect)[(0, 0)]
    height, width = sample.image.shape[1:]
    boxes = cxcywh_to_xyxy(sample.targets[:, 1:]) * torch.tensor([width, height, width, height])
    back = unletterbox(boxes, scale=sample.info.scale, padding=sample.info.padding, original_hw=hw)
    expected = np.array([0.3, 0.4, 0.5, 0.8]) * [hw[1], hw[0], hw[1], hw[0]]
    # Half a pixel of the letterboxed picture.
    np.testing.assert_allclose(back[0].numpy(), expected, atol=0.5 / sample.info.scale + 1e-4)


def test_rect_pads_to_the_least_multiple(tmp_path: Path) -> None:
    dataset = DetectionDataset(build_index(tmp_path, hw=(40, 100)), img_size=160, hyp=Hyp(), rect=True)
    assert dataset.output_hw(0) == (64, 160)
    assert dataset[(0, 0)].image.shape == (3, 64, 160)


def test_fixed_frame_holds_the_whole_picture(tmp_path: Path) -> None:
    dataset = DetectionDataset(build_index(tmp_path, hw=(40, 100)), img_size=160, hyp=Hyp(), frame_hw=(96, 160))
    sample = dataset[(0, 0)]
    # 40 x 100 becomes 64 x 160, 16 px of border above and below.
    assert sample.image.shape == (3, 96, 160)
    assert (sample.info.scale, sample.info.padding) == (1.6, (0, 16))
    tall = DetectionDataset(build_index(tmp_path, hw=(40, 100)), img_size=160, hyp=Hyp(), frame_hw=(32, 160))
    # The height is what limits: 32 x 80, 40 px of border on both sides.
    assert (tall[(0, 0)].info.scale, tall[(0, 0)].info.padding) == (0.8, (40, 0))


@pytest.mark.parametrize("hyp", [Hyp(), Hyp(mosaic=0), ALL_ON])
def test_augmented_samples_are_whole(tmp_path: Path, hyp: Hyp) -> None:
    dataset = DetectionDataset(build_index(tmp_path), img_size=64, hyp=hyp, augment=True)
    num_boxes = 0
    for epoch in range(10):
        sample = dataset[(epoch, 2)]
        assert sample.image.shape == (3, 64, 64)
        assert sample.targets.dtype == torch.float32
        corners = cxcywh_to_xyxy(sample.targets[:, 1:])
        assert ((corners >= -1e-6) & (corners <= 1 + 1e-6)).all()
        num_boxes += len(corners)
    assert num_boxes > 0


def test_a_key_always_gives_the_same_bits(tmp_path: Path) -> None:
    index = build_index(tmp_path)
    first = DetectionDataset(index, img_size=64, hyp=ALL_ON, augment=True, seed=3)
    again = DetectionDataset(index, img_size=64, hyp=ALL_ON, augment=True, seed=3, cache_images=True)
    for key in [(0, 4), (5, 1), (0, 4)]:
        assert torch.equal(first[key].image, again[key].image)
        assert torch.equal(first[key].targets, again[key].targets)


def test_epochs_positions_and_seeds_give_different_samples(tmp_path: Path) -> None:
    index = build_index(tmp_path)
    dataset = DetectionDataset(index, img_size=64, hyp=Hyp(), augment=True)
    other = DetectionDataset(index, img_size=64, hyp=Hyp(), augment=True, seed=1)
    images = [dataset[(0, 0)].image, dataset[(1, 0)].image, dataset[(0, 1)].image, other[(0, 0)].image]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_mosaic_partners_come_from_the_pool(tmp_path: Path) -> None:
    labels = {str(number): f"{number} 0.5 0.5 1 1\n" for number in range(6)}
    index = build_label_index(load_data_config(write_set(tmp_path, labels, num_classes=6)), "train")
    dataset = DetectionDataset(index, img_size=64, hyp=Hyp(), augment=True)
    seen = {int(target[0]) for epoch in range(10) for target in dataset[(epoch, 0, 4, 5)].targets}
    assert seen <= {0, 4, 5}
    assert seen & {4, 5}


def test_cached_pictures_are_not_changed_by_augmentation(tmp_path: Path) -> None:
    index = build_index(tmp_path)
    dataset = DetectionDataset(index, img_size=64, hyp=Hyp(mosaic=0), augment=True, cache_images=True)
    plain = DetectionDataset(index, img_size=64, hyp=Hyp(), cache_images=True)
    before = plain[(0, 0)].image.clone()
    for epoch in range(5):
        dataset[(epoch, 0)]
        plain[(epoch, 0)].image.zero_()
    assert torch.equal(plain[(0, 0)].image, before)


def test_images_that_do_not_fit_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(image_cache, "available_memory", lambda: 1000)
    with caplog.at_level(logging.WARNING):
        dataset = DetectionDataset(build_index(tmp_path), img_size=64, hyp=Hyp(), cache_images=True)
    assert "images are not cached" in caplog.text
    assert dataset[(0, 0)].image.shape == (3, 64, 64)


def test_the_free_memory_is_known() -> None:
    assert 2**20 < image_cache.available_memory() <= 2**62


def test_a_size_off_the_stride_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="100 is not a multiple of the stride 32"):
        DetectionDataset(build_index(tmp_path), img_size=100, hyp=Hyp())


def test_an_image_cut_or_changed_after_indexing_is_a_data_error(tmp_path: Path) -> None:
    index = build_index(tmp_path)
    dataset = DetectionDataset(index, img_size=64, hyp=Hyp())
    first, second = Path(index.paths[0]), Path(index.paths[1])
    first.write_bytes(first.read_bytes()[:50])
    write_image(second, (10, 10))
    with pytest.raises(DataError, match=r"000.png cannot be read"):
        dataset[(0, 0)]
    with pytest.raises(DataError, match=r"001.png has changed"):
        dataset[(0, 1)]


def test_a_png_cut_after_indexing_is_not_used_half_empty(tmp_path: Path) -> None:
    index = build_index(tmp_path)
    path = Path(index.paths[0])
    noise = np.random.default_rng(0).integers(0, 256, (*index.shapes_hw[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"000.png cannot be read: part of it is missing"):
        DetectionDataset(index, img_size=64, hyp=Hyp())[(0, 0)]
