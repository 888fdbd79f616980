import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.datasets.loading.batch import Batch, ImageInfo
from utils.errors import DataError
from utils.metrics.curves import confidence_curves
from utils.plots import curves as curves_module
from utils.plots.batches import plot_labels, plot_predictions
from utils.plots.colors import PALETTE, class_color, text_color
from utils.plots.curves import plot_confusion, plot_curves
from utils.plots.draw import draw_boxes
from utils.plots.results import plot_results
from utils.plots.save import save_image


def _batch(count=3, *, hw=(64, 96)):
    images = torch.zeros(count, 3, *hw, dtype=torch.uint8)
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.5, 0.5]])
    infos = tuple(ImageInfo(path=f"{i}.jpg", index=i, original_hw=hw) for i in range(count))
    return Batch(images=images, targets=targets, infos=infos)


def test_box_has_its_class_color_and_the_input_is_unchanged():
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = draw_boxes(image, np.array([[20, 20, 80, 80]]), labels=[""], class_ids=[4])
    assert tuple(drawn[50, 20]) == class_color(4)
    assert drawn[50, 50].sum() == 0
    assert image.sum() == 0


def test_stronger_box_is_drawn_over_a_weaker_one():
    boxes = np.array([[20, 20, 80, 80], [20, 20, 80, 80]])
    drawn = draw_boxes(np.zeros((100, 100, 3), np.uint8), boxes, labels=["", ""], class_ids=[1, 2])
    assert tuple(drawn[50, 20]) == class_color(1)


@pytest.mark.parametrize("hw", [(1, 1), (2, 300), (48, 64), (2000, 1500)])
def test_captions_fit_pictures_of_any_size(hw):
    box = np.array([[hw[1] - 1, -5.0, hw[1] + 30, hw[0] - 1]])
    drawn = draw_boxes(np.zeros((*hw, 3), np.uint8), box, labels=["Größe 0.99"], class_ids=[0])
    assert drawn.shape == (*hw, 3)
    assert drawn.any()


def test_colors_are_distinct_repeat_and_carry_readable_text():
    assert len(set(PALETTE)) == len(PALETTE)
    assert class_color(len(PALETTE)) == PALETTE[0]
    assert (text_color((255, 255, 255)), text_color((0, 0, 0))) == ((0, 0, 0), (255, 255, 255))


def test_labels_mosaic_is_a_grid_with_boxes(tmp_path):
    plot_labels(_batch(), tmp_path / "train_batch0.png", names=["a", "b"])
    picture = np.asarray(Image.open(tmp_path / "train_batch0.png"))
    assert picture.shape == (426, 640, 3)  # 64 x 96 is enlarged to a width of 320
    # The left edge of the box of image 0 lies at x = 24, ten thirds of that in the picture.
    assert tuple(picture[133, 80]) == class_color(1)


def test_names_that_are_not_utf8_are_drawn_as_far_as_they_can_be(tmp_path):
    batch = _batch(1)
    info = ImageInfo(path=os.fsdecode(b"caf\xe9.jpg"), index=0, original_hw=(64, 96))
    plot_labels(replace(batch, infos=(info,)), tmp_path / "a.jpg", names=["a", "b"])
    assert (tmp_path / "a.jpg").stat().st_size


def test_predictions_under_a_quarter_are_not_drawn(tmp_path):
    boxes = [np.array([[10, 10, 50, 50, score, 0]], np.float32) for score in (0.9, 0.2)]
    plot_predictions(_batch(2), boxes, tmp_path / "pred.png", names=["a", "b"])
    picture = np.asarray(Image.open(tmp_path / "pred.png"))
    assert tuple(picture[100, 33]) == class_color(0)
    assert picture[100, 320 + 33].sum() == 0


def test_curves_are_written_for_few_and_many_classes(tmp_path):
    for count in (2, 30):
        truths = [np.array([[i, 0, 0, 10, 10]]) for i in range(count)]
        predictions = [np.array([[0, 0, 10, 10, 0.5, i]]) for i in range(count)]
        names = [f"class {i}" for i in range(count)]
        paths = plot_curves(confidence_curves(predictions, truths), tmp_path, names=names)
        assert sorted(path.name for path in paths) == ["F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png"]
        assert all(path.stat().st_size > 5000 for path in paths)


def test_image_that_is_too_wide_for_a_jpeg_is_scaled_down(tmp_path):
    save_image(np.zeros((2, 70000, 3), np.uint8), tmp_path / "wide.jpg")
    assert Image.open(tmp_path / "wide.jpg").size == (65500, 2)


def test_precision_is_not_drawn_where_nothing_was_found(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves_module, "save_figure", lambda figure, path: drawn.update({path.name: figure.axes[0]}))
    truths = [np.array([[0, 0, 0, 9, 9], [1, 20, 20, 40, 40]])]
    plot_curves(confidence_curves([np.array([[0, 0, 9, 9, 0.5, 0.0]])], truths), tmp_path, names=["a", "b"])
    first, second, mean = (line.get_ydata() for line in drawn["P_curve.png"].lines)
    assert (first[400], mean[400]) == (1, 0.5)
    assert np.isnan([first[600], second[400], mean[600]]).all()
    plot_curves(confidence_curves([np.zeros((0, 6))], truths), tmp_path, names=["a", "b"])
    assert drawn["P_curve.png"].lines[-1].get_label() == "all classes"


def test_curves_without_true_boxes_write_nothing(tmp_path):
    curves = confidence_curves([np.zeros((0, 6))], [np.zeros((0, 5))])
    assert plot_curves(curves, tmp_path, names=["a"]) == []
    assert list(tmp_path.iterdir()) == []


def test_confusion_matrix_is_written(tmp_path):
    plot_confusion(np.array([[5, 1, 0], [0, 0, 2], [1, 0, 0]]), tmp_path / "confusion_matrix.png", names=["a", "b"])
    assert Image.open(tmp_path / "confusion_matrix.png").width > 300


def test_confusion_matrix_of_a_classifier_has_no_background(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(curves_module, "save_figure", lambda figure, path: seen.append(figure.axes[0]))
    plot_confusion(np.array([[5, 1], [0, 3]]), tmp_path / "confusion_matrix.png", names=["a", "b"])
    assert [label.get_text() for label in seen[0].get_xticklabels()] == ["a", "b"]


def test_results_are_drawn_with_gaps_and_cut_rows(tmp_path):
    (tmp_path / "results.csv").write_text("epoch, loss, AP\n0, 1.5, 0.1\n1, , 0.2\n2, 0.9")
    plot_results(tmp_path / "results.csv", tmp_path / "results.png", best_epoch=1)
    assert Image.open(tmp_path / "results.png").width > 300


@pytest.mark.parametrize("text", ["", "epoch,loss\n"])
def test_results_without_epochs_are_refused(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(DataError, match="contains no epoch"):
        plot_results(tmp_path / "results.csv", tmp_path / "results.png")
