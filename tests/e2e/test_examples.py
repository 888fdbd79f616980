"""The experiments with classifiers, each from its command to its table, on a handful of drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from examples import lenet_mnist, repr_cifar, slim_cifar
from examples.lenet_mnist import LenetConfig
from examples.repr_cifar import ReprCifarConfig
from examples.slim_cifar import SlimClassifierConfig
from utils.errors import ConfigError


def pictures(path: Path, *, shape: tuple[int, ...], count: int) -> str:
    """An .npz of bright stripes, whose place is the class."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", count), ("test", 64)):
        labels = np.arange(number) % 4
        images = generator.integers(0, 80, (number, *shape), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[6 * label : 6 * label + 6] += 150
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(path, **arrays)
    return str(path)


def test_lenet_is_pruned_quantised_stored_and_read_without_torch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = pictures(tmp_path / "digits.npz", shape=(28, 28), count=1024)
    lenet_mnist.run(LenetConfig(data=data, epochs=4, finetune_epochs=3, bits=(8,), project=str(tmp_path)))
    rows = json.loads((tmp_path / "exp/result.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == [
        *("dense float32", "90% zeros, float32"),
        *(f"8 bit integer, {layout}" for layout in ("dense", "coo", "csr", "csc")),
    ]
    assert all(row["accuracy"] > 0.9 for row in rows)
    assert all(row["num_bytes"] * 12 < rows[0]["num_bytes"] for row in rows[3:])
    assert (tmp_path / "exp/network_8bit_csr.npz").is_file()
    assert (tmp_path / "exp/network_8bit.yaml").is_file()
    assert "8 bit integer, csr" in caplog.text


@pytest.mark.parametrize("method", ["slimming", "taylor"])
def test_classifier_gets_smaller_and_its_stages_are_told(tmp_path: Path, method: str) -> None:
    data = pictures(tmp_path / "stripes.npz", shape=(32, 32, 3), count=128)
    how = {"percent": 0.4} if method == "slimming" else {"target": "macs=60%", "updates": 1}
    epochs = dict.fromkeys(("epochs", "sparse_epochs", "finetune_epochs"), 1)
    config = SlimClassifierConfig(
        model="resnet20",
        data=data,
        method=method,  # type: ignore[arg-type]
        project=str(tmp_path),
        **how,  # type: ignore[arg-type]
        **epochs,
    )
    slim_cifar.run(config)
    rows = json.loads((tmp_path / "exp/result.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["dense", *(["sparse"] if method == "slimming" else []), "fine-tuned"]
    assert rows[-1]["macs"] < 0.7 * rows[0]["macs"]
    assert rows[-1]["parameters"] < 0.7 * rows[0]["parameters"]


def test_slimming_refuses_what_contradicts_itself() -> None:
    with pytest.raises(ConfigError, match="--percent and --target both say how much"):
        SlimClassifierConfig(percent=0.5, target="macs=50%")
    with pytest.raises(ConfigError, match="--method taylor prunes until --target macs="):
        SlimClassifierConfig(method="taylor")


def test_repr_is_compared_with_plain_training_seed_by_seed(tmp_path: Path) -> None:
    data = pictures(tmp_path / "stripes.npz", shape=(32, 32, 3), count=128)
    repr_cifar.run(
        ReprCifarConfig(
            data=data, epochs=3, s1=1, s2=1, cycles=1, seeds=(0, 1), augments=("none",), project=str(tmp_path)
        )
    )
    (row,) = json.loads((tmp_path / "exp/result.json").read_text())["rows"]
    assert len(row["plain"]) == len(row["repr"]) == len(row["gains"]) == 2
    assert row["gains"] == pytest.approx([100 * (b - a) for a, b in zip(row["plain"], row["repr"], strict=True)])
    assert (tmp_path / "exp/repr_none_seed1/repr.json").is_file()
