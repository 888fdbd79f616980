"""Classes are matched by name, whatever order the data set lists them in, by every command that meets a network."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from interruption import KillAfter, Killed, assert_same_weights
from tiny import tiny_config, tiny_data

from commands.export import run_export
from commands.export_config import ExportConfig
from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune import run_pruning
from commands.prune_config import PruneConfig
from commands.quantize import run_quantization
from commands.quantize_config import QuantizeConfig
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from commands.val import val
from commands.val_config import ValConfig
from engine.evaluation.detection_scores import DetectionScores
from models.detector import Detector
from utils.errors import ConfigError, DataError
from utils.storage.checkpoint import load_checkpoint, save_checkpoint

NAMES = ("RBC", "WBC", "Platelets")
OTHER_ORDER = ("Platelets", "RBC", "WBC")
SIZE = 160


@dataclass(frozen=True, kw_only=True)
class Place:
    """A trained network, and its data set in two orders of classes."""

    folder: Path
    weights: str
    data: Path
    other: Path


def write_other_order(target: Path, *, names: tuple[str, ...] = OTHER_ORDER) -> Path:
    """Copy the tiny data set with its labels renumbered for `names`."""
    source = tiny_data(target / "source")
    for split in ("train", "val"):
        for image in map(Path, (source.parent / f"{split}.txt").read_text().splitlines()):
            label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            place = target / "images" / split / image.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, place)
            lines = [line.split() for line in label.read_text().splitlines()]
            renumbered = [f"{names.index(NAMES[int(line[0])])} {' '.join(line[1:])}\n" for line in lines]
            written = target / "labels" / split / label.name
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text("".join(renumbered))
    yaml = target / "other.yaml"
    yaml.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n")
    return yaml


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("order")
    config = tiny_config(folder, epochs=12, img_size=(SIZE,), optimizer="adamw", lr0=0.01, cache_images=True)
    result = run_training(config)
    assert result is not None
    return Place(
        folder=folder,
        weights=str(result.best),
        data=folder / "data/tiny.yaml",
        other=write_other_order(folder / "other"),
    )


def measured(place: Place, weights: str, data: Path, **settings: Any) -> DetectionScores:
    project = str(place.folder / "val")
    common = {"img_size": SIZE, "workers": 0, "device": "cpu", "cache_dir": str(place.folder / "cache")}
    found = val(ValConfig(weights=(weights,), data=str(data), project=project, **common, **settings))
    assert isinstance(found, DetectionScores)
    return found


def still(place: Place, folder: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a training that changes next to nothing, on the other order."""
    config = tiny_config(folder, epochs=1, img_size=(SIZE,), lr0=1e-12, data=str(place.other), cfg="")
    values = {name: getattr(config, name) for name in vars(config)}
    return {**values, "weights": place.weights, **settings}


def test_val_gives_the_same_numbers(place: Place) -> None:
    first, second = measured(place, place.weights, place.data), measured(place, place.weights, place.other)
    assert first.metrics.AP50 > 0.02
    for name, numbers in first.metrics.per_class.items():
        assert second.metrics.per_class[name] == pytest.approx(numbers, abs=1e-6)


@pytest.mark.parametrize(
    ("train", "config_type"),
    [(run_training, TrainConfig), (run_sparsity_training, SparsityConfig), (run_finetuning, FinetuneConfig)],
)
def test_training_on_keeps_the_order_of_the_network(
    place: Place, tmp_path: Path, train: Any, config_type: type[TrainConfig]
) -> None:
    extra = {FinetuneConfig: {"teacher": place.weights}, SparsityConfig: {"st": False}}.get(config_type, {})
    result = train(config_type(**still(place, tmp_path, **extra)))
    assert load_checkpoint(result.best).names == NAMES
    before = measured(place, place.weights, place.data).metrics
    assert pytest.approx(before.AP50, abs=0.02) == result.evaluation.metrics.AP50


def test_a_run_goes_on_in_its_own_order(place: Place, tmp_path: Path) -> None:
    """Between kill and resume the data set was written anew in another order: the run does not notice."""
    data = tiny_data(tmp_path / "set")
    config = tiny_config(tmp_path, epochs=3, data=str(data), cache_dir="")
    whole = run_training(replace(config, name="whole"))
    assert whole is not None
    with pytest.raises(Killed):
        run_training(replace(config, name="killed"), hooks=lambda *_: [KillAfter(1)])
    data.write_text(write_other_order(tmp_path / "anew").read_text().replace("images/", f"{tmp_path}/anew/images/"))
    last = tmp_path / "runs/killed/weights/last.pt"
    again = run_training(TrainConfig(resume=str(last), device="cpu"))
    assert again is not None
    assert load_checkpoint(again.best).names == NAMES
    assert_same_weights(whole.last, again.last)


def test_pruning_measures_the_same(place: Place, tmp_path: Path) -> None:
    found = run_pruning(
        PruneConfig(
            weights=place.weights,
            data=str(place.other),
            percent=0.1,
            round="none",
            img_size=SIZE,
            device="cpu",
            workers=0,
            noplots=True,
            project=str(tmp_path),
        )
    )
    assert isinstance(found.before, DetectionScores)
    assert pytest.approx(measured(place, place.weights, place.data).metrics.AP, abs=1e-6) == found.before.metrics.AP
    assert isinstance(found.model, Detector)


def test_an_export_measures_the_same(place: Place, tmp_path: Path) -> None:
    common = {"weights": place.weights, "include": ("onnx",), "img_size": (SIZE,), "workers": 0}
    places = {"output": str(tmp_path), "project": str(tmp_path / "runs"), "verify_images": 2, "threads": 1}
    assert run_export(ExportConfig(data=str(place.other), dynamic=True, **common, **places))


def test_quantisation_measures_the_same(place: Place, tmp_path: Path) -> None:
    results = [
        run_quantization(
            QuantizeConfig(
                weights=place.weights,
                data=str(data),
                img_size=(SIZE,),
                calib_images=4,
                workers=0,
                threads=1,
                output=str(tmp_path / data.stem),
                project=str(tmp_path / "runs"),
            )
        )
        for data in (place.data, place.other)
    ]
    assert results[0] is not None


def with_names(place: Place, path: Path, names: tuple[str, ...]) -> str:
    """Write a copy of the network that calls its classes otherwise."""
    save_checkpoint(replace(load_checkpoint(place.weights), names=names), path)
    return str(path)


def test_networks_of_other_orders_make_no_ensemble(place: Place, tmp_path: Path) -> None:
    other = with_names(place, tmp_path / "other.pt", OTHER_ORDER)
    with pytest.raises(ConfigError, match="list their classes in different orders"):
        val(ValConfig(weights=(place.weights, other), data=str(place.data), img_size=SIZE, workers=0, device="cpu"))


def test_other_classes_are_refused_by_name_everywhere(place: Place, tmp_path: Path) -> None:
    other = with_names(place, tmp_path / "other.pt", ("RBC", "WBC", "Blasts"))
    common = {"weights": other, "data": str(place.data), "project": str(tmp_path / "runs")}
    finding = "'Blasts'"
    with pytest.raises(ConfigError, match=finding):
        val(ValConfig(**{**common, "weights": (other,)}, img_size=SIZE, workers=0, device="cpu"))
    with pytest.raises(ConfigError, match=finding):
        run_pruning(PruneConfig(**common, img_size=SIZE, device="cpu", workers=0))
    with pytest.raises(ConfigError, match=finding):
        run_export(ExportConfig(**common, include=("onnx",), img_size=(SIZE,), workers=0))
    with pytest.raises(ConfigError, match=finding):
        run_quantization(QuantizeConfig(**common, img_size=(SIZE,), calib_images=4, workers=0))
    with pytest.raises(DataError, match="Blasts"):
        run_finetuning(FinetuneConfig(**still(place, tmp_path, weights=other, data=str(place.data))))
    assert not (tmp_path / "runs").exists()
