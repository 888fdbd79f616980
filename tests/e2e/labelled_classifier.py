"""A classifier and images that it labels itself, so that the dense network has accuracy 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier_place import NAMES, save
from mask_oracle import lively
from torch import Tensor, nn

from engine.evaluation.classification import ClassificationScores
from models.classifiers import ClassifierSpec, build_classifier
from tasks.choose import CLASSIFICATION
from tasks.measuring import open_evaluator
from tasks.settings import TaskSettings
from tasks.task import Network
from utils.datasets.classes.pictures import write_picture_file

SIZES = {"lenet5": (1, 28, 28), "vanilla": (3, 32, 32), "resnet20": (3, 16, 16)}


@dataclass(frozen=True, kw_only=True)
class ClassifierPlace:
    """Weights and images below one folder.

    Attributes:
        root: The folder.
        spec: Description of the network.
    """

    root: Path
    spec: ClassifierSpec

    @property
    def weights(self) -> Path:
        """The dense checkpoint."""
        return self.root / "dense.pt"

    @property
    def data(self) -> str:
        """The images: 16 in train and 60 in test."""
        return str(self.root / "images.npz")

    @property
    def project(self) -> Path:
        """Where run folders go."""
        return self.root / "runs"

    @property
    def chw(self) -> tuple[int, int, int]:
        """Size of an image."""
        channels, height, width = self.spec.image_chw
        return channels, height, width

    def settings(self, **settings: Any) -> dict[str, Any]:
        """Settings of prune.py that work as long as nothing is broken."""
        places = {"weights": str(self.weights), "data": self.data, "project": str(self.project)}
        return {**places, "device": "cpu", "noplots": True, "batch_size": 8, **settings}

    def training(self, **settings: Any) -> dict[str, Any]:
        """Settings of a short training."""
        return {**self.settings(), "epochs": 2, "amp": "off", "nominal_batch": 8, **settings}

    def logits(self, model: nn.Module) -> Tensor:
        """Answers to two images."""
        with torch.no_grad():
            return torch.as_tensor(model(torch.rand(2, *self.chw, generator=torch.Generator().manual_seed(1))))

    def scores(self, network: Network) -> ClassificationScores:
        """Scores on the test images."""
        settings = TaskSettings(data=self.data)
        found = open_evaluator(CLASSIFICATION, settings, network, device=torch.device("cpu")).evaluate(network.model)
        assert isinstance(found, ClassificationScores)
        return found


def make_classifier_place(root: Path, name: str, *, chw: tuple[int, int, int] | None = None) -> ClassifierPlace:
    """Write weights with random scales, and noise that they label."""
    chw = chw or SIZES[name]
    torch.manual_seed(0)
    model = lively(build_classifier(name, num_classes=len(NAMES), in_channels=chw[0])).float().eval()
    statistics = {"mean": (0.5,) * chw[0], "std": (0.25,) * chw[0]}
    spec = ClassifierSpec.of(name, num_classes=len(NAMES), image_chw=chw, **statistics)
    arrays: dict[str, Any] = {"classes": np.array(NAMES)}
    for seed, (split, count) in enumerate((("train", 16), ("test", 60))):
        images = np.random.default_rng(seed).integers(0, 256, (count, *chw[1:], chw[0]), np.uint8)
        arrays[f"x_{split}"] = images[..., 0] if chw[0] == 1 else images
        normalised = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        if split == "train":
            _balance_(model, normalised)
        with torch.no_grad():
            arrays[f"y_{split}"] = model(normalised).argmax(1).numpy()
    save(model, root / "dense.pt", spec)
    write_picture_file(root / "images.npz", arrays)
    return ClassifierPlace(root=root, spec=spec)


@torch.no_grad()
def _balance_(model: nn.Module, images: Tensor) -> None:
    """Scale the last layer so that each class has logits of mean 0 and deviation 1: a random network prefers one."""
    logits = model(images)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    last.bias.sub_(logits.mean(0)).div_(logits.std(0))
    last.weight.div_(logits.std(0)[:, None])
