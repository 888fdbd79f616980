"""The hooks and the surgery of detectors on classifiers: trained sparse, cut, trained on, loaded from the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from commands.classify import classifier_spec, make_classifier, train_classifier
from commands.classify_config import ClassifierConfig
from engine.evaluation.classification_scores import score_classifier
from models.classifiers import build_classifier, load_classifier
from pruning.channels.graph import ChannelGraph
from pruning.sparsity.penalties import SparsityHook, make_penalties
from pruning.sparsity.settings import Strengths
from pruning.surgery.cut import cut
from utils.datasets.classes.pictures import PictureData, PictureSet

CHW = (3, 16, 16)


def pictures() -> PictureData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, *CHW), generator=generator, dtype=torch.uint8)
    split = PictureSet(images=images, labels=torch.arange(32) % 2, names=("a", "b"))
    return PictureData(train=split, test=split)


def config_in(folder: Path, *, name: str = "exp", epochs: int = 1) -> ClassifierConfig:
    return ClassifierConfig(
        model="resnet20",
        epochs=epochs,
        batch_size=8,
        device="cpu",
        amp="off",
        noplots=True,
        project=str(folder),
        name=name,
    )


def mean_scale(model: nn.Module) -> float:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return float(torch.cat([norm.weight.detach().abs() for norm in norms]).mean())


@pytest.mark.parametrize(("shortcuts", "moved"), [("skip", 9), ("tied", 21)])
def test_sparsity_draws_the_scales_of_a_classifier(tmp_path: Path, shortcuts: str, moved: int) -> None:
    data, found = pictures(), {}
    for strength in (0.0, 0.05):
        config = config_in(tmp_path, name=f"s{strength}", epochs=2)
        model = make_classifier(config, data)
        penalties = make_penalties(
            model,
            sparsity="bn",
            strengths=Strengths(scale=strength),
            shortcuts=shortcuts,  # type: ignore[arg-type]
            is_decayed=True,
            image_chw=CHW,
        )
        train_classifier(model, data, config=config, hooks=[SparsityHook(penalties)])
        found[strength] = (len(penalties), mean_scale(model))
    # Without shortcuts' channels: the norm after the first convolution of each of nine blocks.
    assert found[0.0][0] == 0
    assert found[0.05][0] == moved
    assert found[0.05][1] < found[0.0][1]


def test_pruned_classifier_trains_on_and_comes_back_from_its_file(tmp_path: Path) -> None:
    data = pictures()
    model = build_classifier("resnet20", num_classes=2).eval()
    graph = ChannelGraph.of(model, image_chw=CHW)
    pruned = cut(model, graph, np.random.default_rng(0).choice(graph.prunable_ids, 150, replace=False))
    result = train_classifier(pruned, data, config=config_in(tmp_path))
    loaded = load_classifier(result.last)
    assert [tuple(p.shape) for p in loaded.model.parameters()] == [tuple(p.shape) for p in pruned.parameters()]
    assert score_classifier(loaded.model, data.test, spec=loaded.spec).accuracy == result.final_accuracy
    assert loaded.spec == classifier_spec(pruned, data, name="resnet20")
