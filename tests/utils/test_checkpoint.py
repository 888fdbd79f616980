"""Our checkpoint files, and what is said about files that are something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.errors import CheckpointError
from utils.storage.checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint, strip


def example() -> Checkpoint:
    return Checkpoint(
        spec={"num_classes": 1, "layers": [[-1, 1, "Conv", [8]]]},
        names=("cell",),
        weights={"w": torch.tensor([0.1, 2.0]), "n": torch.tensor(3)},
        ema={"w": torch.tensor([0.2, 1.0]), "n": torch.tensor(3)},
        ema_updates=7,
        optimizer={"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        epoch=4,
        metrics={"AP": 0.5},
        config={"batch_size": 16, "hyp": None},
        training_state={"torch_rng": torch.get_rng_state(), "best": 0.25},
    )


def test_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    save_checkpoint(example(), tmp_path / "last.pt")
    back, first = load_checkpoint(tmp_path / "last.pt"), example()
    assert back.names == ("cell",)
    assert (back.epoch, back.ema_updates, back.metrics, back.config) == (4, 7, {"AP": 0.5}, first.config)
    assert back.ema is not None
    assert torch.equal(back.weights["w"], first.weights["w"])
    assert torch.equal(back.ema["w"], torch.tensor([0.2, 1.0]))
    assert torch.equal(back.optimizer["state"][0]["momentum_buffer"], torch.ones(2))
    assert back.training_state["best"] == 0.25


def test_file_needs_no_pickled_code(tmp_path: Path) -> None:
    save_checkpoint(example(), tmp_path / "last.pt")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["format"] == FORMAT


def test_half_file_stores_float16_and_comes_back_as_float32(tmp_path: Path) -> None:
    large = replace(example(), weights={"w": torch.tensor([0.1]), "variance": torch.tensor([1e6])})
    save_checkpoint(large, tmp_path / "half.pt", half=True)
    stored = torch.load(tmp_path / "half.pt", weights_only=True)["weights"]
    assert (stored["w"].dtype, stored["variance"].dtype) == (torch.float16, torch.float32)
    back = load_checkpoint(tmp_path / "half.pt").weights
    assert back["w"].dtype == torch.float32
    assert back["variance"].item() == 1e6


def test_best_weights_are_the_moving_average() -> None:
    assert example().best_weights["w"][0] == pytest.approx(0.2)
    assert replace(example(), ema=None).best_weights["w"][0] == pytest.approx(0.1)


def test_stripped_checkpoint_keeps_the_average_and_no_optimiser() -> None:
    small = strip(example())
    assert small.weights["w"][0] == pytest.approx(0.2)
    assert (small.ema, small.optimizer, small.training_state) == (None, None, {})
    assert (small.names, small.epoch, small.metrics) == (("cell",), 4, {"AP": 0.5})


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(example(), path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_checkpoint(replace(example(), config={"function": lambda: None}), path)
    assert load_checkpoint(path).epoch == 4
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def whole_file(tmp_path: Path) -> bytes:
    save_checkpoint(example(), tmp_path / "whole.pt")
    return (tmp_path / "whole.pt").read_bytes()


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"", "are empty"),
        (b"\n<!DOCTYPE html><html>", "are a web page"),
        (b"hello", "are not a checkpoint"),
        (b"\x80\x02\x8a", "before 1.6"),
        (b"PK\x03\x04 and no more", "are truncated"),
    ],
)
def test_other_file_is_named_for_what_it_is(content: bytes, finding: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert finding in str(caught.value)
    assert str(path) in str(caught.value)


def test_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    content = whole_file(tmp_path)
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="are a folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(CheckpointError, match="are an exported network; give the .pt file it was made from"):
        load_checkpoint(tmp_path)


def test_arrays_of_numpy_are_refused_as_such(tmp_path: Path) -> None:
    np.savez(tmp_path / "network.npz", weight=np.zeros(3))
    with pytest.raises(CheckpointError, match="are numpy arrays, as quantize.py writes them; give the .pt file"):
        load_checkpoint(tmp_path / "network.npz")


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"version": 99}, "format version 99"),
        ({"format": "other"}, "not a checkpoint of this project"),
        ({"names": 3}, "lack a valid 'names'"),
        ({"weights": {}}, "have no tensors"),
        ({"ema": {"w": 1}}, "have no tensors"),
        ({"epoch": None}, "lack a valid 'epoch'"),
    ],
)
def test_wrong_content_is_named(change: dict[str, object], finding: str, tmp_path: Path) -> None:
    whole_file(tmp_path)
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    torch.save({**content, **change}, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match=finding):
        load_checkpoint(tmp_path / "wrong.pt")


def test_missing_value_is_named(tmp_path: Path) -> None:
    whole_file(tmp_path)
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    del content["ema"]
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match="lack a valid 'ema'"):
        load_checkpoint(tmp_path / "wrong.pt")


def test_empty_weights_are_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        replace(example(), weights={})
