"""The examples of CONTRIBUTING.md do what the page says: each is taken from there and run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import assert_same_weights
from tiny import ROOT, TINY_CFG, tiny_config
from torch import nn

from commands.train import run_training
from deploy import load_runtime
from deploy.formats import FORMATS, exported_formats, format_of, resolve
from deploy.job import ExportJob
from deploy.outputs.detector import DetectorSource
from deploy.settings import ExportSettings
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.importance.criteria import CRITERIA
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.surgery.cut import cut
from utils.storage.checkpoint import load_checkpoint

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAX_LINES = 50


def blocks(section: str, *, language: str = "python") -> list[str]:
    """Fenced code below a heading of the page, up to the next heading."""
    _, _, rest = PAGE.partition(f"## {section}\n")
    return re.findall(rf"^```{language}\n(.*?)^```$", rest.partition("\n## ")[0], flags=re.MULTILINE | re.DOTALL)


def run_code(section: str) -> dict[str, Any]:
    """Names that the code of a section defines, run as one module."""
    names: dict[str, Any] = {"__name__": "contributed"}
    exec(compile("\n".join(blocks(section)), f"CONTRIBUTING.md: {section}", "exec"), names)
    return names


@pytest.fixture
def registries() -> Iterator[None]:
    """Leave the tables as they were."""
    criteria, formats = dict(CRITERIA), dict(FORMATS)
    yield
    CRITERIA.clear()
    CRITERIA.update(criteria)
    FORMATS.clear()
    FORMATS.update(formats)


@pytest.fixture
def model() -> Detector:
    """The tiny network with scales in [0, 1)."""
    torch.manual_seed(0)
    detector = build_model(ModelSpec.from_yaml(TINY_CFG)).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 1)
    return detector


@pytest.mark.parametrize("section", ["A criterion", "A hook", "A runtime", "A backbone"])
def test_every_example_has_fewer_than_fifty_lines(section: str) -> None:
    code = "".join(blocks(section) + blocks(section, language="yaml"))
    assert 10 < len(code.splitlines()) < MAX_LINES


@pytest.mark.usefixtures("registries")
def test_contributed_criterion_decides_a_cut(model: Detector) -> None:
    assert "bn_gamma_relative" not in CRITERIA
    run_code("A criterion")
    settings = PlanSettings(criterion="bn_gamma_relative", percent=0.5, rounding=Rounding())  # type: ignore[arg-type]
    planner = Planner.of(model, settings)
    allocation = planner.allocate()
    scores = CRITERIA["bn_gamma_relative"](model, planner.graph)
    kept = np.setdiff1d(planner.allocator.candidates, allocation.dropped)
    assert scores[allocation.dropped].max() < scores[kept].min()
    pruned = cut(planner.model, planner.graph, allocation.dropped)
    assert sum(value.numel() for value in pruned.parameters()) < sum(value.numel() for value in model.parameters())
    heads = pruned(torch.zeros(1, 3, 64, 64))
    assert [head.shape for head in heads] == [head.shape for head in model(torch.zeros(1, 3, 64, 64))]


@pytest.mark.usefixtures("registries")
def test_contributed_criterion_scores_a_layer_relative_to_its_mean(model: Detector) -> None:
    run_code("A criterion")
    graph = Planner.of(model, PlanSettings(rounding=Rounding())).graph
    norm = model.get_submodule("model.0.bn")
    norm.weight.data = torch.tensor([1.0, -2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0])
    scores = CRITERIA["bn_gamma_relative"](model, graph)[graph.layers["model.0.bn"].output_ids]
    assert scores.tolist() == [0.5, 1.0, 1.5, 1.0, 0.5, 1.0, 1.5, 1.0]


def filter_norms(checkpoint: Path) -> float:
    """Sum of the L2 norms of all filters of a checkpoint."""
    weights = load_checkpoint(checkpoint).best_weights
    return sum(float(value.float().flatten(1).norm(dim=1).sum()) for value in weights.values() if value.ndim == 4)


def test_contributed_hook_shrinks_filters_and_changes_nothing_at_strength_0(tmp_path: Path) -> None:
    train_with_lasso = run_code("A hook")["train_with_lasso"]
    config = tiny_config(tmp_path, notest=True, epochs=1)
    plain = run_training(replace(config, name="plain"))
    assert plain is not None
    for name, strength in (("zero", 0.0), ("strong", 1.0)):
        train_with_lasso(replace(config, name=name), strength)
    last = {name: tmp_path / "runs" / name / "weights/last.pt" for name in ("zero", "strong")}
    assert_same_weights(plain.last, last["zero"])
    assert filter_norms(last["strong"]) < 0.999 * filter_norms(plain.last)


@pytest.mark.usefixtures("registries")
def test_contributed_runtime_writes_and_loads_the_heads_of_the_network(model: Detector, tmp_path: Path) -> None:
    run_code("A runtime")
    assert "pt2" in exported_formats()
    path = tmp_path / "best_export.pt2"
    source = DetectorSource(model=model, names=tuple("abc"), sha256="0" * 64)
    job = ExportJob(source=source, settings=ExportSettings(image_hw=(64, 64)))
    resolve(FORMATS["pt2"].write)(job, path)
    assert format_of(path) is FORMATS["pt2"]
    runtime = load_runtime(path, device=torch.device("cpu"))
    assert runtime.names == ("a", "b", "c")
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
    for head, reference in zip(runtime(images), expected, strict=True):
        assert head.shape == reference.shape
        assert torch.allclose(head, reference, atol=1e-4)


def test_contributed_backbone_builds_runs_and_is_pruned(tmp_path: Path) -> None:
    (yaml,) = blocks("A backbone", language="yaml")
    path = tmp_path / "my-network.yaml"
    path.write_text(yaml)
    model = build_model(ModelSpec.from_yaml(path, num_classes=3)).eval()
    assert model.strides == (8, 16, 32)
    heads = model(torch.zeros(1, 3, 64, 64))
    assert [tuple(head.shape) for head in heads] == [(1, 3, 8, 8, 8), (1, 3, 4, 4, 8), (1, 3, 2, 2, 8)]
    planner = Planner.of(model, PlanSettings(criterion="kernel_l1", percent=0.3, rounding=Rounding()))
    pruned = cut(planner.model, planner.graph, planner.allocate().dropped)
    assert [head.shape for head in pruned(torch.zeros(1, 3, 64, 64))] == [head.shape for head in heads]
