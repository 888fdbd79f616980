"""The command lines are frozen: a flag that goes or changes its name breaks users' commands."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from commands.detect_config import DetectConfig
from commands.export_config import ExportConfig
from commands.finetune_config import FinetuneConfig
from commands.prune_config import PruneConfig
from commands.quantize_config import QuantizeConfig
from commands.slim_config import SlimConfig
from commands.train_config import DEFAULT_TRIALS, TrainConfig
from commands.train_sparsity_config import SparsityConfig
from commands.val_config import ValConfig
from pruning.selection.rounding import Rounding
from utils.config.cli import RESUME_LATEST, parse, run_script
from utils.errors import ConfigError

BARE = {"--resume": RESUME_LATEST, "--evolve": str(DEFAULT_TRIALS)}

TRAIN_FLAGS = """
    --adam --amp --augment --batch --batch-size --cache --cache-dir --cache-images --cfg --close-mosaic --data
    --device --ema-steps --epochs --evolve --exist-ok --freeze --hyp --image-weights --img --img-size --imgsz
    --label-smoothing --linear-lr --lr0 --lrf --milestones --momentum --multi-scale --name --no-amp --noautoanchor
    --nominal-batch --noplots --nosave --notest --noval --optimizer --patience --project --quad --rect --repr
    --repr-cycles --repr-ratio --repr-s1 --repr-s2 --resume --save-period --schedule --seed --single-cls --sync-bn
    --warmup-epochs --weight-decay --weights --workers
"""
FINETUNE_FLAGS = " ".join(
    sorted([*TRAIN_FLAGS.split(), "--distill", "--features", "--freeze-zeros", "--plan", "--scale-rate", "--teacher"])
)
SPARSITY_FLAGS = " ".join(
    sorted(
        [
            *TRAIN_FLAGS.split(),
            *("--aim", "--beta-ratio", "--no-decay", "--no-st", "--scale-rate", "--shortcuts", "--sparsity"),
            *("--sr", "--srb", "--src"),
            # Of --sr auto, which chooses what the cut will take.
            *(
                "--latency-table",
                "--limit",
                "--min-channels",
                "--percent",
                "--precision",
                "--round",
                "--round-direction",
            ),
            *("--runtime", "--target", "--threads"),
        ]
    )
)
SLIM_FLAGS = " ".join(
    sorted(
        [
            *SPARSITY_FLAGS.split(),
            *("--dense-epochs", "--distill", "--dry-run", "--features", "--finetune-epochs", "--latency-layers"),
            *("--candidates", "--max-map-drop", "--preset", "--probe-epochs", "--qat-epochs", "--report", "--rounds"),
            *("--stages", "--start", "--teacher"),
        ]
    )
)
PRUNE_FLAGS = """
    --balance --batch --batch-size --bn-percent --cache-dir --cfg --conv-percent --cost-power --criterion --data
    --device --drop-bottlenecks --dry-run --exist-ok --hyp --img --img-size --imgsz --iterative
    --latency-layers --latency-table --limit --lr --min-channels --name --no-constants --noplots --notest --noval
    --percent --plan --precision --project --protect --resume --round --round-direction --runtime --scan --seed
    --sensitivity --sensitivity-images --shortcuts --step --strict --target --taylor-batches --threads --tolerance
    --unstructured --unstructured-scope --updates --weights --workers
"""
VAL_FLAGS = """
    --augment --batch --batch-size --cache-dir --conf --conf-thres --data --device --engine --exist-ok --half --img
    --img-size --imgsz --iou --iou-thres --max-det --name --no-rect --powersave --project --save-conf --save-hybrid
    --save-json --save-txt --single-cls --study-sizes --task --threads --verbose --weights --workers
"""
DETECT_FLAGS = """
    --agnostic-nms --augment --classes --conf --conf-thres --device --exist-ok --half --hide-conf --hide-labels --img
    --img-size --imgsz --iou --iou-thres --line-thickness --max-det --name --nosave --powersave --project --save-conf
    --save-crop --save-json --save-txt --source --threads --view-img --weights
"""
EXPORT_FLAGS = """
    --batch --batch-size --beside --cache-dir --calib-images --calib-method --compute-capability --conf
    --conf-thres --data --dynamic --exist-ok --half --img --img-size --imgsz --include --int8 --int8-budget
    --int8-search --int8-skip --int8-trained --iou --iou-thres --max-det --name --nms --opset --output --project
    --threads --verify-images --verify-only --weights --workers
"""
QUANTIZE_FLAGS = """
    --activation-bits --activation-symmetric --amp --augment --batch --batch-size --budget --budget-bits
    --cache-dir --calib-images --data --device --distill --exist-ok --fake --features --float-yaml --head-bits --hyp
    --img --img-size --imgsz --layers --layout --lr0 --max-map-drop --name --no-compensate --no-learn-scales
    --observer --output --per-tensor --percentile --project --qat-epochs --resume --runtime --seed --sensitivity
    --sensitivity-images --sensitivity-part --teacher --threads --weight-asymmetric --weight-bits --weight-range
    --weights --workers --yaml
"""


FROZEN = [
    (TrainConfig, TRAIN_FLAGS),
    (SparsityConfig, SPARSITY_FLAGS),
    (PruneConfig, PRUNE_FLAGS),
    (FinetuneConfig, FINETUNE_FLAGS),
    (SlimConfig, SLIM_FLAGS),
    (ValConfig, VAL_FLAGS),
    (DetectConfig, DETECT_FLAGS),
    (ExportConfig, EXPORT_FLAGS),
    (QuantizeConfig, QUANTIZE_FLAGS),
]


def flags_of(config_type: type[Any]) -> list[str]:
    """Every spelling of every flag of a configuration."""
    hints = get_type_hints(config_type, include_extras=True)
    flags = []
    for field in fields(config_type):
        name = field.name.replace("_", "-")
        flags.append(f"--no-{name}" if field.default is True else f"--{name}")
        for extra in getattr(hints[field.name], "__metadata__", ()):
            flags += extra.aliases or ()
    return sorted(flags)


def switched_off(config: Any, names: str) -> list[str]:
    """Those of the named switches that are off."""
    return [name for name in names.split() if not getattr(config, name)]


def parsed(config_type: type[Any], line: str) -> Any:
    return parse(config_type, line.split(), bare=BARE)


@pytest.mark.parametrize(("config_type", "frozen"), FROZEN)
def test_flags_are_the_frozen_ones(config_type: type[Any], frozen: str) -> None:
    assert flags_of(config_type) == frozen.split()


@pytest.mark.parametrize(("config_type", "frozen"), FROZEN)
def test_help_shows_every_flag(
    config_type: type[Any], frozen: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit) as caught:
        parsed(config_type, "--help")
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert [flag for flag in ["--config", *frozen.split()] if flag not in shown] == []


def test_train_takes_the_spellings_of_v5() -> None:
    config = parsed(
        TrainConfig,
        "--weights yolov5s.pt --cfg yolov5s.yaml --data coco.yaml --hyp data/hyp.scratch.yaml --epochs 100 "
        "--batch-size 8 --img-size 640 640 --resume --nosave --notest --noautoanchor --evolve --cache-images "
        "--image-weights --device 0,1 --multi-scale --single-cls --adam --sync-bn --workers 4 --project runs/x "
        "--name y --exist-ok --quad --linear-lr --label-smoothing 0.1 --save-period 5",
    )
    assert (config.weights, config.img_size, config.batch_size) == ("yolov5s.pt", (640, 640), 8)
    assert (config.resume, config.evolve, config.device) == ("latest", 300, "0,1")
    switches = "nosave notest noautoanchor cache_images image_weights multi_scale single_cls adam sync_bn exist_ok"
    assert switched_off(config, switches + " quad linear_lr") == []
    assert (config.optimizer_name, config.schedule_name) == ("adam", "linear")
    assert (config.label_smoothing, config.save_period) == (0.1, 5)


def test_sparsity_training_takes_the_published_commands() -> None:
    config = parsed(SparsityConfig, "--st --sr 0.0001 --weights yolov5s.pt --adam --epochs 100")
    assert (config.st, config.sr, config.weights, config.optimizer_name) == (True, 0.0001, "yolov5s.pt", "adam")
    assert (config.epochs, config.sparsity, config.decay, config.shortcuts) == (100, "bn", True, "skip")
    mixed = parsed(SparsityConfig, "--st --sparsity mixed --srb 5e-4 --src 1e-5 --no-decay")
    assert (mixed.sparsity, mixed.srb, mixed.src, mixed.decay) == ("mixed", 5e-4, 1e-5, False)
    assert not parsed(SparsityConfig, "--no-st").st
    assert parsed(SparsityConfig, "--resume").resume == "latest"


def test_pruning_takes_the_published_commands() -> None:
    config = parsed(PruneConfig, "--weights runs/train/exp1/weights/last.pt --percent 0.5 --cfg models/yolov5s.yaml")
    assert (config.weights, config.percent, config.cfg) == (
        "runs/train/exp1/weights/last.pt",
        0.5,
        "models/yolov5s.yaml",
    )
    assert (config.criterion, config.rounding, config.shortcuts, config.constants) == (
        "bn_gamma",
        Rounding(unit=0),
        "skip",
        True,
    )
    mixed = parsed(PruneConfig, "--weights a.pt --bn-percent 0.85 --conv-percent 0.78 --protect model.2* model.9*")
    assert (mixed.bn_percent, mixed.conv_percent, mixed.protect) == (0.85, 0.78, ("model.2*", "model.9*"))
    assert parsed(PruneConfig, "--weights a.pt --drop-bottlenecks all --round 8").drop_bottlenecks == ("all",)
    assert not parsed(PruneConfig, "--weights a.pt --no-constants").constants
    rounds = parsed(PruneConfig, "--weights a.pt --data d.yaml --criterion taylor --iterative --step 64 --updates 9")
    assert (rounds.iterative, rounds.step, rounds.updates, rounds.lr, rounds.percent) == (True, 64, 9, 1e-3, None)
    assert parsed(PruneConfig, "--resume runs/prune/exp").resume == "runs/prune/exp"


def test_finetuning_takes_what_training_takes() -> None:
    config = parsed(
        FinetuneConfig,
        "--weights pruned_model.pt --adam --epochs 100 --noautoanchor --teacher dense.pt --distill 0.5",
    )
    assert (config.weights, config.optimizer_name, config.epochs) == ("pruned_model.pt", "adam", 100)
    assert (config.noautoanchor, config.teacher, config.distill) == (True, "dense.pt", 0.5)
    assert parsed(FinetuneConfig, "--resume").resume == "latest"


def test_slimming_takes_what_its_stages_take() -> None:
    config = parsed(
        SlimConfig,
        "--weights yolov5s.pt --sr 0.01 --epochs 40 --finetune-epochs 30 --rounds 2 --target macs=50% --round 8 "
        "--distill 1",
    )
    assert (config.sr, config.epochs, config.finetune_epochs, config.rounds) == (0.01, 40, 30, 2)
    assert (config.target, config.round, config.distill, config.percent) == ("macs=50%", "8", 1.0, None)
    assert parsed(SlimConfig, "--resume").resume == "latest"


@pytest.mark.parametrize("name", ["--img-size", "--img_size", "--img", "--imgsz"])
def test_one_image_size_will_do(name: str) -> None:
    assert parsed(TrainConfig, f"{name} 320 --rect").img_size == (320,)


def test_flags_added_since_v5_are_taken() -> None:
    config = parsed(TrainConfig, "--seed 3 --patience 5 --freeze 10 --optimizer ranger --schedule flat --no-amp")
    assert (config.seed, config.patience, config.freeze, config.amp_name) == (3, 5, (10,), "off")
    assert (config.optimizer_name, config.schedule_name) == ("ranger", "flat")


def test_classifiers_train_by_flags_of_their_own() -> None:
    config = parsed(
        TrainConfig,
        "--data images --cfg torchvision:resnet18 --augment resized-crop --lr0 0.1 --lrf 0.05 --momentum 0.8 "
        "--weight-decay 1e-4 --warmup-epochs 2 --label-smoothing 0.1 --schedule multistep --milestones .5 .75",
    )
    assert (config.data, config.cfg, config.augment) == ("images", "torchvision:resnet18", "resized-crop")
    assert (config.lr0, config.lrf, config.momentum, config.weight_decay) == (0.1, 0.05, 0.8, 1e-4)
    assert (config.warmup_epochs, config.label_smoothing) == (2.0, 0.1)
    assert (config.schedule_name, config.milestones) == ("multistep", (0.5, 0.75))


def test_repr_is_a_flag_of_every_training() -> None:
    line = "--repr --repr-s1 5 --repr-s2 3 --repr-cycles 2 --repr-ratio 0.2"
    for config_type in (TrainConfig, SparsityConfig, FinetuneConfig):
        config = parsed(config_type, line)
        assert (config.repr, config.repr_s1, config.repr_s2, config.repr_cycles) == (True, 5, 3, 2)
        assert config.repr_ratio == 0.2
    assert not parsed(TrainConfig, "").repr


def test_val_takes_the_spellings_of_v5() -> None:
    config = parsed(
        ValConfig,
        "--weights a.pt b.pt --data coco.yaml --batch-size 16 --img-size 640 --conf-thres 0.001 --iou-thres 0.65 "
        "--task test --device cpu --single-cls --augment --verbose --save-txt --save-hybrid --save-conf --save-json "
        "--project runs/x --name y --exist-ok",
    )
    assert (config.weights, config.iou_thres, config.task) == (("a.pt", "b.pt"), 0.65, "test")
    assert switched_off(config, "single_cls augment verbose save_txt save_hybrid save_conf save_json exist_ok") == []


def test_detect_takes_the_spellings_of_v5() -> None:
    config = parsed(
        DetectConfig,
        "--weights a.pt --source 0 --img-size 640 --conf-thres 0.3 --iou-thres 0.5 --device cpu --view-img "
        "--save-txt --save-conf --nosave --classes 0 2 --agnostic-nms --augment --project runs/x --name y --exist-ok",
    )
    assert (config.weights, config.source, config.classes) == (("a.pt",), "0", ("0", "2"))
    assert switched_off(config, "view_img save_txt save_conf nosave agnostic_nms augment exist_ok") == []


def test_settings_of_a_run_come_back_as_its_config_file(tmp_path: Path) -> None:
    path = tmp_path / "opt.yaml"
    path.write_text("data: mine.yaml\nimg_size: [320, 416]\nepochs: 7\nlr0: 1e-3\nrect: true\n")
    config = parsed(TrainConfig, f"--config {path} --epochs 9")
    assert config == TrainConfig(data="mine.yaml", img_size=(320, 416), epochs=9, lr0=0.001, rect=True)


@pytest.mark.parametrize("config_type", [ValConfig, DetectConfig])
@pytest.mark.parametrize(("text", "size"), [("640", 640), ("null", None)])
def test_image_size_of_a_run_may_be_given_or_not(
    config_type: type, text: str, size: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "opt.yaml"
    path.write_text(f"weights: [a.pt]\nimg_size: {text}\n")
    assert parsed(config_type, f"--config {path}").img_size == size
    assert parsed(config_type, f"--config {path} --img 320").img_size == 320
    assert parsed(config_type, "--weights a.pt").img_size is None


def test_unknown_key_of_a_config_file_lists_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "opt.yaml"
    path.write_text("epoch: 7\n")
    with pytest.raises(SystemExit) as caught:
        run_script(lambda config: None, TrainConfig, argv=["--config", str(path)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: unknown key 'epoch'; known: weights, cfg, data, img_size, epochs")
    assert error.count("\n") == 1


def test_unknown_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_script(lambda config: None, TrainConfig, argv=["--epoch-count", "3"])
    assert caught.value.code == 2
    assert "--epoch-count" in capsys.readouterr().err


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="both decide the order of images; leave one out"):
        TrainConfig(image_weights=True, rect=True)
