from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_factory import build_index, write_image, write_set

from engine.training.validation import class_counts, image_weights, labels_to_class_weights
from utils.config.hyp import Hyp
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.datasets.loading.batch import ImageInfo
from utils.datasets.loading.dataset import DetectionDataset, Sample
from utils.datasets.loading.loader import build_loader, quad_collate
from utils.datasets.loading.sampler import BatchKeySampler
from utils.errors import ConfigError, DataError

SQUARE = [(64, 64)] * 10


def positions(sampler: BatchKeySampler) -> list[list[int]]:
    return [[key[1] for key in batch] for batch in sampler]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def test_without_shuffling_batches_follow_the_index() -> None:
    sampler = BatchKeySampler(SQUARE, batch_size=4, shuffle=False, seed=0)
    assert positions(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(sampler) == 3


def test_an_epoch_draws_every_sample_once_in_its_own_order() -> None:
    sampler = BatchKeySampler(SQUARE, batch_size=4, shuffle=True, seed=0)
    first = positions(sampler)
    assert positions(sampler) == first
    sampler.set_epoch(1)
    second = positions(sampler)
    assert second != first
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(10))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one_process(world_size: int) -> None:
    whole = positions(BatchKeySampler(SQUARE, batch_size=8, shuffle=True, seed=5))
    shares = [
        positions(BatchKeySampler(SQUARE, batch_size=8, shuffle=True, seed=5, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    joined = [flat(parts) for parts in zip(*shares, strict=True)]
    assert joined[0] == whole[0]
    assert joined[1][:2] == whole[1]  # the last batch has two samples, repeated until every rank has some
    assert len(joined[1]) % world_size == 0
    assert set(joined[1]) == set(whole[1])


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size 5 cannot be split by 2"):
        BatchKeySampler(SQUARE, batch_size=5, shuffle=True, seed=0, world_size=2)


def test_batches_hold_one_shape() -> None:
    shapes = [(32, 64), (64, 32), (32, 64), (32, 64), (64, 32), (32, 64)]
    for shuffle in (False, True):
        sampler = BatchKeySampler(shapes, batch_size=3, shuffle=shuffle, seed=0)
        batches = positions(sampler)
        assert len(sampler) == len(batches) == 3
        assert sorted(flat(batches)) == list(range(6))
        assert all(len({shapes[position] for position in batch}) == 1 for batch in batches)


def test_weights_decide_how_often_samples_and_partners_come() -> None:
    sampler = BatchKeySampler(SQUARE, batch_size=4, shuffle=True, seed=0)
    sampler.set_weights(np.array([0, 1, 3] + [0] * 7))
    counts: Counter[int] = Counter()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        keys = [key for batch in sampler for key in batch]
        assert len(keys) == 10
        assert all(set(key[2:]) <= {1, 2} for key in keys)
        counts.update(key[1] for key in keys)
    assert set(counts) == {1, 2}
    assert counts[2] / 400 == pytest.approx(0.75, abs=0.08)
    sampler.set_weights(None)
    assert sorted(flat(positions(sampler))) == list(range(10))


@pytest.mark.parametrize("weights", [[1.0], [-1.0] + [1.0] * 9, [0.0] * 10, [float("nan")] * 10])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 10 numbers"):
        BatchKeySampler(SQUARE, batch_size=4, shuffle=True, seed=0).set_weights(np.array(weights))


def test_workers_do_not_change_a_bit_and_epochs_reach_them(tmp_path: Path) -> None:
    dataset = DetectionDataset(build_index(tmp_path, num_images=10), img_size=64, hyp=Hyp(), augment=True)
    alone = build_loader(dataset, batch_size=4, workers=0, shuffle=True)
    helped = build_loader(dataset, batch_size=4, workers=2, shuffle=True)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        for first, second in zip(alone, helped, strict=True):
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.targets, second.targets)
            assert first.infos == second.infos
    assert len(helped) == 3


def test_targets_know_their_image(tmp_path: Path) -> None:
    dataset = DetectionDataset(build_index(tmp_path), img_size=64, hyp=Hyp())
    (batch,) = build_loader(dataset, batch_size=6, workers=0)
    assert batch.images.shape == (6, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.targets[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.targets[:, 1].tolist() == [0, 1, 0, 1, 0, 1]
    assert [info.index for info in batch.infos] == list(range(6))


def test_rect_batches_have_the_least_shape(tmp_path: Path) -> None:
    write_set(tmp_path, {str(number): "0 0.5 0.5 0.5 0.5\n" for number in range(4)}, hw=(40, 64))
    write_image(tmp_path / "images" / "train" / "2.png", (64, 20))
    index = build_label_index(load_data_config(tmp_path / "data.yaml"), "train")
    dataset = DetectionDataset(index, img_size=64, hyp=Hyp(), rect=True)
    shapes = {tuple(batch.images.shape) for batch in build_loader(dataset, batch_size=4, workers=0)}
    assert shapes == {(3, 3, 64, 64), (1, 3, 64, 32)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line_from_any_process(tmp_path: Path, workers: int) -> None:
    index = build_index(tmp_path)
    Path(index.paths[2]).write_bytes(b"")
    loader = build_loader(DetectionDataset(index, img_size=64, hyp=Hyp()), batch_size=6, workers=workers)
    with pytest.raises(DataError, match=r"^image [^\n]*002.png cannot be read[^\n]*$"):
        list(loader)


def sample(number: int) -> Sample:
    info = ImageInfo(path="", index=number, original_hw=(8, 8), padding=(2.0, 0.0))
    image = torch.full((3, 8, 8), number, dtype=torch.uint8)
    return Sample(image=image, targets=torch.tensor([[number, 0.5, 0.5, 1.0, 1.0]]), info=info)


def test_four_samples_become_one_of_twice_the_size() -> None:
    kinds = set()
    for start in range(0, 40, 4):
        batch = quad_collate([sample(start + i) for i in range(4)])
        assert batch.images.shape == (1, 3, 16, 16)
        if len(batch.targets) == 1:
            kinds.add("enlarged")
            assert (batch.images == start).all()
            assert (batch.infos[0].scale, batch.infos[0].padding) == (2.0, (4.0, 0.0))
        else:
            kinds.add("joined")
            assert batch.images[0, 0, ::8, ::8].tolist() == [[start, start + 1], [start + 2, start + 3]]
            expected = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
            assert [(x, y) for _, _, x, y, _, _ in batch.targets.tolist()] == expected
            assert (batch.targets[:, 4:] == 0.5).all()
    assert kinds == {"enlarged", "joined"}


def test_quad_batches_come_from_the_loader_even_if_four_do_not_divide(tmp_path: Path) -> None:
    dataset = DetectionDataset(build_index(tmp_path), img_size=64, hyp=Hyp())
    (batch,) = build_loader(dataset, batch_size=8, workers=0, quad=True)
    assert batch.images.shape == (2, 3, 128, 128)


def test_class_and_image_weights_favour_rare_classes() -> None:
    labels = [np.array([[0, 0, 0, 0, 0]] * 3, np.float32), np.array([[1, 0, 0, 0, 0]], np.float32)]
    assert class_counts(labels, 3).tolist() == [[3, 0, 0], [0, 1, 0]]
    weights = labels_to_class_weights(labels, 3)
    # 1/3, 1 and (no box, counted as one) 1, over their sum 7/3.
    np.testing.assert_allclose(weights, [1 / 7, 3 / 7, 3 / 7])
    np.testing.assert_allclose(image_weights(labels, weights), [3 / 7, 3 / 7])
    np.testing.assert_array_equal(image_weights(labels, np.zeros(3)), [1, 1])
