"""A folder of class folders trains like images in memory; the task follows from data and network."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import KillAfter, Killed, assert_same_weights
from tiny import TINY_CFG, tiny_data
from tiny_classes import classifier_config, write_class_folder

from commands.train import run_training, train
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from models.classifiers import ClassifierSpec, build_classifier, load_classifier
from models.detector import build_model
from models.spec import ModelSpec
from tasks.choose import CLASSIFICATION, DETECTION, task_of
from utils.config.cli import run_script
from utils.errors import ConfigError, DataError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def run(config: TrainConfig, **hooks: Any) -> TrainResult:
    """As train.py does, which finds the task out."""
    result = run_training(config, **hooks)
    assert result is not None
    return result


def save_classifier(folder: Path) -> Path:
    spec = ClassifierSpec(name="lenet5", num_classes=2, image_chw=(1, 28, 28), mean=(0.5,), std=(0.25,))
    weights = build_classifier("lenet5", num_classes=2, in_channels=1).state_dict()
    save_checkpoint(
        Checkpoint(spec=spec.to_dict(), names=("left", "right"), weights=weights), folder / "classifier.pt"
    )
    return folder / "classifier.pt"


def save_detector(folder: Path) -> Path:
    spec = ModelSpec.from_yaml(TINY_CFG)
    checkpoint = Checkpoint(spec=spec.to_dict(), names=("a", "b", "c"), weights=build_model(spec).state_dict())
    save_checkpoint(checkpoint, folder / "detector.pt")
    return folder / "detector.pt"


def folder_config(folder: Path, **settings: Any) -> TrainConfig:
    data = folder / "images"
    if not data.exists():
        write_class_folder(data)
    common: dict[str, Any] = {
        "cfg": "vanilla",
        "data": str(data),
        "img_size": 32,
        "epochs": 2,
        "batch_size": 8,
        "nominal_batch": 8,
    }
    return classifier_config(folder, **{**common, **settings})


def test_folder_of_class_folders_trains(tmp_path: Path) -> None:
    result = run(folder_config(tmp_path, epochs=8))
    loaded = load_classifier(result.best)
    assert (loaded.spec.name, loaded.spec.image_chw, loaded.names) == ("vanilla", (3, 32, 32), ("left", "right"))
    assert result.evaluation.images == 12
    assert result.evaluation.score > 0.8
    assert set(result.final) == {"accuracy", "loss"}


def test_killed_run_on_a_folder_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    config = folder_config(tmp_path, epochs=3, augment="resized-crop")
    whole = run(replace(config, name="whole"))
    with pytest.raises(Killed):
        run(replace(config, name="killed"), hooks=lambda *_: [KillAfter(1)])
    resumed = run(TrainConfig(resume=str(tmp_path / "runs/killed/weights/last.pt"), device="cpu"))
    assert_same_weights(whole.last, resumed.last)
    assert_same_weights(whole.best, resumed.best)
    assert (whole.folder / "results.csv").read_text() == (resumed.folder / "results.csv").read_text()
    assert whole.evaluation.to_dict()["confusion"] == resumed.evaluation.to_dict()["confusion"]


def test_network_of_a_library_trains_and_is_read_back(tmp_path: Path) -> None:
    result = run(folder_config(tmp_path, cfg="torchvision:resnet18", epochs=1))
    loaded = load_classifier(result.last)
    assert (loaded.spec.name, loaded.spec.num_classes) == ("torchvision:resnet18", 2)
    assert all(value.isfinite().all() for value in loaded.model.state_dict().values())
    assert loaded.model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_run_without_a_network_takes_resnet20_and_is_read_back(tmp_path: Path) -> None:
    result = run(folder_config(tmp_path, cfg="", epochs=1))
    assert load_classifier(result.best).spec.name == "resnet20"


def test_training_on_keeps_size_and_order_of_the_network(tmp_path: Path) -> None:
    """The other data set has the same classes in another order, and no size of its own."""
    first = run(folder_config(tmp_path, epochs=8))
    assert first.evaluation.score > 0.8
    other = write_class_folder(tmp_path / "other", names=("right", "left"))
    assert load_checkpoint(first.best).names == ("left", "right")
    # Its first logit is now that of what `other` calls right.
    save_checkpoint(replace(load_checkpoint(first.best), names=("right", "left")), tmp_path / "turned.pt")
    still = {"cfg": "", "img_size": (), "epochs": 1, "lr0": 1e-12, "weight_decay": 0.0, "augment": "none"}
    second = run(
        folder_config(tmp_path, data=str(other), weights=str(tmp_path / "turned.pt"), name="second", **still)
    )
    assert load_checkpoint(second.last).names == ("right", "left")
    assert load_classifier(second.last).spec.image_chw == (3, 32, 32)
    assert second.evaluation.score == pytest.approx(first.evaluation.score, abs=0.1)


def test_plain_weights_start_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = load_checkpoint(run(folder_config(tmp_path, epochs=1)).last).weights
    for name in ("plain.pth", "plain.pt", "legacy.pth", "legacy.pt"):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name.startswith("plain"))
        with caplog.at_level(logging.INFO):
            run(folder_config(tmp_path, epochs=1, weights=str(tmp_path / name), name=name))
        assert f"{len(state)} of {len(state)} tensors from {tmp_path / name}" in caplog.text


def test_named_network_starts_from_a_checkpoint_for_other_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(folder_config(tmp_path, epochs=1))
    other = str(write_class_folder(tmp_path / "other", names=("up", "down")))
    write_class_folder(tmp_path / "other", names=("in", "out"))
    with pytest.raises(ConfigError, match=r"has 2 classes .* has 4 .*--cfg"):
        run(folder_config(tmp_path, cfg="", data=other, weights=str(first.best)))
    with caplog.at_level(logging.INFO):
        second = run(folder_config(tmp_path, epochs=1, data=other, weights=str(first.best), name="other"))
    assert "2 other shape, left random: " in caplog.text
    assert load_classifier(second.best).names == ("down", "in", "out", "up")


@pytest.mark.parametrize(
    ("given", "finding"),
    [
        ({"data": "FOLDER", "cfg": TINY_CFG}, "--data FOLDER is for classification, --cfg .* is for detection"),
        ({"data": "YAML", "cfg": "resnet20"}, "--data YAML is for detection, --cfg resnet20 is for classification"),
        ({"data": "YAML", "cfg": "timm:any"}, "--data YAML is for detection, --cfg timm:any is for classification"),
        ({"data": "YAML", "weights": "CLASSIFIER"}, "--weights CLASSIFIER is for classification"),
        ({"data": "FOLDER", "weights": "DETECTOR"}, "--weights DETECTOR is for detection"),
        ({"data": "mnist", "cfg": "yolov5s.yaml"}, "--data mnist is for classification"),
        ({"cfg": TINY_CFG, "weights": "CLASSIFIER"}, "--weights CLASSIFIER is for classification"),
    ],
)
def test_data_and_network_of_two_tasks_are_refused_in_one_line(
    tmp_path: Path, given: dict[str, str], finding: str
) -> None:
    places = {"FOLDER": str(write_class_folder(tmp_path / "images")), "YAML": str(tiny_data(tmp_path / "data"))}
    places |= {"CLASSIFIER": str(save_classifier(tmp_path)), "DETECTOR": str(save_detector(tmp_path))}
    for word, place in places.items():
        finding = finding.replace(word, place)
    with pytest.raises(ConfigError, match=finding) as caught:
        task_of(**{name: places.get(value, value) for name, value in given.items()})
    assert str(caught.value).endswith("; give data and network of one task")
    assert "\n" not in str(caught.value)


def test_data_that_does_not_exist_is_refused_as_such(tmp_path: Path) -> None:
    missing = str(tmp_path / "photoss")
    assert task_of(data=missing, cfg="resnet20") is CLASSIFICATION
    with pytest.raises(DataError, match="no such images"):
        run(classifier_config(tmp_path, cfg="resnet20", data=missing))


def test_size_that_images_do_not_get_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = run(folder_config(tmp_path, epochs=1))
    assert "--img-size" not in caplog.text
    run(folder_config(tmp_path, cfg="", weights=str(first.best), img_size=24, epochs=1))
    assert "--img-size 24 has no effect: the images have 32 x 32 pixels" in caplog.text


def test_run_of_two_tasks_is_one_line_at_the_command_line_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, project = str(write_class_folder(tmp_path / "images")), str(tmp_path / "runs")
    with pytest.raises(SystemExit) as caught:
        run_script(train, TrainConfig, argv=["--data", data, "--cfg", TINY_CFG, "--project", project])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --data {data} is for classification, --cfg {TINY_CFG} is for detection; give data and network of "
        "one task\n"
    )
    assert not Path(project).exists()


def test_task_is_that_of_data_or_network_and_else_detection(tmp_path: Path) -> None:
    folder, classifier = str(write_class_folder(tmp_path / "images")), str(save_classifier(tmp_path))
    for given in ({"data": folder}, {"cfg": "resnet20"}, {"cfg": "torchvision:resnet18"}, {"weights": classifier}):
        assert task_of(**given) is CLASSIFICATION
    assert task_of(data=folder, cfg="vgg16", weights=classifier) is CLASSIFICATION
    for given in ({}, {"cfg": "yolov5n.yaml"}, {"data": "some.yaml"}, {"weights": str(save_detector(tmp_path))}):
        assert task_of(**given) is DETECTION
