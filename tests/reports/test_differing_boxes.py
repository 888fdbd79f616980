"""Boxes of two networks in the same images: lost ones, new ones, and intervals where boxes fit the data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hand_run import CAT, DOG, HandRun, metrics, predictions, size, write_data

from reports.boxes import FoundBoxes
from reports.content import report_content
from reports.reading import SlimRun

NOWHERE = [60.0, 2.0, 80.0, 12.0]
# Every cat and dog in three images.
ALL = [[(CAT, 0.9, 0), (DOG, 0.8, 1)]] * 3
# A dog less, a box on nothing more, one score below the confidence of examples.
SOME = [[(CAT, 0.7, 0)], [(CAT, 0.9, 0), (DOG, 0.8, 1)], [(CAT, 0.9, 0), (DOG, 0.2, 1), (NOWHERE, 0.6, 1)]]
# mAP of SOME: cats 1; dogs: right, wrong, right among 3, so 34 recalls at 1, 33 at 2/3.
AP_OF_SOME = (1 + (34 + 33 * 2 / 3) / 101) / 2


def make_run(root: Path, *, before: Any = ALL, after: Any = SOME, ap: tuple[float, float] = (1.0, 0.0)) -> HandRun:
    """Write a finished run on the three images; `ap` is what its two networks are said to have."""
    run = HandRun.create(root / "exp", data=str(write_data(root / "data")), cache_dir=str(root / "cache"), workers=0)
    run.training("dense", ap[0])
    run.cut("round1/prune", (size(10_000), size(4_000)))
    run.training("round1/finetune", ap[1])
    (run.path / "dense/predictions.json").write_text(predictions(*before))
    (run.path / "round1/finetune/predictions.json").write_text(predictions(*after))
    return run


def boxes_of(run: HandRun) -> FoundBoxes:
    found = FoundBoxes.read(SlimRun.read(run.path))
    assert found is not None
    return found


def test_boxes_that_only_one_network_finds_are_counted_and_judged(tmp_path: Path) -> None:
    own = boxes_of(make_run(tmp_path)).examples("dense", "round1/finetune")
    assert own is not None
    assert (own["images"], own["images_alike"], own["boxes_of_both"]) == (3, 1, 4)
    assert (own["boxes_lost"], own["lost_objects"], own["boxes_new"], own["new_objects"]) == (2, 2, 1, 0)
    # Two with the most differences, then those of the median; each once.
    assert [example["file"] for example in own["shown"]] == ["val2.png", "val0.png", "val1.png"]
    # The largest first, so that none lies over a smaller one.
    (dog, cat, nothing) = own["shown"][0]["boxes"]
    assert cat == {"class": "cat", "xyxy": CAT, "before": 0.9, "after": 0.9, "is_true": True}
    assert dog == {"class": "dog", "xyxy": DOG, "before": 0.8, "after": None, "is_true": True}
    assert nothing == {"class": "dog", "xyxy": NOWHERE, "before": None, "after": 0.6, "is_true": False}
    assert (own["shown"][0]["width"], own["shown"][0]["height"]) == (100, 80)


def test_moved_box_of_the_same_class_is_the_same_and_of_another_class_is_not(tmp_path: Path) -> None:
    moved = [value + 3 for value in CAT]
    after = [[(moved, 0.9, 0)], [(CAT, 0.9, 1)], []]
    own = boxes_of(make_run(tmp_path, before=[[(CAT, 0.9, 0)]] * 3, after=after)).examples("dense", "round1/finetune")
    assert own is not None
    assert (own["boxes_of_both"], own["boxes_lost"], own["boxes_new"]) == (1, 2, 1)
    assert own["shown"][-1]["boxes"][0]["xyxy"] == moved


def test_intervals_are_of_the_scores_that_stages_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path, ap=(1.0, AP_OF_SOME))
    content = report_content(SlimRun.read(run.path))
    dense, _, tuned = content["networks"]
    assert dense["interval"] == (1.0, 1.0)
    low, high = tuned["interval"]
    assert low < AP_OF_SOME < high <= 1
    # The dense network is right on every draw.
    assert tuned["change"] == pytest.approx((low - 1, high - 1))
    assert content["answer"]["score"]["change"] == tuned["change"]
    assert "interval" not in content["networks"][1]


def test_boxes_that_do_not_give_the_reported_map_have_no_interval(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, ap=(1.0, 0.5))
    content = report_content(SlimRun.read(run.path))
    assert "interval" in content["networks"][0]
    assert "interval" not in content["networks"][2]
    assert "no interval for round1/finetune" in caplog.text
    assert f"mAP {AP_OF_SOME:.4f}, the stage reported 0.5000" in caplog.text


def test_interval_that_would_take_long_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.boxes._MOST_BOXES", 6)
    run = make_run(tmp_path, before=ALL, after=[*SOME[:2], [*SOME[2], (CAT, 0.1, 0)]], ap=(1.0, AP_OF_SOME))
    content = report_content(SlimRun.read(run.path))
    assert ["interval" in row for row in content["networks"]] == [True, False, False]
    assert "no interval for round1/finetune: 7 boxes, at most 6" in caplog.text
    assert "examples" in content


def test_run_without_its_data_set_has_no_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path)
    (tmp_path / "data/data.yaml").unlink()
    content = report_content(SlimRun.read(run.path))
    assert "examples" not in content
    assert all("interval" not in row for row in content["networks"])
    assert "the report has no intervals and no example images: data set file" in caplog.text


def test_boxes_of_other_images_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path, after=[*SOME, [(CAT, 0.9, 0)]])
    with caplog.at_level(logging.WARNING):
        assert FoundBoxes.read(SlimRun.read(run.path)) is None
    assert "round1/finetune/predictions.json does not fit the data" in caplog.text


def test_classes_are_those_of_the_network_whatever_their_order_in_the_data(tmp_path: Path) -> None:
    run = make_run(tmp_path, before=[[(CAT, 0.9, 1)]] * 3)
    for stage in ("dense", "round1/finetune"):
        result = json.loads((run.path / stage / "result.json").read_text())
        result["metrics"] = {**metrics(0.5), "per_class": dict(reversed(metrics(0.5)["per_class"].items()))}
        (run.path / stage / "result.json").write_text(json.dumps(result))
    own = boxes_of(run).examples("dense", "round1/finetune")
    assert own is not None
    assert own["lost_objects"] == 3
    assert {box["class"] for box in own["shown"][0]["boxes"] if box["before"]} == {"cat"}


def test_run_with_boxes_of_one_network_has_no_examples(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.path / "dense/predictions.json").unlink()
    content = report_content(SlimRun.read(run.path))
    assert "examples" not in content
