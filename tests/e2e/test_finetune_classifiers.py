"""Classifiers trained sparse, fine-tuned with a teacher after a cut, and all stages in one run of slim.py."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from classifier_place import NAMES, SPEC, lenet, save
from interruption import KillAfter, Killed, assert_same_weights
from labelled_classifier import ClassifierPlace, make_classifier_place
from refusal import refusal
from tiny_classes import classifier_config, small_pictures, trained
from tiny_slim import slimmed
from torch import nn

from commands.finetune import finetuning_hooks, run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune import run_pruning
from commands.prune_config import PruneConfig
from commands.slim import run_slimming, slim
from commands.slim_config import SlimConfig
from commands.slim_report import StageResult, slim_table
from commands.slim_start import start_of
from commands.train_result import TrainResult
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from models.complexity import count_macs, count_parameters
from pruning.channels.graph import ChannelGraph
from pruning.importance.criteria import bn_gamma
from tasks.choose import CLASSIFICATION
from tasks.classification import Classification
from utils.config.cli import RESUME_LATEST
from utils.errors import ConfigError, DataError, PruningError
from utils.storage.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ClassifierPlace:
    return make_classifier_place(tmp_path_factory.mktemp("vanilla"), "vanilla")


@pytest.fixture(scope="module")
def small(place: ClassifierPlace) -> str:
    """A pruned checkpoint."""
    result = run_pruning(PruneConfig(**place.settings(percent=0.4, name="small")))
    return str(place.project / "small/pruned_model.pt") if result.folder else ""


def finetune_config(place: ClassifierPlace, weights: str, **settings: Any) -> FinetuneConfig:
    return FinetuneConfig(**place.training(**{"weights": weights, "teacher": str(place.weights), **settings}))


def finetuned(config: FinetuneConfig) -> TrainResult:
    result = run_finetuning(config)
    assert result is not None
    return result


def column(folder: Path, name: str) -> list[float]:
    with (folder / "results.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in load_checkpoint(path).best_weights.items()}


def test_teacher_changes_the_weights_and_reports_its_loss(
    place: ClassifierPlace, small: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = finetune_config(place, small)
    alone = finetuned(replace(config, name="alone", teacher=""))
    with caplog.at_level(logging.INFO):
        taught = finetuned(replace(config, name="taught"))
    with pytest.raises(AssertionError):
        assert_same_weights(alone.last, taught.last)
    assert caplog.text.count("distillation: class ") == 2
    losses = column(taught.folder, "distill/class_loss")
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)


def test_widths_names_and_normalisation_are_kept(place: ClassifierPlace, small: str) -> None:
    result = finetuned(finetune_config(place, small, epochs=1, name="kept"))
    loaded = CLASSIFICATION.load(result.best)
    assert (loaded.spec, loaded.names) == (place.spec, NAMES)
    assert shapes(result.best) == shapes(small) != shapes(place.weights)
    assert place.scores(loaded).headline == result.evaluation.headline


def test_student_gets_closer_to_its_teacher(place: ClassifierPlace, small: str) -> None:
    # Of the labels' loss nothing remains beside this strength.
    config = finetune_config(place, small, epochs=8, distill=100.0, lr0=0.001, optimizer="adam", name="close")
    losses = column(finetuned(config).folder, "distill/class_loss")
    assert losses[-1] < 0.7 * losses[0]


def test_student_that_is_its_teacher_has_distillation_loss_zero(tmp_path: Path) -> None:
    # Without batch norms a network answers alike in training and in evaluation; at this rate no weight changes.
    place = make_classifier_place(tmp_path, "lenet5")
    config = finetune_config(place, str(place.weights), lr0=1e-12, epochs=1)
    assert column(finetuned(config).folder, "distill/class_loss") == pytest.approx([0.0], abs=1e-5)


def test_killed_fine_tuning_goes_on_to_the_same_weights(
    place: ClassifierPlace, small: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = finetune_config(place, small, project=str(tmp_path))
    whole = finetuned(replace(config, name="whole"))
    with monkeypatch.context() as patched:
        patched.setattr(
            "commands.finetune.finetuning_hooks", lambda *given: [*finetuning_hooks(*given), KillAfter(1)]
        )
        with pytest.raises(Killed):
            run_finetuning(replace(config, name="killed"))
    resumed = finetuned(FinetuneConfig(resume=RESUME_LATEST, project=str(tmp_path)))
    assert_same_weights(whole.last, resumed.last)
    assert (whole.folder / "results.csv").read_text() == (resumed.folder / "results.csv").read_text()


def test_frozen_zeros_of_a_classifier_stay_zero(place: ClassifierPlace) -> None:
    run_pruning(PruneConfig(**place.settings(unstructured=0.8, name="zeros")))
    weights = str(place.project / "zeros/pruned_model.pt")
    result = finetuned(finetune_config(place, weights, teacher="", freeze_zeros=True, epochs=1, name="frozen"))
    before, after = load_checkpoint(weights).best_weights, load_checkpoint(result.last).best_weights
    kernels = [name for name, weight in before.items() if weight.ndim == 4]
    assert len(kernels) == 3
    assert sum(int((before[name] == 0).sum()) for name in kernels) > 0
    assert all((after[name][before[name] == 0] == 0).all() for name in kernels)


def test_dense_classifier_is_trained_with_a_warning(
    place: ClassifierPlace, small: str, caplog: pytest.LogCaptureFixture
) -> None:
    finetuned(finetune_config(place, small, teacher="", epochs=1, name="pruned"))
    assert "no channel was pruned" not in caplog.text
    finetuned(finetune_config(place, str(place.weights), teacher="", epochs=1, name="dense"))
    assert "no channel was pruned" in caplog.text


def other_teacher(folder: Path) -> str:
    """A teacher of grey images."""
    return str(save(lenet(), folder / "lenet.pt", SPEC))


def other_normalisation(folder: Path, place: ClassifierPlace) -> str:
    """The dense network, as if it had been trained on images of another brightness."""
    network = CLASSIFICATION.load(place.weights)
    return str(save(network.model, folder / "bright.pt", replace(place.spec, mean=(0.1, 0.1, 0.1))))


def other_order(folder: Path, place: ClassifierPlace) -> str:
    """The dense network with its classes in another order."""
    return str(save(CLASSIFICATION.load(place.weights).model, folder / "order.pt", place.spec, NAMES[::-1]))


def test_teacher_of_other_images_or_classes_is_refused_and_leaves_no_folder(
    place: ClassifierPlace, small: str, tmp_path: Path
) -> None:
    teachers = [other_teacher(tmp_path), other_normalisation(tmp_path, place), other_order(tmp_path, place)]
    for teacher in teachers:
        config = finetune_config(place, small, teacher=teacher, project=str(tmp_path / "runs"))
        with pytest.raises(
            ConfigError, match="its classes, image size or normalisation differ from the student's"
        ) as e:
            run_finetuning(config)
        assert "\n" not in str(e.value)
    assert not (tmp_path / "runs").exists()


def test_other_network_or_classes_are_refused_and_leave_no_folder(
    place: ClassifierPlace, small: str, tmp_path: Path
) -> None:
    runs = str(tmp_path / "runs")
    with pytest.raises(PruningError, match="--cfg resnet20 and --weights .* disagree"):
        run_finetuning(finetune_config(place, small, cfg="resnet20", project=runs))
    model = CLASSIFICATION.load(small).model
    named = save(model, tmp_path / "named.pt", place.spec, tuple("tuvwxyz"))
    with pytest.raises(DataError, match=r"has the classes \['a', .*named.pt has \['t', .*; give the data set it was"):
        run_finetuning(finetune_config(place, str(named), teacher="", project=runs))
    assert not Path(runs).exists()


def test_sparsity_training_of_a_classifier_reports_its_scales_and_draws_a_ridge(place: ClassifierPlace) -> None:
    strength = {"sr": 0.3, "beta_ratio": 0.0, "scale_rate": 20.0, "lr0": 0.01}
    config = SparsityConfig(
        **place.training(weights=str(place.weights), noplots=False, epochs=3, name="sparse", **strength)
    )
    result = run_sparsity_training(config)
    assert result is not None
    report = json.loads((result.folder / "sparsity.json").read_text())
    history = report["gamma"]["epochs"]
    assert len(history) == len(report["force"]) == 4, "the start and three epochs"
    assert report["gamma"]["strength"] == 0.3
    assert (result.folder / "gamma_ridge.png").stat().st_size > 1000
    assert column(result.folder, "sparsity/gamma_at_aim") == pytest.approx([stats["at_aim"] for stats in history[1:]])
    assert history[-1]["at_aim"] < 0.9 * history[0]["at_aim"]
    before, after = (CLASSIFICATION.load(path).model for path in (place.weights, result.last))
    assert mean_scale(after, place) < mean_scale(before, place)


def mean_scale(model: nn.Module, place: ClassifierPlace) -> float:
    graph = ChannelGraph.of(model, image_chw=place.chw)
    return float(bn_gamma(model, graph)[graph.prunable_ids].mean())


@pytest.mark.parametrize("sparsity", ["residual", "kernel", "mixed"])
def test_every_way_of_sparsity_training_gives_finite_weights(tmp_path: Path, sparsity: str) -> None:
    place = make_classifier_place(tmp_path, "resnet20")
    config = SparsityConfig(
        **place.training(epochs=1, sparsity=sparsity, shortcuts="tied", weights=str(place.weights))
    )
    result = run_sparsity_training(config)
    assert result is not None
    assert (result.folder / "sparsity.json").exists()
    assert all(value.isfinite().all() for value in load_checkpoint(result.last).best_weights.values())


def slim_config(place: ClassifierPlace, **settings: Any) -> SlimConfig:
    own = {"finetune_epochs": 2, "target": "macs=50%", "round": "none", "distill": 1.0, "weights": "", "epochs": 1}
    own["stages"] = ("sparse", "prune", "finetune")
    return SlimConfig(**place.training(**{**own, "cfg": "vanilla", "sr": 0.1, "name": "slim", **settings}))


@pytest.fixture(scope="module")
def rows(place: ClassifierPlace) -> Sequence[StageResult]:
    """A finished run of slim.py."""
    return slimmed(slim_config(place)).stages


def test_slim_makes_a_classifier_of_half_the_macs(rows: Sequence[StageResult], place: ClassifierPlace) -> None:
    assert [row.stage for row in rows] == ["round1/sparse", "round1/prune", "round1/finetune"]
    assert rows[2].macs == rows[1].macs <= 0.5 * rows[0].macs
    for row in rows:
        network = CLASSIFICATION.load(row.weights)
        assert (count_parameters(network.model), count_macs(network.model, place.chw)) == (row.parameters, row.macs)
        assert row.scores == {"accuracy": place.scores(network).accuracy}
    result = json.loads((place.project / "slim/result.json").read_text())
    assert [stage["accuracy"] for stage in result["stages"]] == [row.scores["accuracy"] for row in rows]
    assert result["weights"] == str(rows[-1].weights)


def test_sparse_classifier_teaches_the_fine_tuning(rows: Sequence[StageResult], place: ClassifierPlace) -> None:
    folder = place.project / "slim/round1/finetune"
    config = load_checkpoint(folder / "weights/last.pt").config
    assert (config["teacher"], config["distill"]) == (str(rows[0].weights), 1.0)
    assert len(column(folder, "distill/class_loss")) == 2


def test_task_with_images_from_python_is_that_of_the_fine_tuning(tmp_path: Path) -> None:
    pictures = small_pictures()
    plain = classifier_config(tmp_path, epochs=1)
    dense = str(trained(plain, pictures).last)
    values = {item.name: getattr(plain, item.name) for item in fields(plain)}
    values |= {"cfg": "", "weights": dense, "teacher": dense, "name": "tuned"}
    result = run_finetuning(FinetuneConfig(**values), task=Classification(pictures=pictures))
    assert result is not None
    assert result.evaluation.images == len(pictures.test.labels)
    assert len(column(result.folder, "distill/class_loss")) == 1


def test_table_of_slim_lists_accuracy(rows: Sequence[StageResult]) -> None:
    head, *lines = slim_table(rows).splitlines()
    assert head.split() == ["stage", "accuracy", "parameters", "MACs", "G", "MB"]
    assert [line.split()[1] for line in lines] == [f"{row.scores['accuracy']:.3f}" for row in rows]


def test_line_of_a_classifier_begins_with_a_dense_network_and_ends_with_a_verified_file(
    place: ClassifierPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")
    settings = {"project": str(tmp_path), "finetune_epochs": 1, "dense_epochs": 2, "stages": ()}
    config = slim_config(place, **settings, runtime="onnx", precision="int8")
    with caplog.at_level(logging.INFO):
        assert slim(replace(config, dry_run=True))
    assert list(tmp_path.iterdir()) == []
    plan = caplog.messages[-1].splitlines()
    assert [line.split()[0] for line in plan[1:-2] if not line.startswith(" ")] == [
        *("dense", "round1/sparse", "round1/prune", "round1/finetune", "export")
    ]
    assert "--include onnx --int8" in plan[-3]
    caplog.clear()
    result = slimmed(config)
    assert [row.stage for row in result.stages] == [*("dense", "round1/sparse", "round1/prune", "round1/finetune")]
    for row in (result.stages[0], result.stages[-1]):
        assert row.scores == {"accuracy": place.scores(CLASSIFICATION.load(row.weights)).accuracy}
    assert result.exported is not None
    assert result.exported.path == tmp_path / "slim/export/best_int8.onnx"
    assert result.exported.path.is_file()
    assert "without effect: --img-size" not in caplog.text
    dense, small = result.exported.dense, result.exported.milliseconds
    assert small is not None
    assert [other.precision for other in dense] == ["fp32", "int8"]
    assert [other.speedup for other in dense] == [pytest.approx(other.milliseconds / small) for other in dense]
    written = json.loads((tmp_path / "slim/result.json").read_text())["export"]
    assert (written["precision"], written["dense_precision"]) == ("int8", "fp32")
    assert 0 < written["milliseconds"] == small
    assert written["speedup"] == dense[0].speedup > 0
    known = slim_config(place, **{**settings, "cfg": "", "weights": str(result.stages[0].weights)})
    assert start_of(known).config.stages == ("sparse", "prune", "finetune", "export")


def test_killed_slim_run_of_a_classifier_repeats_no_stage(
    rows: Sequence[StageResult], place: ClassifierPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "commands.finetune.finetuning_hooks", lambda *given: [*finetuning_hooks(*given), KillAfter(1)]
        )
        with pytest.raises(Killed):
            run_slimming(slim_config(place, name="killed"))
    written = {path: path.stat().st_mtime_ns for path in (place.project / "killed/round1/prune").iterdir()}
    resumed = slimmed(SlimConfig(resume=str(place.project / "killed"))).stages
    assert {path: path.stat().st_mtime_ns for path in (place.project / "killed/round1/prune").iterdir()} == written
    assert [(row.stage, row.scores) for row in resumed] == [(row.stage, row.scores) for row in rows]
    assert_same_weights(rows[-1].weights, resumed[-1].weights)


def test_slim_refuses_in_one_line_before_anything_is_trained(
    place: ClassifierPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", place.data, "--project", str(tmp_path / "runs"), "--device", "cpu"]
    cases = {
        ("--cfg", "vanilla", "--target", "macs=5"): "target of 5 MACs cannot be reached",
        ("--cfg", "vanila"): "--cfg 'vanila': no such classifier; close: vanilla",
        ("--cfg", "lenet5"): "--cfg lenet5: no network for images of (3, 32, 32)",
    }
    for arguments, line in cases.items():
        assert line in refusal("slim", [*common, *arguments], capsys)
    assert not (tmp_path / "runs").exists()
