"""The evaluation of an index gives COCO's numbers of the JSON that the index came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.evaluation.detection_scores import DetectionScorer, EvalSettings
from engine.evaluation.evaluator import StageClock
from utils.boxes.boxes import ltwh_to_xyxy
from utils.config.choices import Engine
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.metrics.coco import TWELVE, evaluate_coco


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_the_twelve_numbers_are_those_of_the_raw_json(shared: Path, tmp_path: Path, engine: Engine) -> None:
    file = shared / "data/coco128_val/instances_val2017_128.json"
    (tmp_path / "data.yaml").write_text(f"val: {file}\nimage_root: {file.parent / 'images'}\n")
    index = build_label_index(load_data_config(tmp_path / "data.yaml"), "val", cache_dir=tmp_path)
    rng = np.random.default_rng(0)
    clock = StageClock(device=torch.device("cpu"), seconds={})
    scorer = DetectionScorer(index, EvalSettings(engine=engine), clock)
    for position, truth in enumerate(index.truth):
        boxes = ltwh_to_xyxy(truth.ltwh).repeat(3, axis=0)
        boxes = boxes + rng.normal(0, 0.08, boxes.shape) * (boxes[:, 2:] - boxes[:, :2]).repeat(2, axis=1)
        scores, classes = rng.random(len(boxes)), truth.classes.repeat(3)
        scorer._found[position] = np.column_stack([boxes, scores, classes])  # float64, as no network gives them
    evaluation = scorer.scores()
    raw = evaluate_coco(json.loads(file.read_text()), evaluation.detections, engine="pycocotools")
    assert 0.1 < raw.AP < 0.9
    for name in TWELVE:
        assert getattr(evaluation.metrics, name) == pytest.approx(getattr(raw, name), abs=1e-12), name
