"""The answer of a report: which file to ship, compared with which network, in times that were taken alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hand_run import BEST, HandRun, beside, content_of, metrics, report, size

from pruning.selection.score_drop import ScoreDrop
from reports import write_report
from reports.content import report_content
from reports.reading import SlimRun
from reports.text import headline, remarks, titles


@pytest.fixture
def run(tmp_path: Path) -> HandRun:
    return HandRun.create(tmp_path / "exp")


def test_answer_compares_the_last_fine_tuned_network_with_the_first(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round()
    answer = content_of(run)["answer"]
    assert (answer["reference"], answer["stage"]) == ("dense", "round1/finetune")
    assert answer["score"] == {"before": 0.6, "after": 0.45, "difference": 0.45 - 0.6}
    assert answer["parameters"] == {"before": 10_000, "after": 4_000, "factor": 2.5}
    assert answer["macs"]["factor"] == answer["megabytes"]["factor"] == 2.5
    assert "milliseconds" not in answer


def test_predicted_times_are_those_of_the_cut(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round(before=size(10_000, 8.0), after=size(4_000, 3.2))
    content = content_of(run)
    time = content["answer"]["milliseconds"]
    assert (time["before"], time["after"], time["factor"], time["is_predicted"]) == (8.0, 3.2, 2.5, True)
    assert (time["runtime"], time["precision"], time["threads"]) == ("ncnn", "fp32", 1)
    assert "2.5 times as fast (predicted)" in headline(content)
    assert [(row["name"], row["milliseconds"]) for row in content["candidates"]] == [
        *(("dense", 8.0), ("round1/sparse", 8.0), ("round1/finetune", 3.2))
    ]


def test_cut_network_is_a_candidate_until_it_is_fine_tuned(run: HandRun) -> None:
    run.cut("round1/prune", (size(10_000, 8.0), size(4_000, 3.2)), (0.5, 0.1))
    rows = [(row["name"], row["score"], row["milliseconds"]) for row in content_of(run)["candidates"]]
    assert rows == [("uncut", 0.5, 8.0), ("round1/prune", 0.1, 3.2)]


def test_times_of_files_that_take_several_images_are_those_of_one(run: HandRun) -> None:
    run.round()
    own = report("b/best_ncnn_model", ms=8.0, ap=(0.45, 0.449))
    run.export(own, weights=f"x/{BEST}", config={"weights": f"x/{BEST}", "img_size": [64], "batch_size": 4})
    (row,) = content_of(run)["artefacts"]
    assert (row["milliseconds"], row["median_ms"], row["network_ms"]) == (2.0, 9 / 4, 8.0)


def test_score_of_the_file_to_ship_is_the_one_in_the_answer(run: HandRun) -> None:
    run.round()
    run.export(report("b/best_int8_ncnn_model", ms=1.0, ap=(0.46, 0.44), precision="int8"), weights=f"x/{BEST}")
    content = content_of(run)
    assert headline(content).endswith("mAP .440 where it was .500")
    assert remarks(content)[-1] == (
        "best_int8_ncnn_model itself has mAP .440; its network has .450, "
        "and .460 on the images as the file takes them."
    )


def test_network_that_needs_no_pruning_and_is_no_worse_is_named(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round(before=size(10_000, 8.0), after=size(4_000, 3.2))

    def said(**candidate: Any) -> list[str]:
        row = {"name": "yolov5n, 256 px", "score": 0.46, "milliseconds": 3.0, "runtime": "ncnn", "precision": "fp32"}
        (run.path / "result.json").write_text(json.dumps({"candidates": [{**row, "threads": 1, **candidate}]}))
        return [line for line in remarks(content_of(run)) if line.startswith("Pruning did not pay")]

    (line,) = said()
    assert line.endswith("yolov5n, 256 px has mAP .460 in 3.00 ms, the pruned network .450 in 3.20 ms (ncnn).")
    assert said(score=0.44) == said(milliseconds=4.0) == said(runtime="onnx") == said(threads=2) == []
    # The measured time of the pruned network counts more than the predicted one.
    run.export(report("b/best_ncnn_model", ms=2.5, ap=(0.45, 0.449)), weights=f"x/{BEST}")
    assert said() == []


def test_times_of_a_cut_by_a_plan_are_those_that_the_run_predicted(tmp_path: Path) -> None:
    run = HandRun.create(tmp_path / "exp", runtime="onnx", precision="fp32", threads=2)
    run.training("dense", 0.5)
    run.round()
    (run.path / "latency.json").write_text(json.dumps({"machine": "a phone", "version": "1.2"}))
    names = {"dense": 8.0, "round1/sparse": 8.0, "round1/prune": 3.2, "round1/finetune": 3.2}
    rows = [{"stage": name, "milliseconds": ms} for name, ms in names.items()]
    (run.path / "result.json").write_text(json.dumps({"stages": rows}))
    content = content_of(run)
    time = content["answer"]["milliseconds"]
    assert (time["before"], time["after"], time["is_predicted"]) == (8.0, 3.2, True)
    assert (time["runtime"], time["threads"], time["machine"]) == ("onnx", 2, "a phone")


def test_times_measured_on_both_files_count_more_than_predicted_ones(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round(before=size(10_000, 8.0), after=size(4_000, 3.2))
    run.export(report("a/best_ncnn_model", ms=9.0, ap=(0.6, 0.6)), weights="x/dense/weights/best.pt", name="export2")
    run.export(report("b/best_ncnn_model", ms=3.0, ap=(0.45, 0.449)), weights=f"x/{BEST}")
    time = content_of(run)["answer"]["milliseconds"]
    assert (time["before"], time["after"], time["is_predicted"]) == (9.0, 3.0, False)


def test_times_measured_side_by_side_count_more_than_all_others(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round(before=size(10_000, 8.0), after=size(4_000, 3.2))
    name = "b/best_ncnn_model"
    run.export(report("a/best_ncnn_model", ms=9.0, ap=(0.6, 0.6)), weights="x/dense/weights/best.pt", name="export2")
    timed = [beside(name, 3.1, ("fp32", 10.85))]
    run.export(report(name, ms=3.0, ap=(0.45, 0.449)), weights=f"x/{BEST}", beside=timed)
    content = content_of(run)
    time = content["answer"]["milliseconds"]
    assert (time["before"], time["after"], time["factor"]) == (10.85, 3.1, 3.5)
    assert (time["is_predicted"], time["runtime"], time["threads"]) == (False, "ncnn", 1)
    assert "before_precision" not in time
    assert "3.5 times as fast (measured)" in headline(content)
    page = write_report(run.path).read_text(encoding="utf-8")
    assert "was 10.8 ms, 3.5 times as fast<br>measured on ncnn fp32, 1 thread</div>" in page
    assert "<th>predicted time</th>" in page


def test_int8_file_is_compared_with_the_dense_network_in_fp32_and_says_so(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round()
    name = "b/best_int8_ncnn_model"
    timed = [beside(name, 2.0, ("fp32", 10.0), ("int8", 6.0), precision="int8")]
    run.export(report(name, ms=2.0, ap=(0.45, 0.449), precision="int8"), weights=f"x/{BEST}", beside=timed)
    time = content_of(run)["answer"]["milliseconds"]
    assert (time["before"], time["factor"], time["precision"], time["before_precision"]) == (
        10.0,
        5.0,
        "int8",
        "fp32",
    )
    assert "measured on ncnn int8, 1 thread; before in fp32" in write_report(run.path).read_text(encoding="utf-8")


def test_target_is_repeated_as_the_run_told_it(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round()
    target = {"target": "ms=3", "text": "target ms=3 is NOT met: 4.00 ms measured, 3.00 ms predicted"}
    (run.path / "result.json").write_text(json.dumps({"export": {"path": "a", "target": target}}))
    content = content_of(run)
    assert content["answer"]["target"] == target["text"]
    assert "Target ms=3 is NOT met: 4.00 ms measured, 3.00 ms predicted." in remarks(content)
    (run.path / "result.json").write_text(json.dumps({"export": None}))
    assert "target" not in content_of(run)["answer"]


def test_time_of_the_file_to_ship_is_shown_where_none_is_compared(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round()
    run.export(report("b/best_ncnn_model", ms=3.0, ap=(0.45, 0.449)), weights=f"x/{BEST}")
    assert headline(content_of(run)) == "Ship best_ncnn_model: 2.5 times smaller, 3.00 ms, mAP .449 where it was .600"
    page = write_report(run.path).read_text(encoding="utf-8")
    assert "measured on ncnn fp32, 1 thread; dense was not exported for it" in page


def test_files_of_different_threads_are_not_compared(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round()
    other = report("a/best_ncnn_model", ms=9.0, ap=(0.6, 0.6))
    other["latency"][1]["threads"] = 4
    run.export(other, weights="x/dense/weights/best.pt", name="export2")
    run.export(report("b/best_ncnn_model", ms=3.0, ap=(0.45, 0.449)), weights=f"x/{BEST}")
    assert "milliseconds" not in content_of(run)["answer"]


def test_fastest_file_that_passed_is_shipped(run: HandRun) -> None:
    run.round()
    run.export(
        report("b/best_ncnn_model", ms=3.0, ap=(0.45, 0.449)),
        report("b/best_int8_ncnn_model", ms=1.0, ap=(0.45, 0.2), passed=False, precision="int8"),
        report("b/best_half_ncnn_model", ms=2.0, ap=(0.45, 0.448), precision="fp16"),
        weights=f"x/{BEST}",
        not_run=["b/best.engine"],
    )
    content = content_of(run)
    assert content["answer"]["ship"]["path"] == "b/best_half_ncnn_model"
    assert headline(content).startswith("Ship best_half_ncnn_model: 2.5 times smaller")
    assert [row["passed"] for row in content["artefacts"]] == [True, False, True, None]
    first = content["artefacts"][0]
    assert (first["milliseconds"], first["network_ms"], first["score"]) == (3.0, 12.0, 0.449)
    assert (first["output_error"], first["same_boxes"], first["compared_boxes"]) == (3e-6, 1.0, 40)
    assert first["failures"] == []
    # The PyTorch network of an export is one candidate, however many files were made of it.
    runtimes = [(row["runtime"], row["precision"]) for row in content["candidates"]]
    assert runtimes == [("ncnn", "fp32"), ("pytorch", "fp32"), ("ncnn", "int8"), ("ncnn", "fp16")]


def test_file_that_failed_is_not_shipped(run: HandRun) -> None:
    run.round()
    run.export(report("b/best_ncnn_model", ms=3.0, ap=(0.45, 0.2), passed=False), weights=f"x/{BEST}")
    assert headline(content_of(run)) == "Do not ship best_ncnn_model: it failed its verification"


def test_network_that_was_not_exported_has_the_command_to_do_so(run: HandRun) -> None:
    run.round()
    content = content_of(run)
    assert headline(content) == f"Export {BEST}: 2.5 times smaller, mAP .450 where it was .500"
    assert any(f"python export.py --weights {run.path}/{BEST}" in line for line in remarks(content))


def test_run_without_dense_stage_says_what_it_compares_with(run: HandRun) -> None:
    run.round()
    lines = remarks(content_of(run))
    assert any("the one after the first sparse training (round1/sparse)" in line for line in lines)


def test_run_that_begins_with_a_cut_compares_with_the_network_before_it(run: HandRun) -> None:
    pair = (size(10_000), size(4_000))
    run.cut("round1/prune", pair, (0.5, 0.1), config={"weights": "my/best.pt"})
    run.training("round1/finetune", 0.45)
    content = content_of(run)
    assert content["answer"]["reference"] == "uncut"
    assert content["answer"]["score"]["before"] == 0.5
    assert content["answer"]["parameters"]["factor"] == 2.5
    first = content["networks"][0]
    assert (first["stage"], first["weights"], first["parameters"]) == ("uncut", "my/best.pt", 10_000)
    assert titles(content)["uncut"] == "before the cut"
    assert not any("sparse" in line for line in remarks(content))


def test_different_lengths_of_training_are_named(run: HandRun) -> None:
    run.training("dense", 0.6)
    run.round()
    assert "Not alike in training: the dense network had 10 epochs, the pruned one 30 in all." in remarks(
        content_of(run)
    )


def test_cut_without_fine_tuning_is_named(run: HandRun) -> None:
    run.cut("round1/prune", (size(10_000), size(4_000)), (0.5, 0.1))
    run.training("round1/sparse", 0.5)
    content = content_of(run)
    assert content["answer"]["stage"] == "round1/prune"
    assert any("not fine-tuned yet" in line for line in remarks(content))


def decide(run: HandRun, *scores: float) -> None:
    """Write what rounds with these scores decide, of which a drop of .01 from .5 is allowed."""
    drop = ScoreDrop(metric="AP", allowed=0.01, dense=0.5)
    for score in scores:
        drop = drop.after("macs=50%", score)
    drop.save(run.path)


def test_answer_is_the_last_round_within_the_drop_and_says_what_the_next_one_costs(run: HandRun) -> None:
    run.training("dense", 0.5)
    run.round(tuned=0.495)
    run.round(2, before=size(4_000), after=size(2_000), sparse=0.49, tuned=0.45)
    decide(run, 0.495, 0.45)
    content = content_of(run)
    assert (content["answer"]["stage"], content["answer"]["parameters"]["after"]) == ("round1/finetune", 4_000)
    assert [len(row["after"]) for row in content["layers"]] == [1, 1, 1]
    lines = remarks(content)
    assert lines[0] == (
        "Taking round 1: mAP 0.4950 where the dense network has 0.5000, --max-map-drop allows 0.01; "
        "round 2 would have lost 0.0500."
    )
    assert "Not alike in training: the dense network had 10 epochs, the pruned one 30 in all." in lines
    assert lines[0] in write_report(run.path).read_text(encoding="utf-8")


def test_given_weights_that_were_measured_are_the_network_before(tmp_path: Path) -> None:
    run = HandRun.create(tmp_path / "exp", weights="my/best.pt", runtime="ncnn", precision="fp32", threads=1)
    run.write("uncut", {"metrics": metrics(0.5)})
    run.round(tuned=0.495)
    decide(run, 0.495)
    (run.path / "latency.json").write_text(json.dumps({"machine": "a phone", "version": "1.2"}))
    names = {"uncut": 8.0, "round1/sparse": 8.0, "round1/prune": 3.2, "round1/finetune": 3.2}
    rows = [{"stage": name, "milliseconds": ms} for name, ms in names.items()]
    (run.path / "result.json").write_text(json.dumps({"stages": rows}))
    content = content_of(run)
    first = content["networks"][0]
    assert (first["stage"], first["weights"], first["parameters"]) == ("uncut", "my/best.pt", 10_000)
    assert content["answer"]["score"]["before"] == 0.5
    assert content["answer"]["milliseconds"]["factor"] == 2.5
    assert not any("sparse" in line for line in remarks(content))
    run.round(2)  # while rounds go on, the latest one is shown
    assert content_of(run)["answer"]["stage"] == "round2/finetune"


def test_dense_network_is_the_answer_where_no_round_is_within_the_drop(run: HandRun) -> None:
    run.training("dense", 0.5)
    run.round(tuned=0.45)
    decide(run, 0.45)
    content = content_of(run)
    assert (content["answer"]["stage"], content["answer"]["is_pruned"]) == ("dense", False)
    assert "layers" not in content
    assert headline(content) == (
        "Export dense/weights/best.pt, the dense network: no cut of this run is within 0.01 of its score"
    )
    assert remarks(content) == [
        "Taking the dense network, mAP 0.5000: round 1 lost 0.0500 and --max-map-drop allows 0.01."
    ]
    assert "no cut of this run is within 0.01" in write_report(run.path).read_text(encoding="utf-8")


@pytest.mark.parametrize("is_dense", [True, False])
def test_answer_says_what_the_run_started_from_and_why(run: HandRun, is_dense: bool) -> None:
    run.training("dense", 0.5)
    if not is_dense:
        run.round(tuned=0.495)
    reason = "start from n.pt at 288 px and prune it from 12.00 to 7.40 ms"
    start = {"weights": "n.pt", "img_size": [288], "cut_to": 1.0 if is_dense else 0.6, "reason": reason}
    (run.path / "result.json").write_text(json.dumps({"start": start}))
    content = content_of(run)
    assert content["answer"]["start"] == start
    assert remarks(content)[0] == f"--start auto recommends: {reason}."
    assert headline(content).startswith("Export dense/weights/best.pt, the dense network:" if is_dense else "Export")
    assert ("no cut promises more" in headline(content)) == is_dense
    assert reason in write_report(run.path).read_text(encoding="utf-8")


def test_candidates_that_a_run_lists_are_there(run: HandRun) -> None:
    run.training("dense", 0.6)
    given = [{"name": "yolov5n, 256 px", "score": 0.41, "milliseconds": 5.0, "runtime": "ncnn"}, {"name": "untimed"}]
    (run.path / "result.json").write_text(json.dumps({"candidates": given}))
    (row,) = content_of(run)["candidates"]
    assert (row["name"], row["score"], row["milliseconds"], row["is_predicted"]) == (
        "yolov5n, 256 px",
        0.41,
        5,
        False,
    )


def test_moved_run_folder_still_knows_whose_files_were_exported(run: HandRun, tmp_path: Path) -> None:
    run.round()
    run.export(report("b/best_ncnn_model", ms=3.0, ap=(0.45, 0.449)), weights=str(run.path / BEST))
    moved = tmp_path / "elsewhere"
    shutil.move(run.path, moved)
    content = report_content(SlimRun.read(moved))
    assert content["artefacts"][0]["stage"] == "round1/finetune"


def test_latencies_that_are_no_numbers_are_left_out(run: HandRun) -> None:
    """Older versions wrote the text of a dataclass."""
    run.round()
    own = report("b/best_ncnn_model", ms=3.0, ap=(0.45, 0.449), latency=["Latency(fastest=1)", "Latency(fastest=2)"])
    run.export(own, weights=f"x/{BEST}")
    content = content_of(run)
    assert "milliseconds" not in content["artefacts"][0]
    assert content["answer"]["ship"]["path"] == "b/best_ncnn_model"
