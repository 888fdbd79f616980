"""Which layers the int8 search ranks first, when it ends, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import detector_job, export_arguments, images_of
from int8_exports import HEADS, HW, calibration_of, int8_layers, pictures

from deploy.int8.calibration import Int8Calibration, Layers
from deploy.int8.search import Int8Search, Int8SearchSettings, Int8Trial, int8_errors, search_int8_skips
from deploy.ncnn.export import write_ncnn
from deploy.ncnn.int8 import FloatFolder, write_int8
from deploy.onnx.network import write_onnx
from deploy.outputs.heads import head_change
from deploy.outputs.metadata import Metadata, folder_metadata
from models.detector import Detector
from utils.errors import ConfigError

pytest.importorskip("ncnn", reason="the ncnn package is not installed")
pytest.importorskip("pnnx", reason="the pnnx package is not installed")


@pytest.fixture(scope="module")
def calibration(model: Detector, plain: Path) -> Int8Calibration:
    return calibration_of(model, plain, images=pictures(1))[1]


@pytest.fixture(scope="module")
def metadata(plain: Path) -> Metadata:
    return folder_metadata(plain)


def test_errors_rank_the_layer_whose_weights_are_spoilt_first(
    model: Detector, metadata: Metadata, plain: Path
) -> None:
    calibration = calibration_of(model, plain, images=pictures(1))[1]
    with torch.no_grad():
        # Weights far beyond the others make those zeros in 8 bits; they multiply nothing but zeros themselves.
        for tensor in calibration.network.weights("model.3.cv3.conv"):
            tensor[0] = 0
        calibration.network.weights("model.4.conv")[0][:, 0] = 1000
    errors = int8_errors(calibration, images=pictures(1), metadata=metadata)
    assert next(iter(errors)) == "model.4.conv"
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert set(errors) == set(calibration.choosable)


def search(
    calibration: Int8Calibration, metadata: Metadata, metric_of: Callable[[Layers], float], **settings: Any
) -> Int8Search:
    return search_int8_skips(
        calibration, metric_of=metric_of, reference=0.6, metadata=metadata, search=Int8SearchSettings(**settings)
    )


def integers_of(layers: Layers) -> set[str]:
    return {name for name, layer in layers.items() if layer.integers is not None}


def test_search_skips_the_worst_layers_until_the_drop_is_tolerated(
    calibration: Int8Calibration, metadata: Metadata
) -> None:
    num_layers = len(calibration.choosable)

    def metric_of(layers: Layers) -> float:
        """.60 in fp32; in int8 .02 less for each layer beyond all but two."""
        return 0.6 - 0.02 * max(0, len(integers_of(layers)) - (num_layers - 2))

    found = search(calibration, metadata, metric_of, tolerance=0.01)
    worst = tuple(found.errors)
    assert set(worst) == set(calibration.choosable) == set(calibration.network.graph.weighted) - HEADS
    assert found.is_within
    assert found.best == Int8Trial(skip=worst[:2], value=0.6, drop=0.0)
    assert [trial.skip for trial in found.trials] == [(), worst[:1], worst[:2]]
    assert [trial.drop for trial in found.trials] == pytest.approx([0.04, 0.02, 0.0])
    assert integers_of(found.layers) == set(worst[2:])
    assert search(calibration, metadata, metric_of, tolerance=0.01).trials == found.trials


def test_search_ranks_nothing_where_int8_costs_little(calibration: Int8Calibration, metadata: Metadata) -> None:
    found = search(calibration, metadata, lambda _: 0.595)
    assert (found.best.skip, found.is_within, found.errors) == ((), True, {})
    assert integers_of(found.layers) == set(calibration.choosable)


def test_search_that_fails_gives_the_best_it_saw_and_says_so(
    calibration: Int8Calibration, metadata: Metadata, caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([0.3, 0.5, 0.4])
    found = search(calibration, metadata, lambda _: next(scores), max_skips=2)
    assert not found.is_within
    assert found.best == found.trials[1]
    assert len(integers_of(found.layers)) == len(calibration.choosable) - 1
    assert "int8 loses 0.1000 mAP with 1 layers skipped, more than allowed" in caplog.text


def test_search_leaves_the_weights_of_the_calibration_as_they_were(
    calibration: Int8Calibration, metadata: Metadata
) -> None:
    before = {name: tensor.clone() for name, tensor in calibration.network.state_dict().items()}
    search(calibration, metadata, lambda _: 0.0, max_skips=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in calibration.network.state_dict().items())


def test_ncnn_and_onnx_measure_their_own_artefacts_in_the_search(model: Detector, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    measured: list[str] = []

    def measure(runtime: Any, _frame: tuple[int, int] | None) -> float:
        measured.append(runtime.format)
        return 0.6 if runtime.format == ".pt" else 0.5  # every trial loses too much

    for name, write in (("best_ncnn_model", write_ncnn), ("best.onnx", write_onnx)):
        arguments = export_arguments(model, image_hw=HW, precision="int8")
        calibration = images_of(HW, count=1).split(1)
        job = replace(detector_job(model, calibration=calibration, int8_search=True, **arguments), measure=measure)
        write(job, tmp_path / name)
    # The float network, then int8 with 0 to 8 layers left out.
    assert measured == [".pt", *["_ncnn_model"] * 9, ".pt", *[".onnx"] * 9]
    assert int8_layers(tmp_path / "best_ncnn_model")


def test_files_of_a_trial_are_those_of_its_layers(calibration: Int8Calibration, plain: Path, tmp_path: Path) -> None:
    source = FloatFolder.read(plain)
    write_int8(source, tmp_path, calibration.layers(skip=calibration.choosable[1:]))
    assert int8_layers(tmp_path) == {calibration.choosable[0]}


def test_change_of_a_head_counts_only_where_there_are_objects() -> None:
    exact = torch.full((1, 1, 1, 2, 6), -2.0)
    exact[..., 4] = torch.tensor([20.0, -20.0])
    background, objects = exact.clone(), exact.clone()
    background[..., 1, :4] = 5.0
    objects[..., 0, 5] = 2.0
    assert head_change(background, exact) == pytest.approx(0, abs=1e-6)
    # One of six outputs of the one object goes from sigmoid(-2) to sigmoid(2).
    assert head_change(objects, exact) == pytest.approx((0.8808 - 0.1192) / 6, abs=1e-4)


@pytest.mark.parametrize("settings", [{"tolerance": -0.1}, {"max_skips": -1}, {"num_images": 0}])
def test_search_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"int8 search: \w+ is -?\d.*expected at least"):
        Int8SearchSettings(**settings)  # type: ignore[arg-type]
