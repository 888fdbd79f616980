import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import label_index

from engine.evaluation.detection import DetectionSet, LabelFiles, SamplePictures
from engine.evaluation.detection_scores import EvalSettings
from engine.evaluation.evaluator import Evaluator, change, speed_line
from engine.evaluation.predict import augmented, ensemble, predictor
from engine.evaluation.study import run_study
from utils.datasets.loading.batch import Batch, ImageInfo
from utils.detections.output_names import OutputNames, below_common_folder
from utils.errors import ConfigError
from utils.metrics.coco import TWELVE

CPU = torch.device("cpu")
NAMES = ("cat", "dog")
# Two 200 x 100 pictures at half size in a 64 x 128 frame: 7 px above, 14 left.
SCALE, PADDING = 0.5, (14.0, 7.0)
ORIGINAL_HW = (100, 200)
TRUE = np.array([[0, 0.25, 0.5, 0.3, 0.4], [1, 0.75, 0.5, 0.2, 0.6]], np.float32)


def _index():
    return label_index(
        (TRUE, TRUE[:1]),
        paths=("a.jpg", "b.jpg"),
        shapes_hw=(ORIGINAL_HW, ORIGINAL_HW),
        image_ids=(10, 20),
        category_ids=(3, 7),
        names=NAMES,
    )


def _in_frame(labels):
    """(n, 4) cx, cy, w, h in pixels of the frame."""
    height, width = ORIGINAL_HW
    pixels = labels[:, 1:] * np.array([width, height, width, height]) * SCALE
    return pixels + np.array([*PADDING, 0, 0])


def _batches():
    """One picture per batch, its mean grey telling the fake network which one it is."""
    batches = []
    for number, labels in enumerate((TRUE, TRUE[:1])):
        info = ImageInfo(
            path=f"{'ab'[number]}.jpg", index=number, original_hw=ORIGINAL_HW, scale=SCALE, padding=PADDING
        )
        targets = np.concatenate(
            [np.zeros((len(labels), 1)), labels[:, :1], _in_frame(labels) / np.array([128, 64, 128, 64])], 1
        )
        images = torch.full((1, 3, 64, 128), number, dtype=torch.uint8)
        batches.append(Batch(images=images, targets=torch.tensor(targets, dtype=torch.float32), infos=(info,)))
    return batches


def _perfect(images):
    """Finds the true boxes of each picture, with objectness .9."""
    decoded = torch.zeros(len(images), 4, 7)
    for i, image in enumerate(images):
        labels = (TRUE, TRUE[:1])[round(float(image.mean()) * 255)]
        decoded[i, : len(labels), :4] = torch.from_numpy(_in_frame(labels))
        decoded[i, : len(labels), 4] = 0.9
        decoded[i, range(len(labels)), (5 + labels[:, 0]).astype(int)] = 1
    return decoded


def _blind(images):
    return torch.zeros(len(images), 4, 7)


@dataclass(frozen=True, kw_only=True)
class _Set(DetectionSet):
    """Batches in memory for a function that finds boxes; `asked` notes the image size of each evaluation."""

    in_memory: list[Any] = field(default_factory=_batches)
    asked: list[int] = field(default_factory=list)

    def batches(self, network, device):
        self.asked.append(self.img_size)
        return self.in_memory

    def predictor(self, network, device):
        return network


def _evaluate(predict, *, index=None, batches=None, on_batch=None, autocast=None, **settings):
    data = _Set(
        index=index or _index(), img_size=64, settings=EvalSettings(**settings), in_memory=batches or _batches()
    )
    return Evaluator(data=data, device=CPU, autocast=autocast).evaluate(predict, on_batch=on_batch)


def test_perfect_boxes_score_one_and_lie_in_original_pixels():
    evaluation = _evaluate(_perfect)
    metrics = evaluation.metrics
    assert (metrics.AP, metrics.AP50, metrics.precision, metrics.recall) == pytest.approx((1, 1, 1, 1))
    assert evaluation.detections[0] == {
        "image_id": 10,
        "file_name": "a.jpg",
        "category_id": 3,
        "bbox": pytest.approx([20, 30, 60, 40], abs=2e-3),
        "score": 0.9,
    }
    assert (evaluation.images, evaluation.boxes, len(evaluation.rows)) == (2, 3, 3)
    assert evaluation.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_nothing_found_scores_zero():
    evaluation = _evaluate(_blind)
    assert (evaluation.metrics.AP, evaluation.detections) == (0, [])
    assert evaluation.confusion[2].tolist() == [2, 1, 0]


def test_loader_that_skips_a_picture_loses_its_recall():
    evaluation = _evaluate(_perfect, batches=_batches()[:1])
    assert evaluation.metrics.per_class["dog"]["AP50"] == pytest.approx(1)
    # One of two cats is found: precision 1 up to recall .5, which is 51 of 101 points.
    assert evaluation.metrics.per_class["cat"]["AP50"] == pytest.approx(51 / 101)


def test_single_cls_ignores_what_the_network_calls_things():
    one_class = np.array([0, 1, 1, 1, 1], np.float32)
    index = label_index((TRUE * one_class, TRUE[:1] * one_class), shapes_hw=(ORIGINAL_HW,) * 2, names=("item",))
    evaluation = _evaluate(_perfect, index=index, single_cls=True)
    assert evaluation.to_dict()["AP"] == pytest.approx(1)
    assert evaluation.confusion.shape == (2, 2)


def test_hybrid_labels_add_the_true_boxes_with_score_one():
    evaluation = _evaluate(_blind, hybrid_labels=True)
    assert [item["score"] for item in evaluation.detections] == [1, 1, 1]
    assert evaluation.to_dict()["AP"] == pytest.approx(1)


def test_autocast_reaches_the_network():
    seen = []

    def predict(images):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return _perfect(images)

    _evaluate(predict, autocast=torch.bfloat16)
    _evaluate(predict)
    assert seen == [torch.bfloat16, torch.bfloat16, None, None]


def test_numbers_of_an_evaluation_are_those_of_its_metrics():
    evaluation, blind = _evaluate(_perfect), _evaluate(_blind)
    assert evaluation.score == evaluation.metrics.AP
    assert evaluation.headline == {"AP50": evaluation.metrics.AP50, "AP": evaluation.score}
    assert evaluation.fitness == pytest.approx(0.1 * evaluation.metrics.AP50 + 0.9 * evaluation.metrics.AP)
    assert set(evaluation.numbers()) >= {"AP", "AP50", "precision", "recall"}
    assert evaluation.is_finite
    assert change(blind, evaluation) == "mAP50 0.000 -> 1.000, mAP 0.000 -> 1.000"


def test_few_images_are_spread_evenly_and_a_count_of_zero_is_all():
    data = DetectionSet(index=_index(), img_size=64)
    few = data.few(1).index
    assert (few.paths, few.image_ids, few.shapes_hw.tolist()) == (("b.jpg",), (20,), [[100, 200]])
    assert np.array_equal(few.labels[0], TRUE[:1])
    assert data.few(0).index.paths == data.few(9).index.paths == ("a.jpg", "b.jpg")
    assert data.is_labelled


def test_few_images_are_scored_by_their_own_boxes():
    index, (_, batch) = _index(), _batches()
    few = DetectionSet(index=index, img_size=64).few(1)
    alone = replace(batch, infos=(replace(batch.infos[0], index=0),))
    evaluation = _evaluate(_perfect, index=few.index, batches=[alone])
    assert (evaluation.images, evaluation.boxes, evaluation.detections[0]["file_name"]) == (1, 1, "b.jpg")
    assert pytest.approx(1) == evaluation.metrics.AP


def test_module_is_left_in_the_mode_it_was_in():
    class Network(torch.nn.Module):
        def forward(self, images):
            assert not self.training
            return _perfect(images)

    network = Network().train()
    assert _evaluate(network).score == pytest.approx(1)
    assert network.training
    _evaluate(network.eval())
    assert not network.training


@pytest.mark.parametrize(("name", "value"), [("conf", 1.5), ("iou", -0.1), ("max_det", 0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        EvalSettings(**{name: value})


def test_predictor_decodes_the_heads():
    head = torch.zeros(1, 1, 2, 2, 6)
    model = SimpleNamespace(anchors=torch.tensor([[[10.0, 20.0]]]), strides=(8,))
    decoded = predictor(type("Model", (), {**vars(model), "__call__": lambda self, images: [head]})())(head)
    assert decoded[0, 3].tolist() == [12, 12, 10, 20, 0.5, 0.5]


def test_ensemble_puts_boxes_side_by_side():
    together = ensemble([_perfect, _blind])(torch.zeros(2, 3, 64, 128))
    assert together.shape == (2, 8, 7)
    assert torch.equal(together[:, 4:], _blind(torch.zeros(2)))


def test_augmented_boxes_come_back_to_the_same_place():
    """A fake network that frames the bright pixels must frame the same place in all three views."""
    shapes = []

    def bright(images):
        shapes.append(tuple(images.shape[2:]))
        rows, columns = torch.nonzero(images[0, 0] > 0.9, as_tuple=True)
        low = torch.stack((columns.min(), rows.min())).float()
        high = torch.stack((columns.max(), rows.max())).float() + 1
        return torch.cat(((low + high) / 2, high - low, torch.ones(2)))[None, None]

    images = torch.zeros(1, 3, 128, 192)
    images[:, :, 20:60, 30:90] = 1
    decoded = augmented(bright, 32)(images)
    assert shapes == [(128, 192), (128, 160), (96, 160)]
    assert decoded[0, :, :4].numpy() == pytest.approx(np.tile([60, 40, 60, 40], (3, 1)), abs=2.5)


def test_augmented_padding_is_grey():
    views = []

    def keep(images):
        views.append(images)
        return torch.zeros(1, 1, 6)

    augmented(keep, 32)(torch.zeros(1, 3, 64, 64))
    # 64 * .83 is 53 pixels in a frame of 64.
    assert views[1][0, 0, 0, 52:54].tolist() == pytest.approx([0, 0.447])


def test_result_holds_the_twelve_numbers_and_the_counts():
    result = _evaluate(_perfect).to_dict()
    assert {*TWELVE, "per_class", "images", "boxes", "seconds"} <= set(result)
    assert set(result["seconds"]) == {"preprocess", "inference", "nms", "metrics"}
    assert result["per_class"]["cat"] == pytest.approx({"AP": 1, "AP50": 1})


def test_table_lists_classes_when_they_are_few_or_asked_for():
    evaluation = _evaluate(_perfect)
    lines = evaluation.as_text().splitlines()
    assert lines[2].split() == ["cat", "2", "1.000", "1.000", "1.000", "1.000"]
    many = replace(evaluation, names=(*NAMES, *(f"unused {i}" for i in range(30))))
    assert len(many.as_text().splitlines()) == 3
    assert len(many.as_text(is_verbose=True).splitlines()) == 5
    assert "inference" in speed_line(evaluation)


def test_saved_files_are_those_of_v5(tmp_path):
    pictures = SamplePictures(folder=tmp_path, names=NAMES)
    evaluation = _evaluate(_perfect, on_batch=pictures)
    evaluation.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictions.json",
        "F1_curve.png",
        "P_curve.png",
        "R_curve.png",
        "PR_curve.png",
        "confusion_matrix.png",
        "val_batch0_labels.jpg",
        "val_batch0_pred.jpg",
        "val_batch1_labels.jpg",
        "val_batch1_pred.jpg",
    }


def test_txt_lines_are_normalised_to_the_original_picture(tmp_path):
    writer = LabelFiles(folder=tmp_path, names=OutputNames(below_common_folder(_index().paths)), with_score=True)
    _evaluate(_perfect, on_batch=writer)
    rows = np.loadtxt(tmp_path / "labels" / "a.txt")
    assert rows == pytest.approx(np.concatenate([TRUE, [[0.9], [0.9]]], 1), abs=1e-5)


def test_study_writes_a_row_per_size(tmp_path):
    evaluator = Evaluator(data=_Set(index=_index(), img_size=640), device=CPU)
    points = run_study(evaluator, _perfect, sizes=(64, 128), folder=tmp_path)
    lines = (tmp_path / "study.csv").read_text().splitlines()
    assert evaluator.data.asked == [64, 128]
    assert (len(points), len(lines)) == (2, 3)
    assert lines[1].startswith("64,1.0,1.0")
    assert (tmp_path / "study.png").stat().st_size > 5000


def test_study_leaves_cells_empty_that_cannot_be_measured(tmp_path):
    nothing = np.zeros((0, 5), np.float32)
    unlabelled = label_index((nothing, nothing), shapes_hw=(ORIGINAL_HW,) * 2, names=NAMES)
    metrics = _evaluate(_blind, index=unlabelled).metrics
    assert all(map(math.isnan, (metrics.AP, metrics.AP50, metrics.precision, metrics.recall)))
    evaluator = Evaluator(data=_Set(index=unlabelled, img_size=640), device=CPU)
    run_study(evaluator, _blind, sizes=(64,), folder=tmp_path)
    assert (tmp_path / "study.csv").read_text().splitlines()[1].startswith("64,,,,,")


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_ids_beyond_float64_score_the_same_and_come_out_as_they_are(engine):
    large = 2**60
    index = replace(_index(), image_ids=(large + 1, large), category_ids=(large + 3, large + 2))
    evaluation = _evaluate(_perfect, index=index, engine=engine)
    assert pytest.approx(1) == evaluation.metrics.AP
    assert {item["image_id"] for item in evaluation.detections} == {large, large + 1}
    assert evaluation.detections[0]["category_id"] == large + 3
