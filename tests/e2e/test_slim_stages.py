"""slim.py from weights without the classes to a verified file: stages chosen, killed, interrupted."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from interruption import KillAfter, Killed, assert_same_weights
from refusal import make_place, refusal
from tiny import ROOT, TINY_CFG
from tiny_slim import line_config, slim_config, slimmed, written_at

from commands.finetune import finetuning_hooks
from commands.slim import run_slimming, slim
from commands.slim_config import STAGES, SlimConfig
from commands.slim_report import SlimResult
from commands.slim_start import start_of
from commands.train import run_training
from commands.train_sparsity import sparsity_hooks
from utils.errors import ConfigError
from utils.storage.checkpoint import load_checkpoint, save_checkpoint

for package in ("ncnn", "pnnx"):
    pytest.importorskip(package, reason=f"the {package} package is not installed")

ROWS = ["dense", "round1/sparse", "round1/prune", "round1/finetune"]
# The dense network has 15688 parameters.
TARGET = 6275


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("line")


@pytest.fixture(scope="module")
def whole(place: Path) -> SlimResult:
    """A finished run in runs/exp."""
    return slimmed(line_config(place))


def assert_same_end(one: SlimResult, two: SlimResult) -> None:
    """The same network after every stage, and the same exported file."""
    assert [(row.stage, row.scores, row.macs) for row in one.stages] == [
        (row.stage, row.scores, row.macs) for row in two.stages
    ]
    for first, second in zip(one.stages, two.stages, strict=True):
        assert_same_weights(first.weights, second.weights)
    assert one.exported is not None
    assert two.exported is not None
    for name in ("model.ncnn.param", "model.ncnn.bin"):
        assert (one.exported.path / name).read_bytes() == (two.exported.path / name).read_bytes()


def test_line_goes_from_scratch_to_a_verified_file(whole: SlimResult, place: Path) -> None:
    assert [row.stage for row in whole.stages] == ROWS
    assert whole.passed
    assert whole.exported is not None
    assert whole.exported.path == place / "runs/exp/export/best_ncnn_model"
    report = json.loads((place / "runs/exp/export/result.json").read_text())["reports"][0]
    assert len(report["ap"]) == 2  # in PyTorch and there
    assert report["latency"][1]["runs"] > 0
    written = json.loads((place / "runs/exp/result.json").read_text())
    assert [stage["stage"] for stage in written["stages"]] == ROWS
    (dense,) = whole.exported.dense
    own = whole.exported.milliseconds
    assert own is not None
    assert min(own, dense.milliseconds) > 0
    assert written["export"] == {
        **{"path": str(whole.exported.path), "passed": True, "milliseconds": own, "threads": 1},
        **{"precision": "fp32", "dense_precision": "fp32", "dense_ms": dense.milliseconds},
        "dense_weights": str(place / "runs/exp/round1/sparse/weights/last.pt"),  # of the same widths as the dense one
        "speedup": pytest.approx(dense.milliseconds / own),
    }
    assert "best_ncnn_model, " in whole.as_text()
    assert "times as fast as the dense network, measured side by side: " in whole.as_text()


def test_sparse_training_takes_over_from_the_dense_network(whole: SlimResult, place: Path) -> None:
    dense = load_checkpoint(place / "runs/exp/dense/weights/last.pt").config
    sparse = load_checkpoint(place / "runs/exp/round1/sparse/weights/last.pt").config
    assert (dense["cfg"], dense["weights"], dense["epochs"]) == (TINY_CFG, "", 1)
    assert (sparse["cfg"], sparse["weights"]) == ("", str(place / "runs/exp/dense/weights/best.pt"))
    assert sparse["noautoanchor"]
    assert yaml.safe_load((place / "runs/exp/opt.yaml").read_text())["stages"] == list(STAGES)


@pytest.mark.parametrize(
    ("settings", "has_dense"),
    [
        ({"cfg": ""}, False),
        ({}, False),  # the network of these weights
        ({"cfg": "yolov5n.yaml"}, True),
        ({"cfg": "", "names": "[WBC, Platelets, RBC]"}, False),
        ({"cfg": "", "names": "[cat, dog, mouse]"}, True),
        ({"cfg": "", "stages": ("dense", "export")}, True),
    ],
)
def test_dense_network_is_trained_where_the_weights_do_not_know_the_classes(
    whole: SlimResult, tmp_path: Path, settings: dict[str, Any], has_dense: bool
) -> None:
    names = settings.pop("names", "")
    config = line_config(tmp_path, weights=str(whole.stages[0].weights), target="", **settings)
    if names:
        text = Path(config.data).read_text()
        Path(config.data).write_text(text.replace("[RBC, WBC, Platelets]", names))
    assert ("dense" in start_of(config).config.stages) is has_dense


def kill_training(patched: pytest.MonkeyPatch) -> None:
    killed = partial(run_training, hooks=lambda *given: [KillAfter(0)])
    patched.setattr("commands.slim_stages.run_training", killed)


def kill_sparse(patched: pytest.MonkeyPatch) -> None:
    patched.setattr("commands.train_sparsity.sparsity_hooks", lambda *given: [*sparsity_hooks(*given), KillAfter(0)])


def kill_finetuning(patched: pytest.MonkeyPatch) -> None:
    patched.setattr("commands.finetune.finetuning_hooks", lambda *given: [*finetuning_hooks(*given), KillAfter(0)])


def killed(*given: Any, **named: Any) -> None:
    raise Killed


def kill_pruning(patched: pytest.MonkeyPatch) -> None:
    patched.setattr("pruning.surgery.plan.PruningPlan.save", killed)  # the checkpoint is written


def kill_export(patched: pytest.MonkeyPatch) -> None:
    patched.setattr("commands.export.verify", killed)  # the file is written


@pytest.mark.parametrize(
    ("kill", "complete"),
    [
        (kill_training, []),
        (kill_sparse, ROWS[:1]),
        (kill_pruning, ROWS[:2]),
        (kill_finetuning, ROWS[:3]),
        (kill_export, ROWS),
    ],
)
def test_run_that_is_killed_in_any_stage_ends_as_if_it_had_not_been(
    whole: SlimResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill: Callable[[pytest.MonkeyPatch], None],
    complete: list[str],
) -> None:
    with monkeypatch.context() as patched:
        kill(patched)
        with pytest.raises(Killed):
            run_slimming(line_config(tmp_path))
    folder = tmp_path / "runs/exp"
    assert not (folder / "result.json").exists()
    before = {name: written_at(folder / name) for name in complete}
    resumed = slimmed(SlimConfig(resume=str(folder)))
    assert {name: written_at(folder / name) for name in complete} == before
    assert_same_end(whole, resumed)


def test_channels_that_sparse_training_chose_are_the_ones_that_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def auto(name: str) -> SlimConfig:
        # 8 images in batches of 2: enough steps to fade in.
        own = {"epochs": 2, "batch_size": 2, "nominal_batch": 2, "shortcuts": "tied", "target": "macs=64%"}
        return line_config(tmp_path, name=name, sr="auto", stages=STAGES[:3], rounds=2, **own)

    whole = slimmed(auto("whole"))
    assert [row.stage for row in whole.stages[:3]] == ROWS[:3]
    macs = [row.macs for row in whole.stages]
    assert (macs[2] <= 0.8 * macs[0], macs[4] <= 0.64 * macs[0]) == (True, True)
    for number in (1, 2):
        place = tmp_path / f"runs/whole/round{number}"
        cut = json.loads((place / "prune/result.json").read_text())
        assert cut["config"]["plan"] == str(place / "sparse/plan.json")
        assert cut["after"]["AP50"] == pytest.approx(cut["before"]["AP50"], abs=0.01)
    with monkeypatch.context() as patched:
        kill_sparse(patched)
        with pytest.raises(Killed):
            run_slimming(auto("killed"))
    resumed = slimmed(SlimConfig(resume=str(tmp_path / "runs/killed")))
    for one, two in zip(whole.stages, resumed.stages, strict=True):
        assert_same_weights(one.weights, two.weights)


def test_dense_network_teaches_what_is_left_when_channels_have_faded(whole: SlimResult, tmp_path: Path) -> None:
    own: dict[str, Any] = {"sr": "auto", "batch_size": 2, "target": "macs=70%", "stages": STAGES[:4]}
    trained = slimmed(line_config(tmp_path, name="trained", **own))
    taught = load_checkpoint(trained.weights).config["teacher"]
    assert taught == str(tmp_path / "runs/trained/dense/weights/best.pt")
    # Weights that know the classes are the dense network.
    known = str(whole.stages[0].weights)
    given = slimmed(line_config(tmp_path, name="given", weights=known, cfg="", **{**own, "stages": ()}))
    assert [row.stage for row in given.stages] == ROWS[1:4]
    assert load_checkpoint(given.weights).config["teacher"] == known


def test_chosen_stages_run_alone_and_further_ones_later(whole: SlimResult, tmp_path: Path) -> None:
    first = slimmed(line_config(tmp_path, stages=("sparse", "dense")))  # order is that of the line
    assert [row.stage for row in first.stages] == ROWS[:2]
    assert first.exported is None
    assert first.passed
    folder = tmp_path / "runs/exp"
    final = json.loads((folder / "round1/sparse/result.json").read_text())["final"]
    assert first.stages[1].scores == {name: final[name] for name in ("AP50", "AP")}
    assert not (folder / "round1/prune").exists()
    before = written_at(folder / "dense")
    slimmed(SlimConfig(resume=str(folder), stages=("prune",)))
    last = slimmed(SlimConfig(resume=str(folder), stages=("finetune", "export")))
    assert written_at(folder / "dense") == before
    assert_same_end(whole, last)
    assert yaml.safe_load((folder / "opt.yaml").read_text())["stages"] == ["finetune", "export"]


def test_stages_begin_with_the_weights_that_are_given(
    whole: SlimResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense, pruned = whole.stages[0].weights, whole.stages[2].weights
    cut = slimmed(line_config(tmp_path, weights=str(dense), cfg="", stages=("prune",)))
    assert [row.stage for row in cut.stages] == ["round1/prune"]
    assert cut.stages[0].parameters <= TARGET
    tuned = slimmed(line_config(tmp_path, weights=str(pruned), cfg="", target="", stages=("finetune",), name="tuned"))
    assert tuned.stages[0].parameters == whole.stages[2].parameters
    assert "without --teacher; without effect: --distill" not in caplog.text  # 1 is the default there
    assert load_checkpoint(tuned.stages[0].weights).config["teacher"] == ""


def test_int8_learns_from_the_few_images_that_there_are(whole: SlimResult, tmp_path: Path) -> None:
    config = line_config(tmp_path, weights=whole.weights, cfg="", stages=("export",), precision="int8")
    exported = slimmed(config).exported
    assert exported is not None
    assert exported.path.name == "best_int8_ncnn_model"
    written = json.loads((tmp_path / "runs/exp/export/result.json").read_text())["config"]
    assert (written["calib_images"], written["img_size"], written["threads"]) == (8, [64, 64], 1)
    assert written["beside"] == ""  # the weights as they are, without a cut in this run


def test_export_that_disagrees_fails_the_command(
    whole: SlimResult, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(place / "runs/exp", folder)
    assert slim(SlimConfig(resume=str(folder)))
    result = json.loads((folder / "export/result.json").read_text())
    result["reports"][0]["passed"] = False
    (folder / "export/result.json").write_text(json.dumps(result))
    with caplog.at_level(logging.INFO):
        assert not slim(SlimConfig(resume=str(folder)))
    assert "DOES NOT AGREE with the network" in caplog.text


def test_run_of_an_earlier_version_ends_with_the_stages_it_had(tmp_path: Path) -> None:
    config = slim_config(tmp_path, rounds=1, finetune_epochs=1)
    before = slimmed(config)
    path = tmp_path / "runs/exp/opt.yaml"
    values = yaml.safe_load(path.read_text())
    for name in ("stages", "dense_epochs", "dry_run", "preset"):
        del values[name]
    path.write_text(yaml.safe_dump(values))
    shutil.rmtree(tmp_path / "runs/exp/round1/finetune")
    after = slimmed(SlimConfig(resume=str(tmp_path / "runs/exp")))
    assert after.exported is None
    assert_same_weights(before.stages[-1].weights, after.stages[-1].weights)
    assert [row.stage for row in after.stages] == ROWS[1:]


@pytest.mark.parametrize(
    "name", ["run_training", "run_sparsity_training", "run_pruning", "run_finetuning", "run_export"]
)
def test_interrupt_in_any_stage_names_the_command_that_goes_on(
    whole: SlimResult, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "exp"
    shutil.copytree(place / "runs/exp", folder)
    for stage in ("dense", "round1/sparse", "round1/prune", "round1/finetune", "export"):
        (folder / stage / "result.json").unlink()
    finished: list[str] = []

    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    def run(config: Any, *rest: Any) -> None:
        finished.append(config.name)
        (Path(config.project) / config.name / "result.json").write_text("{}")

    for other in ("run_training", "run_sparsity_training", "run_pruning", "run_finetuning", "run_export"):
        monkeypatch.setattr(f"commands.slim_stages.{other}", interrupt if other == name else run)
    with pytest.raises(KeyboardInterrupt, match=f"^python slim.py --resume {folder} continues this run$"):
        run_slimming(SlimConfig(resume=str(folder)))
    assert finished == ["dense", "sparse", "prune", "finetune"][: len(finished)]


def test_ctrl_c_ends_with_one_line_and_130(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    folder = place.project / "exp"
    arguments = [*place.arguments("slim"), "--dense-epochs", "5000", "--workers", "2"]
    child = subprocess.Popen(
        [sys.executable, "slim.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background of a shell ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (folder / "dense/weights/best.pt").exists():
        assert child.poll() is None
        time.sleep(0.05)
    error = None
    while error is None:
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: loading processes get it, too
        # Python ignores an interrupt that meets it in a destructor; a person would press again.
        with suppress(subprocess.TimeoutExpired):
            _, error = child.communicate(timeout=10)
    assert child.returncode == 130
    assert error == f"interrupted; python slim.py --resume {folder} continues this run\n"


@pytest.mark.parametrize(
    ("stages", "made", "line"),
    [
        (
            ["sparse"],
            ["round1/prune/result.json"],
            "round1/sparse would come before .*round1/prune, which is complete",
        ),
        (["prune"], ["round1/sparse/weights"], "round1/sparse is begun and not complete; add sparse to --stages"),
    ],
)
def test_stages_that_do_not_fit_the_run_folder_are_refused(
    tmp_path: Path, stages: list[Any], made: list[str], line: str
) -> None:
    (tmp_path / "opt.yaml").write_text("weights: a.pt\nrounds: 2\n")
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=line):
        run_slimming(SlimConfig(resume=str(tmp_path), stages=tuple(stages)))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--stages", "prune"], "--stages prune: nothing to start from; give --weights"),
        (["--stages", "cut"], "'cut'"),
        (["--stages", "sparse", "--sr", "auto"], "--sr auto chooses among channels that have learnt something"),
        (["--dry-run", "--resume"], "--dry-run shows the plan of a new run; leave --resume out"),
        (["--dry-run", "--target", "params=100"], "target of 100 parameters cannot be reached"),
        (["--dense-epochs", "0"], "--dense-epochs 0: expected at least 1"),
        (["--runtime", "tensorrt"], "--runtime tensorrt exports on a machine with a GPU"),
        (["--runtime", "torchscript", "--precision", "fp16"], "torchscript in fp16 is not supported"),
        (["--runtime", "coreml"], "coreml: unknown format"),
        (["--preset", "fast"], "--preset fast: no such recipe; choose from full, quick, or give a YAML file"),
        (["--preset", "{own}"], "own.yaml: unknown key 'epoch'"),
        (["--stages", "finetune", "--cfg", "", "--weights", "{cats}"], "has other classes than"),
        (["--stages", "export", "--cfg", "", "--weights", "none.pt"], "none.pt"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_mistakes_are_told_before_anything_is_trained(
    tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = make_place(tmp_path)
    (tmp_path / "own.yaml").write_text("epoch: 3\n")
    checkpoint = replace(load_checkpoint(here.weights), names=("cat", "dog", "mouse"))
    save_checkpoint(checkpoint, tmp_path / "cats.pt")
    given = [argument.format(own=tmp_path / "own.yaml", cats=tmp_path / "cats.pt") for argument in arguments]
    assert line in refusal("slim", [*here.arguments("slim"), *given], capsys)
    assert not here.project.exists()
