"""The experiments with classifiers, each from its command to its table, on a handful of drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.training.checkpointing import CheckpointHook
from engine.training.trainer import Trainer
from examples import lenet_mnist, repr_cifar, slim_cifar, stages
from examples.lenet_mnist import LenetConfig
from examples.repr_cifar import ReprCifarConfig
from examples.slim_cifar import SlimClassifierConfig
from utils.errors import ConfigError, PruningError


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


def stripes(tmp_path: Path) -> str:
    return pictures(tmp_path / "stripes.npz", shape=(32, 32, 3), count=128)


def test_lenet_is_pruned_quantised_stored_and_read_without_torch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = pictures(tmp_path / "digits.npz", shape=(28, 28), count=1024)
    lenet_mnist.run(
        LenetConfig(data=data, epochs=4, finetune_epochs=3, bits=(8,), calib_images=500, project=str(tmp_path))
    )
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
    data = stripes(tmp_path)
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
    data = stripes(tmp_path)
    repr_cifar.run(
        ReprCifarConfig(
            data=data, epochs=3, s1=1, s2=1, cycles=1, seeds=(0, 1), augments=("none",), project=str(tmp_path)
        )
    )
    (row,) = json.loads((tmp_path / "exp/result.json").read_text())["rows"]
    assert len(row["plain"]) == len(row["repr"]) == len(row["gains"]) == 2
    assert row["gains"] == pytest.approx([100 * (b - a) for a, b in zip(row["plain"], row["repr"], strict=True)])
    assert (tmp_path / "exp/repr_none_seed1/repr.json").is_file()


def unwanted(*_: Any, **__: Any) -> None:
    pytest.fail("what was pruned is pruned again")


SHORT_SLIMMING = {"model": "vanilla", "percent": 0.4, "epochs": 1, "sparse_epochs": 1, "finetune_epochs": 1}


@pytest.mark.parametrize("how", [{}, {"percent": None, "method": "taylor", "target": "macs=60%", "updates": 1}])
def test_experiment_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    values = {**SHORT_SLIMMING, "finetune_epochs": 3, "data": stripes(tmp_path), "project": str(tmp_path), **how}
    slim_cifar.run(SlimClassifierConfig(**values, name="whole"))
    saved = []

    def die_in_the_last_stage(self: CheckpointHook, trainer: Trainer) -> None:
        whole_epoch_end(self, trainer)
        saved.append(self.folder.parent.name)
        if saved.count("fine-tuned") == 2:
            raise KeyboardInterrupt

    whole_epoch_end = CheckpointHook.epoch_end
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointHook, "epoch_end", die_in_the_last_stage)
        with pytest.raises(KeyboardInterrupt):
            slim_cifar.run(SlimClassifierConfig(**values, name="killed"))
    done = (tmp_path / "killed/dense/weights/last.pt").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(stages, "run_pruning", unwanted)
        slim_cifar.run(SlimClassifierConfig(**values, name="killed", exist_ok=True))
    whole, killed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed"))
    assert killed["rows"] == whole["rows"]
    assert (tmp_path / "killed/dense/weights/last.pt").stat().st_mtime_ns == done
    assert len((tmp_path / "killed/fine-tuned/results.csv").read_text().splitlines()) == 1 + 3


def test_folder_of_other_settings_is_not_gone_on_in(tmp_path: Path) -> None:
    values = {**SHORT_SLIMMING, "data": stripes(tmp_path), "project": str(tmp_path), "exist_ok": True}
    slim_cifar.run(SlimClassifierConfig(**values))
    before = (tmp_path / "exp/opt.yaml").read_text()
    with pytest.raises(ConfigError, match=r"exp was made with --epochs 1, not 9; give another --name"):
        slim_cifar.run(SlimClassifierConfig(**{**values, "epochs": 9}))
    assert (tmp_path / "exp/opt.yaml").read_text() == before


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (LenetConfig, {"sparsity": 1.5}, "sparsity 1.5: expected a share"),
        (LenetConfig, {"bits": (17,)}, "weight_bits: got 17, expected"),
        (LenetConfig, {"calib_images": 0}, "--calib-images 0: expected at least 1"),
        (LenetConfig, {"finetune_epochs": 0}, "--finetune-epochs 0: expected at least 1"),
        (ReprCifarConfig, {"epochs": 90}, "does not fit a run of 90"),
        (ReprCifarConfig, {"seeds": ()}, "--seeds and --augments: give at least one"),
        (ReprCifarConfig, {"ratio": 1.5}, "RePr ratio is 1.5"),
        (SlimClassifierConfig, {"percent": 1.7}, "--percent 1.7: expected a share"),
        (SlimClassifierConfig, {"round": "foo"}, "--round foo"),
        (SlimClassifierConfig, {"target": "wat=3"}, "--target wat=3"),
        (SlimClassifierConfig, {"sr": -1.0}, "--sr -1.0: expected 0 or a positive number"),
        (SlimClassifierConfig, {"sr": float("nan")}, "--sr nan: expected 0 or a positive number"),
        (SlimClassifierConfig, {"method": "taylor", "target": "macs=50%", "updates": -1}, "--updates -1"),
    ],
)
def test_settings_are_refused_before_anything_trains(
    config: type[LenetConfig] | type[ReprCifarConfig] | type[SlimClassifierConfig],
    values: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**values)


def test_network_without_batch_norm_is_refused_before_it_trains(tmp_path: Path) -> None:
    data = pictures(tmp_path / "digits.npz", shape=(28, 28), count=64)
    config = SlimClassifierConfig(data=data, model="lenet5", project=str(tmp_path))
    with pytest.raises(PruningError, match="batch norm"):
        slim_cifar.run(config)
    assert [path.name for path in (tmp_path / "exp").iterdir()] == ["opt.yaml"]


@pytest.mark.parametrize("method", ["slimming", "taylor"])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("macs=150%", "--target macs=150%: resnet20 has 4.081e"),
        ("macs=100G", "--target macs=100G: resnet20 has 4.081e"),
        ("macs=0.1%", "cannot be reached"),
    ],
)
def test_impossible_target_is_refused_before_the_dense_training(
    tmp_path: Path, method: str, target: str, message: str
) -> None:
    values = {"model": "resnet20", "method": method, "target": target}
    config = SlimClassifierConfig(data=stripes(tmp_path), project=str(tmp_path), **values)  # type: ignore[arg-type]
    with pytest.raises((ConfigError, PruningError), match=message):
        slim_cifar.run(config)
    assert [path.name for path in (tmp_path / "exp").iterdir()] == ["opt.yaml"]


def test_share_of_no_filter_is_refused_before_plain_training(tmp_path: Path) -> None:
    config = ReprCifarConfig(data=stripes(tmp_path), ratio=0.001, project=str(tmp_path))
    with pytest.raises(ConfigError, match="that drops 0 of 64 filters; give a larger share"):
        repr_cifar.run(config)
    assert [path.name for path in (tmp_path / "exp").iterdir()] == ["opt.yaml"]
