"""Fine-tuning a pruned checkpoint, alone and with a teacher, on a tiny network."""

from __future__ import annotations

import csv
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from interruption import KillAfter, Killed, assert_same_weights
from tiny import TINY_CFG, tiny_config
from torch import Tensor

from commands.finetune import find_weights, finetuning_hooks, run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from engine.training.distributed import mean_over_ranks
from engine.training.hooks import Hook, Step
from engine.training.trainer import Trainer
from models.detector import Detector, build_model
from models.load import load_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.distillation import DistillationHook
from pruning.surgery.cut import apply_plan
from pruning.surgery.plan import PLAN_NAME, PruningPlan
from tasks.task import Network
from utils.config.cli import RESUME_LATEST, run_script
from utils.errors import CheckpointError, ConfigError, DataError, PruningError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from utils.storage.run_folder import plain

NAMES = ("RBC", "WBC", "Platelets")
DENSE = ModelSpec.from_yaml(TINY_CFG)
PRUNED = replace(DENSE, widths={"model.0": 5, "model.2": 12, "model.3.cv3": 11, "model.8.cv2": 3})


def save(spec: ModelSpec, path: Path, *, names: tuple[str, ...] = NAMES, seed: int = 0) -> str:
    """A checkpoint that sees something everywhere, so that as a teacher it is confident."""
    torch.manual_seed(seed)
    model = build_model(spec)
    with torch.no_grad():
        for conv in model.head.m:
            conv.bias.view(3, -1)[:, 4] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=names, weights=model.state_dict()), path)
    return str(path)


def finetune_config(folder: Path, **settings: Any) -> FinetuneConfig:
    """Two epochs from a pruned checkpoint; the anchors are left to fine-tuning to keep."""
    values = plain(tiny_config(folder)) | {"cfg": "", "noautoanchor": False, "img_size": (64,), "freeze": (0,)}
    values["weights"] = save(PRUNED, folder / "pruned.pt")
    return FinetuneConfig(**{**values, **settings})


def with_teacher(folder: Path, **settings: Any) -> FinetuneConfig:
    return finetune_config(folder, teacher=save(DENSE, folder / "dense.pt", seed=1), **settings)


def finetuned(config: FinetuneConfig) -> TrainResult:
    result = run_finetuning(config)
    assert result is not None
    return result


def column(result: TrainResult, name: str) -> list[float]:
    with (result.folder / "results.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_widths_anchors_and_names_are_kept(tmp_path: Path) -> None:
    odd = replace(PRUNED, anchors=((3.0, 3.0) * 3, (5.0, 5.0) * 3))  # autoanchor would replace these
    result = finetuned(finetune_config(tmp_path, weights=save(odd, tmp_path / "odd.pt"), epochs=1))
    checkpoint = load_checkpoint(result.best)
    assert ModelSpec.from_dict(checkpoint.spec) == odd
    assert checkpoint.names == NAMES
    assert load_model(result.last).model.spec == odd


def test_teacher_changes_the_weights_and_reports_its_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = with_teacher(tmp_path)
    alone = finetuned(replace(config, name="alone", teacher=""))
    with caplog.at_level(logging.INFO):
        taught = finetuned(replace(config, name="taught"))
    with pytest.raises(AssertionError):
        assert_same_weights(alone.last, taught.last)
    assert "distillation: teacher with 0." in caplog.text
    assert caplog.text.count("distillation: box ") == 2
    for name in ("box", "obj", "cls"):
        values = column(taught, f"distill/{name}_loss")
        assert len(values) == 2
        assert all(value > 0 for value in values)
    assert load_checkpoint(taught.last).spec == load_checkpoint(alone.last).spec


def with_plan(folder: Path, **settings: Any) -> FinetuneConfig:
    """A student that was cut from its teacher, with the plan beside it."""
    teacher = save(DENSE, folder / "dense.pt", seed=1)
    model = load_model(teacher).model
    graph = ChannelGraph.of(model)
    dropped = np.concatenate([group.ids[:2] for group in graph.groups])
    plan = PruningPlan.of(model, graph, dropped[~np.isin(dropped, list(graph.protected))])
    plan.save(folder / "cut" / PLAN_NAME)
    student = apply_plan(model, plan)
    assert isinstance(student, Detector)
    weights = folder / "cut/pruned_model.pt"
    checkpoint = Checkpoint(spec=student.spec.to_dict(), names=NAMES, weights=student.state_dict())
    save_checkpoint(checkpoint, weights)
    return finetune_config(folder, **{"weights": str(weights), "teacher": teacher, **settings})


def test_features_follow_the_teacher_where_the_plan_lies_beside_the_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_plan(tmp_path, epochs=6, features=100.0, adam=True, lr0=0.005, notest=True)
    with caplog.at_level(logging.INFO):
        result = finetuned(config)
    distance = column(result, "distill/features_loss")
    assert distance[-1] < 0.8 * distance[0]
    assert "strength 1, features 100" in caplog.text
    assert load_checkpoint(result.last).config["plan"] == str(tmp_path / "cut" / PLAN_NAME)
    assert not any(module._forward_pre_hooks for module in load_model(result.last).model.modules())


def test_features_alone_teach_too(tmp_path: Path) -> None:
    # The layers of an untrained teacher read values near zero, so that distances are huge.
    config = with_plan(tmp_path, notest=True, features=1e-6)
    alone, both = (finetuned(replace(config, name=f"d{strength}", distill=strength)) for strength in (0.0, 1.0))
    with pytest.raises(AssertionError):
        assert_same_weights(alone.last, both.last)
    assert column(alone, "distill/features_loss") != column(alone, "distill/obj_loss")


def test_without_features_the_plan_changes_nothing(tmp_path: Path) -> None:
    config = with_plan(tmp_path, epochs=1, notest=True)
    without = finetuned(replace(config, name="without", features=0.0))
    (tmp_path / "cut" / PLAN_NAME).unlink()
    gone = finetuned(replace(config, name="gone"))
    assert_same_weights(without.last, gone.last)
    assert "distill/features_loss" not in (gone.folder / "results.csv").read_text()


def test_resumed_run_that_follows_features_ends_with_bit_identical_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_plan(tmp_path)
    whole = finetuned(replace(config, name="whole"))
    with monkeypatch.context() as patched:
        patched.setattr(
            "commands.finetune.finetuning_hooks", lambda *given: [*finetuning_hooks(*given), KillAfter(1)]
        )
        with pytest.raises(Killed):
            run_finetuning(replace(config, name="killed"))
    resumed = finetuned(FinetuneConfig(resume=RESUME_LATEST, project=config.project))
    assert_same_weights(whole.last, resumed.last)
    assert (whole.folder / "results.csv").read_text() == (resumed.folder / "results.csv").read_text()


def test_plan_of_another_cut_is_refused_if_given_and_left_out_if_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_plan(tmp_path, epochs=1, notest=True, weights=save(PRUNED, tmp_path / "cut/other.pt"))
    with pytest.raises(PruningError, match=r"--plan .*plan.json: layer .*: the plan lets it read \d+ channels"):
        run_finetuning(replace(config, plan=str(tmp_path / "cut" / PLAN_NAME)))
    with caplog.at_level(logging.INFO):
        result = finetuned(config)
    assert "only the teacher's answers are learnt; " in caplog.text
    assert column(result, "distill/obj_loss")
    assert "distill/features_loss" not in (result.folder / "results.csv").read_text()


def test_student_of_a_longer_run_answers_more_like_its_teacher(tmp_path: Path) -> None:
    # Of the labels' loss nothing remains beside this strength.
    result = finetuned(with_teacher(tmp_path, epochs=6, distill=100.0, adam=True, lr0=0.005, notest=True))
    objectness = column(result, "distill/obj_loss")
    assert objectness[-1] < 0.7 * objectness[0]


def test_strength_zero_is_train_py_to_the_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = with_teacher(tmp_path, distill=0.0)
    zero = finetuned(replace(config, name="zero"))
    fields = set(TrainConfig.__dataclass_fields__)
    values = {name: value for name, value in vars(config).items() if name in fields}
    plainly = run_training(TrainConfig(**{**values, "noautoanchor": True, "name": "plain"}))
    assert plainly is not None
    assert_same_weights(zero.last, plainly.last)
    assert "the teacher is not used" in caplog.text


def test_strength_without_a_teacher_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finetuned(replace(with_teacher(tmp_path, distill=2.0, notest=True), teacher="", epochs=1))
    assert "without --teacher; without effect: --distill" in caplog.text


def test_resumed_run_with_a_teacher_ends_with_bit_identical_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_teacher(tmp_path)
    whole = finetuned(replace(config, name="whole"))
    with monkeypatch.context() as patched:
        patched.setattr(
            "commands.finetune.finetuning_hooks",
            lambda *given: [*finetuning_hooks(*given), KillAfter(1)],
        )
        with pytest.raises(Killed):
            run_finetuning(replace(config, name="killed"))
    Path(config.weights).unlink()  # a resumed run needs its own checkpoint and the teacher alone
    resumed = finetuned(FinetuneConfig(resume=RESUME_LATEST, project=config.project))
    assert_same_weights(whole.last, resumed.last)
    assert (whole.folder / "results.csv").read_text() == (resumed.folder / "results.csv").read_text()


class Watcher(Hook):
    """Looks at what a distillation step must leave alone."""

    def __init__(self, hook: DistillationHook) -> None:
        self.hook = hook
        self.is_untouched: list[bool] = []

    def before_training(self, trainer: Trainer) -> None:
        self.hook.before_training(trainer)
        self.teacher = {name: value.clone() for name, value in self.hook.teacher.state_dict().items()}

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        random, student = torch.get_rng_state(), {n: b.clone() for n, b in trainer.model.named_buffers()}
        loss = self.hook.after_loss(trainer, step)
        same_random = torch.equal(random, torch.get_rng_state())
        same_student = all(torch.equal(student[name], value) for name, value in trainer.model.named_buffers())
        self.is_untouched.append(same_random and same_student and bool(loss > step.loss))
        return loss

    def end(self, trainer: Trainer) -> None:
        now = self.hook.teacher.state_dict()
        self.is_untouched.append(all(torch.equal(now[name], value) for name, value in self.teacher.items()))


def test_teacher_draws_no_random_numbers_and_touches_no_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchers: list[Watcher] = []

    def watched(network: Network, config: TrainConfig, folder: Path) -> list[Hook]:
        (hook,) = finetuning_hooks(network, config, folder)
        assert isinstance(hook, DistillationHook)
        watchers.append(Watcher(hook))
        return [*watchers]

    monkeypatch.setattr("commands.finetune.finetuning_hooks", watched)
    finetuned(with_teacher(tmp_path, epochs=1, multi_scale=True, amp="bf16"))
    assert watchers[0].is_untouched == [True, True, True]  # two steps and the end


def test_missing_weights_are_taken_from_the_newest_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hyp = str(Path("data/hyp/scratch.yaml").resolve())
    monkeypatch.chdir(tmp_path)
    for age, name in ((10, "exp2"), (20, "exp")):
        path = Path(save(PRUNED, tmp_path / f"runs/prune/{name}/pruned_model.pt"))
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert find_weights("pruned_model.pt") == Path("runs/prune/exp2/pruned_model.pt")
    with caplog.at_level(logging.INFO):
        result = finetuned(finetune_config(tmp_path, weights="pruned_model.pt", hyp=hyp, epochs=1))
    assert "--weights pruned_model.pt: taking runs/prune/exp2/pruned_model.pt, the newest" in caplog.text
    assert load_checkpoint(result.best).config["weights"] == "runs/prune/exp2/pruned_model.pt"
    save(DENSE, tmp_path / "pruned_model.pt")
    assert find_weights("pruned_model.pt") == Path("pruned_model.pt")


def test_dense_checkpoint_is_trained_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finetuned(finetune_config(tmp_path, weights=save(DENSE, tmp_path / "dense.pt"), epochs=1))
    assert "no channel was pruned; this trains a dense network on" in caplog.text


def test_cfg_of_the_same_network_is_taken(tmp_path: Path) -> None:
    PRUNED.to_yaml(tmp_path / "pruned.yaml")
    result = finetuned(finetune_config(tmp_path, cfg=str(tmp_path / "pruned.yaml"), epochs=1))
    assert load_checkpoint(result.best).spec["widths"] == PRUNED.widths


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"weights": "none.pt"}, CheckpointError, r"none.pt: no such file here or in runs/prune/\*; run prune.py"),
        ({"weights": "far/none.pt"}, CheckpointError, r"far/none.pt"),
        ({"weights": ""}, CheckpointError, r"no --weights given; give the checkpoint"),
        ({"cfg": TINY_CFG}, PruningError, r"model.0.conv.weight: the YAML .*\(8, 3, 3, 3\), .*\(5, 3, 3, 3\)"),
        ({"cfg": "yolov5n"}, PruningError, r"disagree at model.0.conv"),
        ({"teacher": "none.pt"}, CheckpointError, r"none.pt"),
        ({"data": "data/coco.yaml"}, DataError, r"\['person', .*\['RBC', 'WBC', 'Platelets'\]; give the data set"),
        ({"single_cls": True}, DataError, r"has the classes \['item'\], .* has \['RBC'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_leaves_no_folder(
    tmp_path: Path, settings: dict[str, Any], error: type[ValueError], message: str
) -> None:
    config = finetune_config(tmp_path, **settings)
    with pytest.raises(error, match=message) as caught:
        run_finetuning(config)
    assert "\n" not in str(caught.value)
    assert not Path(config.project).exists()


def test_other_classes_are_refused(tmp_path: Path) -> None:
    weights = save(PRUNED, tmp_path / "other.pt", names=("WBC", "RBC", "Blasts"))
    with pytest.raises(DataError, match=r"\['RBC', 'WBC', 'Platelets'\], .* has \['WBC', 'RBC', 'Blasts'\]"):
        run_finetuning(finetune_config(tmp_path, weights=weights))


def test_teacher_of_other_anchors_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    other = save(replace(DENSE, anchors=((3.0, 3.0) * 3, (5.0, 5.0) * 3)), tmp_path / "other.pt")
    config = finetune_config(tmp_path, teacher=other)
    with pytest.raises(ConfigError, match="got anchors "):
        run_finetuning(config)
    assert not Path(config.project).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill": -1.0}, r"--distill -1.0: expected 0 or a positive number, such as 1"),
        ({"features": -1.0}, r"--features -1.0: expected 0 or a positive number, such as 1"),
        ({"distill": float("nan")}, r"--distill nan: expected 0 or a positive number"),
        ({"evolve": 3}, r"--evolve is not for fine-tuning; search hyper-parameters with train.py"),
    ],
)
def test_settings_are_checked_when_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**settings)


def test_script_says_what_is_wrong_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run_script(run_finetuning, FinetuneConfig, argv=["--adam", "--epochs", "100"])
    assert caught.value.code == 2
    line = (
        "error: --weights pruned_model.pt: no such file here or in runs/prune/*; run prune.py first, or give a path"
    )
    assert capsys.readouterr().err == f"{line}\n"


class LossCurve(Hook):
    """The loss of every step, the teacher's part included, mean over processes."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        self.losses.append(float(mean_over_ranks(step.loss.detach())))
        return step.loss


def curve_of(config: FinetuneConfig) -> list[float]:
    curve = LossCurve()
    run_training(config, hooks=lambda *given: [*finetuning_hooks(*given), curve])
    return curve.losses


def train_in_process(rank: int, port: int, config: FinetuneConfig, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    torch.save(curve_of(config), folder / f"rank{rank}.pt")


def test_two_processes_with_a_teacher_follow_the_loss_curve_of_one(tmp_path: Path) -> None:
    hyp = tmp_path / "plain.yaml"
    still = ("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr")
    hyp.write_text("\n".join(f"{name}: 0" for name in still))
    settings = {"sync_bn": True, "amp": "off", "notest": True, "nosave": True, "noautoanchor": True}
    config = with_teacher(tmp_path, hyp=str(hyp), **settings)
    single = curve_of(replace(config, name="one"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(train_in_process, args=(port, replace(config, name="two"), tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    assert len(single) == 4
    assert torch.load(tmp_path / "rank0.pt", weights_only=True) == pytest.approx(single, rel=1e-4)
