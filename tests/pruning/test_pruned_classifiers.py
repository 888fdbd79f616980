"""The hooks and the surgery of detectors on classifiers: trained sparse, cut, trained on, loaded from the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from commands.train import HookFactory, no_hooks, run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from engine.evaluation.evaluator import Evaluator
from engine.training.hooks import Hook
from models.classifiers import build_classifier, load_classifier
from pruning.channels.graph import ChannelGraph
from pruning.sparsity.penalties import SparsityHook, make_penalties
from pruning.sparsity.settings import Strengths
from pruning.surgery.cut import cut
from tasks.choose import CLASSIFICATION
from tasks.classification import Classification
from tasks.classifier_data import new_spec
from tasks.task import Data, Network
from utils.datasets.classes.pictures import PictureData, PictureSet
from utils.storage.checkpoint import save_checkpoint

CHW = (3, 16, 16)


def pictures() -> PictureData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, *CHW), generator=generator, dtype=torch.uint8)
    split = PictureSet(images=images, labels=torch.arange(32) % 2, names=("a", "b"))
    return PictureData(train=split, test=split)


def config_in(
    folder: Path, *, name: str = "exp", epochs: int = 1, cfg: str = "resnet20", weights: str = ""
) -> TrainConfig:
    return TrainConfig(
        cfg=cfg,
        weights=weights,
        epochs=epochs,
        batch_size=8,
        device="cpu",
        amp="off",
        noplots=True,
        project=str(folder),
        name=name,
    )


def trained(config: TrainConfig, task: Classification, hooks: HookFactory = no_hooks) -> TrainResult:
    result = run_training(config, hooks=hooks, task=task)
    assert result is not None
    return result


def pruned_resnet() -> nn.Module:
    """A ResNet without 150 of its channels."""
    torch.manual_seed(0)
    model = build_classifier("resnet20", num_classes=2).eval()
    graph = ChannelGraph.of(model, image_chw=CHW)
    return cut(model, graph, np.random.default_rng(0).choice(graph.prunable_ids, 150, replace=False))


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in model.parameters()]


def accuracy(network: Network, data: PictureData) -> float:
    """Accuracy on the test images."""
    images = CLASSIFICATION.evaluation_set(TrainConfig(), data.test, network=network)
    return Evaluator(data=images, device=torch.device("cpu")).evaluate(network.model).score


def mean_scale(model: nn.Module) -> float:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return float(torch.cat([norm.weight.detach().abs() for norm in norms]).mean())


@pytest.mark.parametrize(("shortcuts", "moved"), [("skip", 9), ("tied", 21)])
def test_sparsity_draws_the_scales_of_a_classifier(tmp_path: Path, shortcuts: str, moved: int) -> None:
    found: dict[float, tuple[int, float]] = {}
    for strength in (0.0, 0.05):
        counts: list[int] = []

        def make(
            network: Network,
            config: TrainConfig,
            folder: Path,
            strength: float = strength,
            counts: list[int] = counts,
        ) -> Sequence[Hook]:
            penalties = make_penalties(
                network.model,
                sparsity="bn",
                strengths=Strengths(scale=strength),
                shortcuts=shortcuts,  # type: ignore[arg-type]
                is_decayed=True,
                image_chw=network.trace_chw,
            )
            counts.append(len(penalties))
            return [SparsityHook(penalties)]

        config = config_in(tmp_path, name=f"s{strength}", epochs=2)
        result = trained(config, Classification(pictures=pictures()), make)
        found[strength] = (counts[0], mean_scale(load_classifier(result.last).model))
    # Without shortcuts' channels: the norm after the first convolution of each of nine blocks.
    assert found[0.0][0] == 0
    assert found[0.05][0] == moved
    assert found[0.05][1] < found[0.0][1]


def test_pruned_classifier_trains_on_and_comes_back_from_its_file(tmp_path: Path) -> None:
    data, pruned = pictures(), pruned_resnet()
    spec = new_spec(pruned, Data(train=data.train, val=data.test), name="resnet20")
    network = Network(model=pruned, spec=spec, names=("a", "b"))
    save_checkpoint(network.to_checkpoint({}), tmp_path / "pruned.pt")
    task = Classification(pictures=data)
    result = trained(config_in(tmp_path, cfg="", weights=str(tmp_path / "pruned.pt")), task)
    loaded = CLASSIFICATION.load(result.last)
    assert shapes(loaded.model) == shapes(pruned)
    assert accuracy(loaded, data) == result.final["accuracy"]
    assert loaded.spec == spec


def test_pruned_network_of_your_own_trains_on_and_comes_back_into_its_skeleton(tmp_path: Path) -> None:
    data, pruned = pictures(), pruned_resnet()
    task = Classification(own=pruned, pictures=data)
    result = trained(config_in(tmp_path, cfg=""), task)
    loaded = task.load(result.last)
    assert shapes(loaded.model) == shapes(pruned)
    assert accuracy(loaded, data) == result.final["accuracy"]
    assert loaded.spec == new_spec(pruned, Data(train=data.train, val=data.test), name="")
