"""Verification: what passes, what fails with its numbers, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exporting import images_of, network

from deploy.artefact.runtime import DetectorRuntime
from deploy.outputs.detector import DetectorSource
from deploy.outputs.heads import HeadsRuntime
from deploy.verification.agreement import BoxAgreement
from deploy.verification.heads import TOLERANCES
from deploy.verification.verify import Reference, VerifyReport, megabytes_of, report_data, verify, verify_table
from utils.storage.run_folder import plain

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source() -> DetectorSource:
    return DetectorSource(model=network("tiny"), names=("a", "b", "c"))


@pytest.fixture(scope="module")
def runtime(source: DetectorSource) -> HeadsRuntime:
    return source.runtime(CPU)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Stands for weights and artefact alike."""
    path = tmp_path / "best.onnx"
    path.write_bytes(bytes(2_000_000))
    return path


def changed(source: DetectorSource, *, offset: float = 0.0, scale: float = 1.0) -> HeadsRuntime:
    """The network with its heads changed."""
    runtime = source.runtime(CPU)
    run = runtime._run
    runtime._run = lambda images: [maps * scale + offset for maps in run(images)]
    return runtime


def report_of(
    artefact: DetectorRuntime, source: DetectorSource, file: Path, aps: Sequence[float] | None = None
) -> VerifyReport:
    measured = iter(aps or ())
    reference = Reference(
        path=file,
        source=source,
        images=images_of((32, 48), count=2),
        threads=1,
        measure=(lambda runtime, frame_hw: next(measured)) if aps else None,
    )
    return verify(artefact, reference, path=file)


def test_network_agrees_with_itself(runtime: HeadsRuntime, source: DetectorSource, file: Path) -> None:
    report = report_of(runtime, source, file)
    assert report.passed
    assert [head.largest for head in report.agreement.heads] == [0, 0]
    assert report.agreement.boxes.share == 1
    assert report.agreement.ap is None
    assert report.megabytes == (2.0, 2.0)
    assert all(0 < latency.fastest <= latency.median for latency in report.latency)


def test_heads_that_are_off_fail_with_the_numbers(source: DetectorSource, file: Path) -> None:
    report = report_of(changed(source, scale=1.001), source, file)
    assert not report.passed
    assert report.failures[0] == "error of head 0: 0.001, at most 0.0001 allowed"


def test_heads_that_are_not_numbers_fail(source: DetectorSource, file: Path) -> None:
    failures = report_of(changed(source, offset=float("nan")), source, file).failures
    assert failures[0] == "error of head 0: inf, at most 0.0001 allowed"


@pytest.mark.parametrize(("found", "passes"), [(0.5996, True), (0.5994, False), (0.7, True), (float("nan"), False)])
def test_lost_map_fails(
    runtime: HeadsRuntime, source: DetectorSource, file: Path, found: float, passes: bool
) -> None:
    report = report_of(runtime, source, file, aps=[0.6, found])
    assert report.passed is passes
    assert all("mAP lost" in failure for failure in report.failures)


def test_tolerance_is_that_of_the_precision(source: DetectorSource, file: Path) -> None:
    artefact = changed(source, scale=1.001)
    artefact.precision = "fp16"
    assert report_of(artefact, source, file).passed
    assert TOLERANCES["fp32"].ap_loss == 0.0005
    assert [TOLERANCES[name].ap_loss for name in ("fp16", "int8")] == [0.002, 0.01]


def test_size_of_a_folder_is_that_of_the_network_in_it(tmp_path: Path) -> None:
    (tmp_path / "model.ncnn.bin").write_bytes(bytes(1_500_000))
    (tmp_path / "README.md").write_bytes(bytes(9_000_000))
    assert megabytes_of(tmp_path) == 1.5


def test_ties_are_told_in_a_line_and_stored(runtime: HeadsRuntime, source: DetectorSource, file: Path) -> None:
    report = report_of(runtime, source, file)
    assert "not compared" not in verify_table([report])
    boxes = BoxAgreement(expected=10, found=11, matched=9, tied=3, score_difference=0.0)
    with_ties = replace(report, agreement=replace(report.agreement, boxes=boxes))
    lines = verify_table([with_ties]).splitlines()
    assert "100.0% of 10" in lines[1]
    tail = "3 boxes not compared: a choice between scores less than 0.0001 apart fell the other way"
    assert f"best.onnx: {tail}" in lines
    assert (report_data(with_ties)["boxes"]["tied"], report_data(with_ties)["same_boxes"]) == (3, 1.0)


def test_table_and_data_hold_the_verdict(runtime: HeadsRuntime, source: DetectorSource, file: Path) -> None:
    good = report_of(runtime, source, file, aps=[0.6, 0.6001])
    bad = replace(good, path=Path("other.onnx"), failures=("mAP lost: 0.1, at most 0.0005 allowed",))
    lines = verify_table([good, bad]).splitlines()
    assert lines[1].startswith("best.onnx ")
    assert lines[1].endswith("passed")
    assert lines[2].endswith("FAILED")
    assert lines[-1] == "other.onnx: mAP lost: 0.1, at most 0.0005 allowed"
    data = json.loads(json.dumps(report_data(bad)))
    assert (data["passed"], data["tolerance"]) == (False, plain(TOLERANCES["fp32"]))
