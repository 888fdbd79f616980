"""Predictor: boxes come back in pixels of the original, whatever the size, kind and number of pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from cell_runtime import CellRuntime, picture
from PIL import Image

from deploy import Predictor, PredictSettings
from utils.detections.detections import Detections
from utils.errors import ConfigError


def make_predictor(**settings) -> tuple[Predictor, CellRuntime]:
    runtime = CellRuntime()
    return Predictor(runtime, settings=PredictSettings(**{"img_size": 128, **settings})), runtime


def test_box_of_a_picture_of_the_input_size_is_exact() -> None:
    model, _ = make_predictor()
    found = model(picture((128, 128), red=(32, 64)))
    assert found.xyxy.tolist() == [[32, 64, 64, 96]]
    assert found.class_ids.tolist() == [0]
    assert found.scores[0] == pytest.approx(1, abs=1e-3)


def test_box_of_a_large_picture_is_scaled_back() -> None:
    model, runtime = make_predictor()
    large = cv2.resize(picture((128, 128), blue=(96, 0)), (512, 512), interpolation=cv2.INTER_NEAREST)
    found = model(large)
    assert found.xyxy[0] == pytest.approx([384, 0, 512, 128], abs=0.5)
    assert str(found) == "1 blue"
    assert runtime.seen_shapes == [(1, 3, 128, 128)]


def test_border_of_the_letterbox_is_taken_off_and_boxes_are_cut_at_the_picture() -> None:
    model, runtime = make_predictor(conf=0.0)
    found = model(np.zeros((40, 128, 3), np.uint8))
    assert runtime.seen_shapes == [(1, 3, 64, 128)]
    # 12 rows of border above: the cells of y 0..32 and 32..64 in the frame are -12..20 and 20..52 of 40.
    assert sorted(set(map(tuple, found.xyxy[:, 1::2].tolist()))) == [(0, 20), (20, 40)]


def test_one_picture_gives_one_and_a_list_gives_a_list_in_order() -> None:
    model, _ = make_predictor()
    red, blue = picture((128, 128), red=(0, 0)), picture((64, 128), blue=(32, 32))
    assert isinstance(model(red), Detections)
    assert [str(found) for found in model([blue, red, blue])] == ["1 blue", "1 red", "1 blue"]
    assert [str(found) for found in model((red,))] == ["1 red"]
    assert model([]) == []


def test_pictures_of_one_shape_share_a_batch() -> None:
    model, runtime = make_predictor(batch_size=2)
    wide, square = picture((64, 128), red=(0, 0)), picture((128, 128), blue=(0, 0))
    found = model([wide, square, wide, wide])
    assert sorted(runtime.seen_shapes) == [(1, 3, 64, 128), (1, 3, 128, 128), (2, 3, 64, 128)]
    assert [str(item) for item in found] == ["1 red", "1 blue", "1 red", "1 red"]


def test_paths_arrays_and_pil_images_may_be_mixed(tmp_path: Path) -> None:
    model, _ = make_predictor()
    image = picture((128, 128), red=(64, 64))
    path = tmp_path / "cell.png"
    Image.fromarray(image).save(path)
    found = model([str(path), path, image, Image.fromarray(image)])
    assert [item.xyxy.tolist() for item in found] == [[[64, 64, 96, 96]]] * 4
    assert [item.path for item in found] == [str(path), str(path), None, None]


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK", "RGBA", "EXIF"])
def test_odd_files_go_through(mode: str, tmp_path: Path) -> None:
    model, _ = make_predictor()
    path = tmp_path / ("odd.tif" if mode == "CMYK" else "odd.png")
    image = Image.fromarray(picture((64, 128), red=(32, 0)))
    if mode == "I;16":
        Image.fromarray(np.full((64, 128), 40_000, np.uint16)).save(path)
    elif mode == "EXIF":
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        image.save(path, exif=exif)
    else:
        image.convert(mode).save(path)
    found = model(path)
    assert found.image_hw == (64, 128)
    # Turned by 180 degrees, columns 32..64 of 128 become 64..96, rows 0..32 of 64 become 32..64.
    expected = {"EXIF": [[64, 32, 96, 64]], "CMYK": [[32, 0, 64, 32]], "RGBA": [[32, 0, 64, 32]]}
    assert found.xyxy.tolist() == expected.get(mode, [])


def test_picture_of_one_pixel_goes_through() -> None:
    model, _ = make_predictor()
    found = model(np.full((1, 1, 3), 90, np.uint8))
    assert (len(found), found.image_hw) == (0, (1, 1))


def test_classes_are_chosen_by_id_or_name() -> None:
    image = picture((128, 128), red=(0, 0), blue=(64, 64))
    assert str(make_predictor()[0](image)) == "1 red, 1 blue"
    assert str(make_predictor(classes=("blue",))[0](image)) == "1 blue"
    assert str(make_predictor(classes=(0,))[0](image)) == "1 red"


def test_settings_are_changed_by_field_and_checked() -> None:
    model, _ = make_predictor()
    model.conf = 0.6
    model.classes = ["red"]
    assert (model.settings.conf, model.settings.classes) == (0.6, ["red"])
    with pytest.raises(ConfigError, match="conf: got 7, expected 0 to 1"):
        model.conf = 7
    with pytest.raises(ConfigError, match="known: red, blue"):
        model.classes = ["green"]
    assert model.conf == 0.6


def test_size_is_rounded_up_to_the_stride_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    model, runtime = make_predictor()
    model(picture((128, 128)), size=100)
    assert "100 is not a multiple of the stride 32; using 128" in caplog.text
    model(picture((128, 128)), size=64)
    assert runtime.seen_shapes[-1] == (1, 3, 64, 64)


def test_runtime_of_fixed_size_gets_its_size() -> None:
    runtime = CellRuntime(input_hw=(128, 96))
    found = Predictor(runtime)(picture((128, 96), red=(0, 96)))
    assert runtime.seen_shapes == [(1, 3, 128, 96)]
    assert found.xyxy.tolist() == [[0, 96, 32, 128]]


@pytest.mark.parametrize(("given", "fits"), [(None, True), (128, True), (100, True), (96, False), (640, False)])
def test_size_that_a_runtime_of_fixed_size_does_not_take_is_refused(given: int | None, fits: bool) -> None:
    settings = PredictSettings(img_size=given)
    if fits:
        assert Predictor(CellRuntime(input_hw=(128, 96)), settings=settings).img_size == 128
        return
    finding = (
        rf"--img-size .*: got {given}, but best\.onnx takes images of height and width \(128, 96\) only; give 128"
    )
    with pytest.raises(ConfigError, match=finding):
        Predictor(CellRuntime(input_hw=(128, 96)), settings=settings, paths=["best.onnx"])


def test_size_given_with_a_call_is_refused_by_a_runtime_of_fixed_size() -> None:
    model = Predictor(CellRuntime(input_hw=(128, 128)))
    with pytest.raises(ConfigError, match="the exported network takes images of height and width"):
        model(picture((128, 128)), size=320)
    assert str(model(picture((128, 128), red=(0, 0)), size=128)) == "1 red"


def test_default_size_is_640_or_that_of_the_runtime() -> None:
    assert Predictor(CellRuntime()).img_size == 640
    model = Predictor(CellRuntime(input_hw=(64, 96)))
    model.conf = 0.5
    assert (model.img_size, model.settings.img_size) == (96, None)


def test_ensemble_of_two_fixed_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.onnx takes images of \(64, 64\) and b\.onnx of \(96, 96\)"):
        Predictor(CellRuntime(input_hw=(64, 64)), CellRuntime(input_hw=(96, 96)), paths=["a.onnx", "b.onnx"])


def test_ensemble_with_one_fixed_size_uses_it() -> None:
    first, second = CellRuntime(), CellRuntime(input_hw=(128, 96))
    Predictor(first, second)(picture((64, 64)))
    assert first.seen_shapes == second.seen_shapes == [(1, 3, 128, 96)]


def test_ensemble_pools_boxes_before_suppression() -> None:
    first, second = CellRuntime(), CellRuntime()
    found = Predictor(first, second, settings=PredictSettings(img_size=128))(picture((128, 128), red=(0, 0)))
    assert len(first.seen_shapes) == len(second.seen_shapes) == 1
    assert found.xyxy.tolist() == [[0, 0, 32, 32]]


def test_ensemble_of_different_classes_is_refused() -> None:
    other = CellRuntime()
    other.names = ("cat", "dog")
    with pytest.raises(ConfigError, match="different classes"):
        Predictor(CellRuntime(), other)


def test_augmented_detection_looks_at_three_scales() -> None:
    model, runtime = make_predictor(augment=True)
    found = model(picture((128, 128), red=(32, 64)))
    assert [shape[2:] for shape in runtime.seen_shapes] == [(128, 128), (128, 128), (96, 96)]
    assert [32, 64, 64, 96] in found.xyxy.tolist()


def test_seconds_cover_every_stage_of_the_last_call() -> None:
    model, _ = make_predictor()
    model(picture((128, 128)))
    assert list(model.seconds) == ["read", "preprocess", "inference", "nms"]
    assert all(value > 0 for value in model.seconds.values())


@pytest.mark.parametrize("wrong", [{"conf": -0.1}, {"iou": 1.1}, {"max_det": 0}, {"img_size": 0}, {"batch_size": 0}])
def test_setting_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PredictSettings(**wrong)
