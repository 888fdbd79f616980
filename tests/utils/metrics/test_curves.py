import numpy as np
import pytest

from utils.metrics.coco import evaluate_coco
from utils.metrics.curves import confidence_curves

BOX = [0, 0, 10, 10]
FAR = [50, 50, 60, 60]


def test_precision_and_recall_by_hand():
    # Two true boxes; scores .9 right, .6 wrong, .3 right.
    predictions = [np.array([[*BOX, 0.9, 0], [80, 80, 90, 90, 0.6, 0], [*FAR, 0.3, 0]])]
    curves = confidence_curves(predictions, [np.array([[0, *BOX], [0, *FAR]])])
    at = [np.searchsorted(curves.confidence, value) for value in (0.2, 0.5, 0.8, 0.95)]
    assert curves.precision[0, at] == pytest.approx([2 / 3, 1 / 2, 1, 1])
    assert curves.recall[0, at] == pytest.approx([1, 1 / 2, 1 / 2, 0])
    # Recalls up to .5 (51 of 101) have precision 1, the rest 2/3.
    assert curves.ap[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    best = curves.best()
    assert (best.f1, best.precision, best.recall) == pytest.approx((0.8, 2 / 3, 1))
    assert best.confidence <= 0.3


def test_second_prediction_of_a_found_box_is_wrong():
    predictions = [np.array([[*BOX, 0.4, 0], [*BOX, 0.9, 0]])]
    curves = confidence_curves(predictions, [np.array([[0, *BOX]])])
    assert curves.precision[0, 0] == 0.5


def test_class_must_agree_and_classes_without_truth_have_no_curve():
    curves = confidence_curves([np.array([[*BOX, 0.9, 1]])], [np.array([[2, *BOX]])])
    assert curves.classes.tolist() == [2]
    assert curves.recall.max() == 0


def test_no_true_box_gives_no_number_at_the_best_point():
    best = confidence_curves([np.zeros((0, 6))], [np.zeros((0, 5))]).best()
    assert np.isnan([best.precision, best.recall, best.f1, best.confidence]).all()


def test_nothing_found_has_a_recall_of_zero_and_no_precision():
    best = confidence_curves([np.zeros((0, 6))], [np.array([[0, 1, 1, 5, 5]])]).best()
    assert (best.recall, best.f1) == (0, 0)
    assert np.isnan([best.precision, best.confidence]).all()


def test_a_class_of_which_nothing_was_found_counts_with_a_precision_of_zero():
    truth = np.array([[0, 1, 1, 5, 5], [1, 20, 20, 30, 30]])
    best = confidence_curves([np.array([[1, 1, 5, 5, 0.9, 0]])], [truth]).best()
    assert (best.precision, best.recall) == (0.5, 0.5)


def test_predictions_in_a_crowd_are_left_out_unless_they_found_an_object():
    truth = [np.array([[0, 0, 0, 10, 10]])]
    found = [np.array([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [50, 50, 60, 60, 0.8, 1]])]
    crowds = [np.array([[0, 40, 40, 100, 100]])]
    assert confidence_curves(found, truth, crowds).best().precision == 1
    curves = confidence_curves(found, truth)
    assert curves.precision[0, 0] == 0.5


def test_ap_equals_coco_ap50():
    rng = np.random.default_rng(0)
    predictions, truths, annotations, rows = [], [], [], []
    for image_id in range(1, 21):
        corner = rng.uniform(0, 80, (6, 2))
        true = np.concatenate([rng.integers(0, 3, (6, 1)), corner, corner + rng.uniform(20, 40, (6, 2))], 1)
        found = np.concatenate([true[:, 1:] + rng.normal(0, 4, (6, 4)), rng.random((6, 1)), true[:, :1]], 1)
        predictions.append(found)
        truths.append(true)
        for box in true:
            ltwh = [box[1], box[2], box[3] - box[1], box[4] - box[2]]
            number = len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": int(box[0]),
                    "bbox": ltwh,
                    "area": 1,
                    "iscrowd": 0,
                }
            )
        rows += [[image_id, f[0], f[1], f[2] - f[0], f[3] - f[1], f[4], f[5]] for f in found]
    truth = {
        "images": [{"id": i} for i in range(1, 21)],
        "categories": [{"id": i, "name": str(i)} for i in range(3)],
        "annotations": annotations,
    }
    metrics = evaluate_coco(truth, np.array(rows))
    assert confidence_curves(predictions, truths).ap.mean() == pytest.approx(metrics.AP50, abs=1e-9)
    assert 0.1 < metrics.AP50 < 0.99
