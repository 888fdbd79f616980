"""What slim.py asks of its stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands.slim_config import SlimConfig
from utils.config.cli import parse
from utils.errors import ConfigError

FOLDER = Path("runs/slim/exp/round1/stage")


def test_every_stage_starts_and_writes_where_it_is_told() -> None:
    config = SlimConfig(weights="coco.pt", name="mine", exist_ok=False, resume="x")
    stages: list[Any] = [
        config.sparse_training("a.pt", FOLDER, is_first=True),
        config.pruning("a.pt", FOLDER, target=""),
        config.finetuning("a.pt", FOLDER, teacher=""),
    ]
    for stage in stages:
        assert (stage.weights, stage.project, stage.name) == ("a.pt", "runs/slim/exp/round1", "stage")
        assert stage.exist_ok
    assert {stages[0].resume, stages[2].resume} == {""}


def test_only_the_first_training_takes_the_yaml_and_fits_anchors() -> None:
    config = SlimConfig(cfg="yolov5n.yaml", sr=0.01)
    first = config.sparse_training("", FOLDER, is_first=True)
    later = config.sparse_training("a.pt", FOLDER, is_first=False)
    assert (first.cfg, first.noautoanchor) == ("yolov5n.yaml", False)
    assert (later.cfg, later.noautoanchor) == ("", True)
    assert config.finetuning("a.pt", FOLDER, teacher="").cfg == ""


def test_training_settings_reach_both_trainings() -> None:
    config = SlimConfig(epochs=7, finetune_epochs=5, sr=0.02, sparsity="residual", adam=True, img_size=(320, 416))
    sparse, tuned = config.sparse_training("", FOLDER, is_first=True), config.finetuning("a.pt", FOLDER, teacher="")
    assert (sparse.epochs, sparse.sr, sparse.sparsity) == (7, 0.02, "residual")
    assert tuned.epochs == 5
    assert (sparse.adam, sparse.img_size) == (tuned.adam, tuned.img_size) == (True, (320, 416))


def test_channels_fade_by_default_and_other_sparsity_has_a_strength() -> None:
    fading = SlimConfig(target="macs=50%").sparse_training("a.pt", FOLDER, is_first=False)
    assert (fading.sr, fading.shortcuts, fading.target) == ("auto", "tied", "macs=50%")
    config = SlimConfig(target="macs=50%", sparsity="kernel")
    drawn = config.sparse_training("a.pt", FOLDER, is_first=False)
    assert (config.is_auto, drawn.sr, drawn.target) == (False, None, "")


def test_cut_is_measured_at_the_size_that_is_validated() -> None:
    config = SlimConfig(img_size=(320, 416), batch_size=4, noplots=True, min_channels=3, round="8", shortcuts="tied")
    cut = config.pruning("a.pt", FOLDER, target="params=700K")
    assert (cut.img_size, cut.batch_size, cut.noplots, cut.data) == (416, 4, True, config.data)
    assert (cut.min_channels, cut.round, cut.shortcuts, cut.target) == (3, "8", "tied", "params=700K")


@pytest.mark.parametrize(
    ("sparsity", "criterion"), [("bn", "bn_gamma"), ("mixed", "bn_gamma"), ("kernel", "kernel_l1")]
)
def test_channels_are_ranked_by_what_was_drawn_to_zero(sparsity: Any, criterion: str) -> None:
    assert SlimConfig(sparsity=sparsity).pruning("a.pt", FOLDER, target="").criterion == criterion


def test_there_is_a_teacher_only_with_distillation() -> None:
    assert SlimConfig().finetuning("a.pt", FOLDER, teacher="t.pt").teacher == ""
    taught = SlimConfig(distill=0.5).finetuning("a.pt", FOLDER, teacher="t.pt")
    assert (taught.teacher, taught.distill) == ("t.pt", 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, r"--rounds 0: expected at least 1"),
        ({"finetune_epochs": 0}, r"--finetune-epochs 0: expected at least 1"),
        ({"min_channels": 0}, r"--min-channels 0: expected at least 1"),
        ({"percent": 1.0}, r"--percent 1.0: expected a share from 0"),
        ({"percent": 0.5, "target": "macs=50%"}, r"--percent and --target both say how much to cut; leave one out"),
        ({"target": "size=3"}, r"--target size=3: expected a form such as macs=2.1G"),
        ({"round": "pow3"}, r"--round pow3: expected pow2, none or a number"),
        ({"distill": -1.0}, r"--distill -1.0: expected 0 or a positive number"),
        ({"sr": -1.0}, r"--sr -1.0: expected 0 or a positive number"),
        ({"single_cls": True}, r"--single-cls is not for several stages; give data of one class"),
        ({"evolve": 3}, r"--evolve is not for sparsity training"),
    ],
)
def test_settings_of_every_stage_are_checked_when_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SlimConfig(**settings)


@pytest.mark.parametrize("name", ["quick", "full"])
def test_shipped_presets_are_read_and_flags_override_them(name: str) -> None:
    config = parse(SlimConfig, ["--preset", name], bare={})
    assert (config.preset, config.cache_images, config.distill) == (name, True, 1.0)
    assert config.dense_epochs + config.epochs + config.finetune_epochs <= 100
    own = parse(SlimConfig, ["--epochs", "3", "--preset", name, "--distill", "0"], bare={})
    assert own == replace(config, epochs=3, distill=0.0)


def test_dense_training_and_export_take_their_settings() -> None:
    config = SlimConfig(
        dense_epochs=7, epochs=3, cfg="yolov5n.yaml", img_size=(320, 416), precision="int8", threads=2
    )
    dense = config.dense_training("coco.pt", Path("runs/slim/exp/dense"))
    assert (dense.epochs, dense.cfg, dense.weights, dense.noautoanchor) == (7, "yolov5n.yaml", "coco.pt", False)
    assert (dense.project, dense.name, dense.exist_ok) == ("runs/slim/exp", "dense", True)
    exported = config.exporting("a.pt", Path("runs/slim/exp/export"))
    assert (exported.weights, exported.include, exported.precision) == ("a.pt", ("ncnn",), "int8")
    assert (exported.data, exported.threads, exported.img_size) == (config.data, 2, (416,))
    assert exported.folder == Path("runs/slim/exp/export")
    assert SlimConfig(precision="fp16").exporting("a.pt", FOLDER).half


def test_cut_plans_for_the_runtime_only_towards_a_time() -> None:
    config = SlimConfig(precision="int8", runtime="onnx", threads=3, latency_table="none.json")
    assert config.pruning("a.pt", FOLDER, target="macs=50%").runtime == "ncnn"  # prune.py would warn of settings
    with pytest.raises(ConfigError, match="--latency-table none.json: no such file"):
        config.pruning("a.pt", FOLDER, target="ms=8")
    timed = replace(config, latency_table="").pruning("a.pt", FOLDER, target="ms=8")
    assert (timed.runtime, timed.precision, timed.threads) == ("onnx", "int8", 3)
