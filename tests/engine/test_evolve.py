"""The hyper-parameter search: it trains, keeps its best, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config
from tiny_classes import classifier_config, write_class_folder

from commands.evolve import SEARCH_SPACE, run_evolution
from commands.train import run_training, train
from commands.train_config import TrainConfig
from tasks.choose import TASKS
from utils.config.hyp import Hyp, load_hyp
from utils.errors import ConfigError


def test_search_is_resumed_and_writes_its_best_hyper_parameters(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=1, evolve=1)
    run_evolution(config, run=run_training)
    best = run_evolution(replace(config, evolve=2), run=run_training)
    result = json.loads((best.parent / "result.json").read_text())
    assert [trial["number"] for trial in result["trials"]] == [0, 1]
    assert load_hyp(best) != Hyp() or result["best"] == 0


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"optimizer": "adam"}, r"--optimizer adam: the trainings in .*evolve had sgd, .*; give another --project"),
        ({"adam": True}, r"--optimizer adam: .* had sgd"),
        ({"epochs": 2}, r"--epochs 2: .* had 1"),
        ({"img_size": (96,)}, r"--img-size \[96\]: .* had \[64\]"),
    ],
)
def test_trainings_that_cannot_be_compared_are_refused(tmp_path: Path, other: dict[str, Any], line: str) -> None:
    trained: list[str] = []

    def run(config: TrainConfig) -> None:
        trained.append(config.optimizer_name)

    config = tiny_config(tmp_path, epochs=1, evolve=1)
    run_evolution(config, run=run)
    with pytest.raises(ConfigError, match=line):
        run_evolution(replace(config, evolve=2, **other), run=run)
    assert trained == ["sgd"]
    run_evolution(replace(config, evolve=2, workers=1), run=run)  # what changes no score may differ
    assert trained == ["sgd", "sgd"]
    run_evolution(replace(config, **other, project=str(tmp_path / "apart")), run=run)
    assert len(trained) == 3


def test_first_training_uses_the_given_hyper_parameters(tmp_path: Path) -> None:
    hyp = tmp_path / "start.yaml"
    hyp.write_text("lr0: 0.002\nscale: 0.25\n")
    best = run_evolution(tiny_config(tmp_path, epochs=1, evolve=1, hyp=str(hyp)), run=run_training)
    assert load_hyp(best).lr0 == 0.002
    assert load_hyp(best).scale == 0.25


def test_classifier_is_searched_over_its_own_hyper_parameters(tmp_path: Path) -> None:
    data = write_class_folder(tmp_path / "images")
    config = classifier_config(tmp_path, cfg="vanilla", data=str(data), img_size=32, batch_size=8, epochs=1, evolve=1)
    assert train(config) is None
    folder = tmp_path / "runs/evolve"
    result = json.loads((folder / "result.json").read_text())
    (trial,) = result["trials"]
    searched = {"lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum"}
    assert trial.keys() == {"number", "fitness", *searched}
    assert result["fitness"] == trial["fitness"]
    trained = json.loads((folder / "trial0/result.json").read_text())
    assert trained["metrics"]["accuracy"] == trial["fitness"]
    best, start = load_hyp(folder / "hyp_evolved.yaml"), load_hyp("data/hyp/classes.yaml")
    assert best == start  # the first training is that of the YAML
    assert load_hyp(folder / "trial0/hyp.yaml") == start


def test_search_without_a_range_is_impossible() -> None:
    for task in TASKS:
        start = load_hyp(task.recipe.hyp)
        assert set(task.recipe.searched) <= set(SEARCH_SPACE)
        for name in task.recipe.searched:
            low, high, _ = SEARCH_SPACE[name]
            assert low <= getattr(start, name) <= high, name
    assert set(TASKS[0].recipe.searched) == set(SEARCH_SPACE)


def test_every_searched_name_is_a_hyper_parameter_with_its_default_in_range() -> None:
    for name, (low, high, _) in SEARCH_SPACE.items():
        assert low <= getattr(Hyp(), name) <= high, name
