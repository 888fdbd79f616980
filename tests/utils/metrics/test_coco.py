import json
import math
from pathlib import Path

import numpy as np
import pytest

from utils.errors import ConfigError
from utils.metrics.coco import TWELVE, Metrics, evaluate_coco, fitness

GOLDEN = Path(__file__).parents[4] / "shared/golden/cocoeval"
OFFICIAL = {
    "AP": 0.504581,
    "AP50": 0.696973,
    "AP75": 0.572982,
    "AP_small": 0.585626,
    "AP_medium": 0.519400,
    "AP_large": 0.501398,
    "AR1": 0.386813,
    "AR10": 0.593680,
    "AR100": 0.595353,
    "AR_small": 0.639811,
    "AR_medium": 0.566421,
    "AR_large": 0.564290,
}
ENGINES = ("faster", "pycocotools")


def _truth(*boxes):
    """One 100 x 100 image with `boxes` (category, l, t, w, h); categories 3 "cat" and 7 "dog"."""
    return {
        "images": [{"id": 5, "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": i + 1, "image_id": 5, "category_id": box[0], "bbox": list(box[1:]), "area": 400, "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared golden files are not beside the project")
@pytest.mark.parametrize("engine", ENGINES)
def test_all_twelve_equal_the_official_numbers(engine):
    truth = json.loads((GOLDEN / "instances_val2014_100.json").read_text())
    detections = json.loads((GOLDEN / "instances_val2014_fakebbox100_results.json").read_text())
    metrics = evaluate_coco(truth, detections, engine=engine)
    assert metrics.twelve() == pytest.approx(OFFICIAL, abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_detection_gives_zeros(engine):
    metrics = evaluate_coco(_truth((3, 10, 10, 20, 20)), [], engine=engine)
    assert (metrics.AP, metrics.AR100, metrics.per_class["cat"]["AP"]) == (0, 0, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_kinds_without_true_boxes_have_no_number(engine):
    metrics = evaluate_coco(_truth((3, 10, 10, 20, 20)), np.zeros((0, 7)), engine=engine)
    assert math.isnan(metrics.AP_large)
    assert math.isnan(metrics.per_class["dog"]["AP50"])


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_and_dictionaries_give_the_same_numbers_per_class(engine):
    truth = _truth((3, 10, 10, 20, 20), (7, 50, 50, 20, 20))
    # IoU of the dog is 12 / 20 = .6: right at .5, .55 and .6, so AP is 3 / 10.
    rows = np.array([[5, 10, 10, 20, 20, 0.9, 3], [5, 50, 50, 12, 20, 0.8, 7]])
    dictionaries = [
        {"image_id": 5, "category_id": int(row[6]), "bbox": row[1:5].tolist(), "score": float(row[5])} for row in rows
    ]
    by_rows = evaluate_coco(truth, rows, engine=engine)
    assert by_rows == evaluate_coco(truth, dictionaries, engine=engine)
    assert by_rows.per_class["cat"] == pytest.approx({"AP": 1, "AP50": 1})
    assert by_rows.per_class["dog"] == pytest.approx({"AP": 0.3, "AP50": 1})


def test_inputs_are_left_as_they_were(capsys):
    truth = _truth((3, 10, 10, 20, 20))
    detections = [{"image_id": 5, "category_id": 3, "bbox": [10, 10, 20, 20], "score": 0.5}]
    before = json.dumps([truth, detections])
    evaluate_coco(truth, detections, engine="pycocotools")
    assert json.dumps([truth, detections]) == before
    assert capsys.readouterr().out == ""


def test_unknown_engine_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"slow.*faster, pycocotools"):
        evaluate_coco(_truth(), [], engine="slow")


def test_fitness_weighs_ap50_and_ap_and_is_zero_without_truth():
    assert fitness(Metrics(**{**dict.fromkeys(TWELVE, 0.5), "AP50": 0.8})) == pytest.approx(0.08 + 0.45)
    assert fitness(Metrics(**dict.fromkeys(TWELVE, math.nan))) == 0
