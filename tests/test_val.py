import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.val import val
from commands.val_config import ValConfig
from tasks import detection
from utils.errors import CheckpointError, ConfigError
from utils.metrics.coco import TWELVE

SHARED = Path(__file__).parents[2] / "shared"


class _Runtime:
    """A network of stride 32 that sees a box of its anchor's size in the middle of the upper left cell."""

    names = ("cat", "dog")
    num_classes = 2
    anchors = torch.tensor([[[32.0, 32.0]]])
    strides = (32,)
    input_hw: tuple[int, int] | None = None

    def __call__(self, images):
        batch, _, height, width = images.shape
        head = torch.full((batch, 1, height // 32, width // 32, 7), -9.0)
        head[:, :, 0, 0] = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 9.0, -9.0])
        return [head]


@pytest.fixture
def data_yaml(tmp_path, monkeypatch):
    """Three 64 x 64 pictures with a cat in the upper left quarter; the weights are `_Runtime`."""
    monkeypatch.setattr(detection, "load_detector", lambda path, **_: _Runtime())
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / f"images/{number}.png")
        (tmp_path / f"labels/{number}.txt").write_text("0 0.25 0.25 0.5 0.5\n")
    path = tmp_path / "data.yaml"
    path.write_text("val: images\nnc: 2\nnames: [cat, dog]\n")
    return path


def _config(data, **changes):
    settings = {"weights": ("fake.pt",), "img_size": 64, "workers": 0, "project": str(data.parent / "runs")}
    return ValConfig(data=str(data), **{**settings, **changes})


def test_run_folder_holds_the_numbers_and_the_pictures(data_yaml):
    evaluation = val(_config(data_yaml, save_txt=True))
    folder = data_yaml.parent / "runs/exp"
    result = json.loads((folder / "result.json").read_text())
    assert result["AP"] == pytest.approx(1)
    assert {*TWELVE, "per_class", "images", "boxes", "seconds", "config"} <= set(result)
    assert len(json.loads((folder / "predictions.json").read_text())) == len(evaluation.rows) == 3
    assert (folder / "labels/0.txt").read_text() == "0 0.25 0.25 0.5 0.5\n"
    for name in ("opt.yaml", "F1_curve.png", "confusion_matrix.png", "val_batch0_labels.jpg", "val_batch0_pred.jpg"):
        assert (folder / name).exists()


@pytest.mark.parametrize("flag", ["save_txt", "save_hybrid"])
def test_label_files_of_images_of_one_stem_lie_in_their_subfolders(data_yaml, flag):
    for cam in ("cam1", "cam2", "cam3"):
        (data_yaml.parent / "images" / cam).mkdir()
    for number, name in enumerate(("cam1/0001", "cam2/0001", "cam3/a b")):
        (data_yaml.parent / f"images/{number}.png").rename(data_yaml.parent / f"images/{name}.png")
    val(_config(data_yaml, **{flag: True}))
    labels = data_yaml.parent / "runs/exp/labels"
    found = sorted(path.relative_to(labels).as_posix() for path in labels.rglob("*.txt"))
    assert found == ["cam1/0001.txt", "cam2/0001.txt", "cam3/a b.txt"]


def test_second_run_gets_a_folder_of_its_own(data_yaml):
    val(_config(data_yaml))
    val(_config(data_yaml))
    assert (data_yaml.parent / "runs/exp2/result.json").exists()


def test_img_size_is_rounded_up_to_the_stride_with_a_note(data_yaml, caplog):
    evaluation = val(_config(data_yaml, img_size=50))
    assert "image size 50 is not a multiple of the stride 32; using 64" in caplog.text
    assert evaluation.metrics.twelve()["AP50"] == pytest.approx(1)


def test_ensemble_of_equal_members_finds_what_one_finds(data_yaml):
    evaluation = val(_config(data_yaml, weights=("a.pt", "b.pt")))
    assert evaluation.metrics.twelve()["AP50"] == pytest.approx(1)
    assert len(evaluation.rows) == 3


@pytest.mark.parametrize("given", [None, 128, 100])
def test_artefact_of_one_size_is_measured_at_that_size(data_yaml, monkeypatch, caplog, given):
    caplog.set_level("INFO")
    monkeypatch.setattr(_Runtime, "input_hw", (64, 128))
    seen = []
    real = _Runtime.__call__
    monkeypatch.setattr(_Runtime, "__call__", lambda self, images: seen.append(images.shape) or real(self, images))
    val(_config(data_yaml, img_size=given))
    assert {tuple(shape[2:]) for shape in seen} == {(64, 128)}
    assert "fake.pt takes images of height and width (64, 128) only: measured at that size" in caplog.text


@pytest.mark.parametrize(
    "changes", [{"img_size": 320}, {"img_size": 64}, {"task": "study", "study_sizes": (128, 256)}]
)
def test_size_that_an_artefact_of_one_size_does_not_take_is_refused(data_yaml, monkeypatch, changes):
    monkeypatch.setattr(_Runtime, "input_hw", (64, 128))
    wrong = changes.get("study_sizes", (changes.get("img_size"),))[-1]
    setting = "--study-sizes" if "task" in changes else "--img-size"
    finding = rf"{setting}.*: got {wrong}, but fake\.pt takes images of height and width \(64, 128\) only; give 128"
    with pytest.raises(ConfigError, match=finding):
        val(_config(data_yaml, **changes))
    assert not (data_yaml.parent / "runs").exists()


def test_size_is_640_where_none_is_given(data_yaml, monkeypatch):
    seen = []
    real = _Runtime.__call__
    monkeypatch.setattr(_Runtime, "__call__", lambda self, images: seen.append(images.shape) or real(self, images))
    val(_config(data_yaml, img_size=None))
    assert {tuple(shape[2:]) for shape in seen} == {(640, 640)}


def test_artefacts_of_two_sizes_are_refused_as_an_ensemble(data_yaml, monkeypatch):
    runtimes = [_Runtime(), _Runtime()]
    runtimes[0].input_hw, runtimes[1].input_hw = (64, 64), (96, 96)
    monkeypatch.setattr(detection, "load_detector", lambda path, **_: runtimes.pop())
    with pytest.raises(ConfigError, match="export them for one size"):
        val(_config(data_yaml, weights=("a.onnx", "b.onnx")))


def test_augment_adds_the_boxes_of_the_flipped_view(data_yaml):
    """The fake network always looks into the upper left, which in the flipped view is the upper right."""
    evaluation = val(_config(data_yaml, augment=True))
    assert evaluation.rows[:, 1].max() > 24


def test_speed_task_counts_only_sure_boxes(data_yaml, monkeypatch):
    seen = []
    real = detection.EvalSettings
    monkeypatch.setattr(detection, "EvalSettings", lambda **values: seen.append(values) or real(**values))
    val(_config(data_yaml, task="speed"))
    assert (seen[0]["conf"], seen[0]["iou"]) == (0.25, 0.45)
    val(_config(data_yaml, conf_thres=0.1, iou_thres=0.7))
    assert (seen[1]["conf"], seen[1]["iou"]) == (0.1, 0.7)


def test_study_writes_its_table(data_yaml):
    assert val(_config(data_yaml, task="study", study_sizes=(32, 64))) is None
    folder = data_yaml.parent / "runs/exp"
    assert len((folder / "study.csv").read_text().splitlines()) == 3
    assert [point["img_size"] for point in json.loads((folder / "result.json").read_text())["study"]] == [32, 64]


def test_weights_of_another_number_of_classes_are_refused(data_yaml):
    data_yaml.write_text("val: images\nnames: [cat, dog, cow]\n")
    with pytest.raises(ConfigError, match=r"fake.pt has 2 classes but .*data.yaml has 3"):
        val(_config(data_yaml))
    assert not (data_yaml.parent / "runs").exists()


def test_single_cls_takes_weights_of_any_number_of_classes(data_yaml):
    data_yaml.write_text("val: images\nnames: [cat, dog, cow]\n")
    evaluation = val(_config(data_yaml, single_cls=True))
    assert list(evaluation.metrics.per_class) == ["item"]


def test_other_class_names_are_refused_by_name(data_yaml):
    data_yaml.write_text("val: images\nnames: [cat, wolf]\n")
    with pytest.raises(ConfigError, match=r"only fake.pt has 'dog'; only .*data.yaml has 'wolf'"):
        val(_config(data_yaml))


def test_names_that_say_nothing_are_paired_by_position(data_yaml, caplog):
    data_yaml.write_text("val: images\nnames: [class0, class1]\n")
    val(_config(data_yaml))
    assert "have different class names; classes are paired by position" in caplog.text


def test_classes_in_another_order_are_matched_by_name(data_yaml):
    by_name = {}
    for order, swap in (("cat, dog", None), ("dog, cat", {"0": "1", "1": "0"})):
        data_yaml.write_text(f"val: images\nnames: [{order}]\n")
        if swap:
            for file in (data_yaml.parent / "labels").rglob("*.txt"):
                lines = [line.split() for line in file.read_text().splitlines()]
                file.write_text("".join(f"{' '.join([swap[line[0]], *line[1:]])}\n" for line in lines))
        by_name[order] = val(_config(data_yaml)).metrics
    first, second = by_name.values()
    assert first.per_class["cat"] == second.per_class["cat"] == pytest.approx({"AP": 1, "AP50": 1})
    assert list(second.per_class) == ["cat", "dog"]


def test_missing_weights_are_named(tmp_path):
    data = tmp_path / "data.yaml"
    data.write_text("val: images\nnames: [cat]\n")
    with pytest.raises(CheckpointError, match=r"nowhere\.pt"):
        val(_config(data, weights=("nowhere.pt",)))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("img_size", 0), ("workers", -1), ("weights", ())])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        ValConfig(**{"weights": ("a.pt",), name: value})


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "weights").exists(), reason="the shared weights are not beside the project")
def test_yolov5n_on_coco128_has_its_known_ap(tmp_path):
    data = tmp_path / "coco128_val.yaml"
    images = SHARED / "data/coco128_val"
    data.write_text(f"val: {images}/instances_val2017_128.json\nimage_root: {images}/images\n")
    weights = str(SHARED / "weights/yolov5n_v6_coco.pt")
    evaluation = val(
        ValConfig(
            weights=(weights,),
            data=str(data),
            iou_thres=0.65,
            workers=2,
            cache_dir=str(tmp_path),
            project=str(tmp_path),
        )
    )
    assert evaluation.metrics.twelve()["AP"] == pytest.approx(0.343, abs=0.005)
    assert evaluation.metrics.twelve()["AP50"] == pytest.approx(0.525, abs=0.006)
