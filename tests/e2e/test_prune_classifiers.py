"""prune.py on classifiers: every way to cut, the file that comes back, rounds that are killed, and refusals."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import Killed
from labelled_classifier import ClassifierPlace, make_classifier_place
from refusal import make_place, refusal
from torch import Tensor, nn

from commands import prune_rounds
from commands.prune import PruneResult, run_pruning
from commands.prune_config import PruneConfig
from commands.val import val
from commands.val_config import ValConfig
from models.classifiers.registry import CLASSIFIERS
from models.complexity import count_macs, count_parameters
from models.fingerprint import network_fingerprint
from pruning.surgery.plan import PruningPlan
from pruning.zeros.masks import prunable_weights
from tasks.choose import CLASSIFICATION
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import PruningError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

FILES = {"pruned_model.pt", "plan.json", "channels.txt", "kept_channels.png", "result.json", "opt.yaml"}
ROUNDS = {"criterion": "taylor", "iterative": True, "step": 30, "updates": 1, "taylor_batches": 1, "lr": 0.01}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClassifierPlace]:
    names = ("lenet5", "vanilla", "resnet20")
    return {name: make_classifier_place(tmp_path_factory.mktemp(name), name) for name in names}


def pruned(place: ClassifierPlace, **settings: Any) -> PruneResult:
    return run_pruning(PruneConfig(**place.settings(**settings)))


def folder_of(result: PruneResult) -> Path:
    assert result.folder is not None
    return result.folder


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lenet5", {"criterion": "kernel_l1"}),
        ("lenet5", {"criterion": "taylor", "taylor_batches": 1, "target": "macs=50%", "round": "none"}),
        ("vanilla", {}),
        ("vanilla", {"criterion": "kernel_l1", "target": "macs=50%", "cost_power": 0.5, "round": "none"}),
        ("vanilla", {"criterion": "taylor", "taylor_batches": 2}),
        ("resnet20", {"percent": 0.3, "cfg": "resnet20"}),
        ("resnet20", {"shortcuts": "tied", "target": "macs=50%", "round": "none"}),
        ("resnet20", {"criterion": "taylor", "taylor_batches": 1, "percent": 0.3, "round": "none"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_pruned_classifier_comes_back_bit_for_bit_with_the_same_accuracy(
    places: dict[str, ClassifierPlace], name: str, settings: dict[str, Any]
) -> None:
    place = places[name]
    result = pruned(place, **settings)
    loaded = CLASSIFICATION.load(folder_of(result) / "pruned_model.pt")
    assert loaded.spec == place.spec
    assert_same_state(loaded.model, result.model)
    assert torch.equal(place.logits(loaded.model), place.logits(result.model))
    report = result.report
    assert (report.after.parameters, report.after.macs) == (
        count_parameters(loaded.model),
        count_macs(loaded.model, place.chw),
    )
    assert report.after.parameters < report.before.parameters
    if settings.get("target"):
        assert 0.4 * report.before.macs < report.after.macs <= 0.5 * report.before.macs
    written = json.loads((folder_of(result) / "result.json").read_text())
    assert written["before"]["accuracy"] == 1.0, "it labelled the images itself"
    assert written["after"]["accuracy"] == place.scores(loaded).accuracy < 1.0


def test_run_folder_has_all_but_the_yaml_of_detectors(places: dict[str, ClassifierPlace]) -> None:
    result = pruned(places["vanilla"], noplots=False)
    assert {path.name for path in folder_of(result).iterdir()} == FILES


def test_val_measures_the_pruned_checkpoint_as_prune_did(places: dict[str, ClassifierPlace]) -> None:
    place = places["vanilla"]
    result = pruned(place, percent=0.4)
    weights = str(folder_of(result) / "pruned_model.pt")
    found = val(ValConfig(weights=(weights,), data=place.data, device="cpu", project=str(place.root / "val")))
    assert found is not None
    assert result.after is not None
    assert found.headline == result.after.headline


def test_change_of_accuracy_is_told(places: dict[str, ClassifierPlace], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = pruned(places["lenet5"], criterion="kernel_l1", percent=0.5)
    assert result.after is not None
    assert f"before any fine-tuning: accuracy 1.000 -> {result.after.score:.3f}" in caplog.text
    assert "mAP" not in caplog.text


def test_plan_file_repeats_the_cut(places: dict[str, ClassifierPlace]) -> None:
    place = places["resnet20"]
    first = pruned(place, percent=0.3)
    again = pruned(place, plan=str(folder_of(first) / "plan.json"))
    assert_same_state(first.model, again.model)
    assert again.plan == first.plan == PruningPlan.load(folder_of(again) / "plan.json")


def test_pruned_classifier_can_be_pruned_again(places: dict[str, ClassifierPlace]) -> None:
    place = places["vanilla"]
    first = pruned(place, percent=0.3, round="none")
    again = pruned(place, weights=str(folder_of(first) / "pruned_model.pt"), percent=0.3, round="none")
    assert again.report.before.widths == first.report.after.widths
    assert again.report.after.parameters < first.report.after.parameters


def test_scan_recommends_a_percent_whose_accuracy_it_measured(places: dict[str, ClassifierPlace]) -> None:
    result = pruned(places["vanilla"], scan=True, tolerance=0.2, round="none", noplots=False)
    assert result.scan is not None
    assert result.after is not None
    points = {point.percent: point.headline for point in result.scan.points}
    assert points[0.0] == {"accuracy": 1.0}
    assert 0 < result.scan.recommended < 1
    assert result.after.headline == points[result.scan.recommended]
    assert result.after.score >= 0.8
    assert (folder_of(result) / "scan.png").stat().st_size > 1000
    written = json.loads((folder_of(result) / "result.json").read_text())
    assert written["scan"]["points"][0] == {"percent": 0.0, "accuracy": 1.0}


def test_unstructured_alone_cuts_no_channel(places: dict[str, ClassifierPlace]) -> None:
    place = places["vanilla"]
    result = pruned(place, unstructured=0.75)
    loaded = CLASSIFICATION.load(folder_of(result) / "pruned_model.pt").model
    weights = prunable_weights(loaded).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == pytest.approx(0.75 * sum(weight.numel() for weight in weights), abs=1)
    assert result.report.after.widths == result.report.before.widths


@pytest.mark.parametrize(("name", "step"), [("lenet5", 30), ("resnet20", 60)])
def test_killed_rounds_go_on_to_the_same_network(
    places: dict[str, ClassifierPlace], name: str, step: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {**ROUNDS, "step": step, "target": "macs=60%", "round": "none", "project": str(tmp_path)}
    whole = pruned(places[name], name="whole", **settings)
    assert whole.report.after.macs <= 0.6 * whole.report.before.macs

    def save_or_die(checkpoint: Checkpoint, path: Path) -> None:
        if checkpoint.training_state["round"]["number"] == 2:
            raise Killed
        save_checkpoint(checkpoint, path)

    with monkeypatch.context() as patched:
        patched.setattr(prune_rounds, "save_checkpoint", save_or_die)
        with pytest.raises(Killed):
            pruned(places[name], name="killed", **settings)
    folder = tmp_path / "killed"
    assert load_checkpoint(folder / "last_round.pt").training_state["round"]["number"] == 1
    resumed = run_pruning(PruneConfig(resume=str(folder), device="cpu"))
    assert_same_state(whole.model, resumed.model)
    assert resumed.plan.keep == whole.plan.keep
    assert {path.name for path in folder.iterdir()} == FILES - {"kept_channels.png"}
    assert_same_state(CLASSIFICATION.load(folder / "pruned_model.pt").model, whole.model)


class Halves(nn.Module):
    """A network that gives the halves of its channels to two layers."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(self.first(x)).relu().chunk(2, dim=1)
        answers: Tensor = self.last((self.left(left) + self.right(right)).relu().mean((2, 3)))
        return answers


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClassifierPlace:
    monkeypatch.setitem(CLASSIFIERS, "halves", Halves)
    return make_classifier_place(tmp_path, "halves", chw=(3, 8, 8))


def plan_of(place: ClassifierPlace, keep: tuple[int, ...]) -> str:
    """A plan that keeps these outputs of the first layer."""
    model = CLASSIFICATION.load(place.weights).model
    plan = PruningPlan(fingerprint=network_fingerprint(model), keep={"first": keep}, settings={})
    plan.save(place.root / "plan.json")
    return str(place.root / "plan.json")


def test_code_that_takes_channels_by_index_and_still_finds_them_comes_back(halves: ClassifierPlace) -> None:
    result = pruned(halves, plan=plan_of(halves, (0, 2, 4, 7)))
    loaded = CLASSIFICATION.load(folder_of(result) / "pruned_model.pt").model
    assert type(loaded) is Halves
    assert torch.equal(halves.logits(loaded), halves.logits(result.model))


@pytest.mark.parametrize("keep", [(0, 4, 5, 6), (0, 1, 2, 4, 5, 6, 7)])
def test_code_that_would_take_other_channels_is_refused_in_one_line(
    halves: ClassifierPlace, keep: tuple[int, ...]
) -> None:
    with pytest.raises(PruningError, match="the pruned network .*; --protect the layers whose channels") as caught:
        pruned(halves, plan=plan_of(halves, keep))
    assert "\n" not in str(caught.value)
    assert not halves.project.exists()


def test_rounds_refuse_code_that_takes_channels_by_index_before_they_train_on(
    halves: ClassifierPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(halves.weights, weights_only=True)
    for name in ("weight", "bias"):
        content["weights"][f"norm.{name}"][0] = 0  # the first to be cut: chunk() then gives 4 and 3, and not 3 and 4
    torch.save(content, halves.weights)
    numbers: list[int] = []

    def note(checkpoint: Checkpoint, path: Path) -> None:
        numbers.append(checkpoint.training_state["round"]["number"])
        save_checkpoint(checkpoint, path)

    monkeypatch.setattr(prune_rounds, "save_checkpoint", note)
    with pytest.raises(PruningError, match="--protect the layers whose channels"):
        pruned(halves, **{**ROUNDS, "step": 1, "percent": 0.5, "round": "none"})
    assert numbers == [0]


@pytest.mark.parametrize("shortcuts", ["skip", "tied"])
def test_shuffled_channels_of_torchvision_come_back(tmp_path: Path, shortcuts: str) -> None:
    import_torchvision()
    place = make_classifier_place(tmp_path, "torchvision:shufflenet_v2_x0_5", chw=(3, 64, 64))
    result = pruned(place, percent=0.2, round="none", shortcuts=shortcuts)
    loaded = CLASSIFICATION.load(folder_of(result) / "pruned_model.pt")
    assert result.report.after.parameters < result.report.before.parameters
    assert torch.equal(place.logits(loaded.model), place.logits(result.model))
    assert result.after is not None
    assert place.scores(loaded).accuracy == result.after.score


def detector_data(place: ClassifierPlace) -> list[str]:
    """The data set of a detector."""
    return ["--data", str(make_place(place.root / "detector").data)]


def other_images(place: ClassifierPlace) -> list[str]:
    """Images of another size."""
    with np.load(place.data) as data:
        arrays = {name: data[name] for name in data.files}
    small = {name: value[:, :20, :20] if name.startswith("x") else value for name, value in arrays.items()}
    np.savez(place.root / "small.npz", **small)
    return ["--data", str(place.root / "small.npz")]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--criterion", "bn_gamma"], r"LeNet5 has no batch norm to rank by; use another criterion, such as kernel"),
        (["--cfg", "resnet20"], r"--cfg resnet20 and --weights .*dense.pt disagree: the weights are of lenet5"),
        (["--cfg", "yolov5n.yaml"], r"--cfg yolov5n.yaml is for detection, --weights .*dense.pt is for classif"),
        (
            ["--target", "macs=50"],
            r"target of 50 MACs cannot be reached .*; the nearest is \S+; lower --min-channels",
        ),
        (["--protect", "fc*"], r"--protect fc\* matches no layer; the layers include features.0"),
        (["--drop-bottlenecks", "all"], r"--drop-bottlenecks all: this network has no shortcut bottlenecks"),
        (["--data", "none.npz"], r"none.npz"),
        (
            detector_data,
            r"--data .*data.yaml is for detection, --weights .*dense.pt is for classification; give data",
        ),
        (other_images, r"dense.pt has 7 classes and takes images of \(1, 28, 28\), but .*small.npz has 7 and images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, arguments: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_classifier_place(tmp_path, "lenet5")
    given = arguments(place) if callable(arguments) else arguments
    common = ["--weights", str(place.weights), "--project", str(place.project), "--device", "cpu", "--noplots"]
    if "--data" not in given:
        common += ["--data", place.data]
    if "--criterion" not in given:
        common += ["--criterion", "kernel_l1"]
    assert re.search(line, refusal("prune", [*common, *given], capsys))
    assert not place.project.exists()
