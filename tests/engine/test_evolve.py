"""The hyper-parameter search: it trains, keeps its best, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tiny import tiny_config

from commands.evolve import SEARCH_SPACE, run_evolution
from utils.config.hyp import Hyp, load_hyp


def test_search_is_resumed_and_writes_its_best_hyper_parameters(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=1, evolve=1)
    run_evolution(config)
    best = run_evolution(replace(config, evolve=2))
    result = json.loads((best.parent / "result.json").read_text())
    assert [trial["number"] for trial in result["trials"]] == [0, 1]
    assert load_hyp(best) != Hyp() or result["best"] == 0


def test_first_training_uses_the_given_hyper_parameters(tmp_path: Path) -> None:
    hyp = tmp_path / "start.yaml"
    hyp.write_text("lr0: 0.002\nscale: 0.25\n")
    best = run_evolution(tiny_config(tmp_path, epochs=1, evolve=1, hyp=str(hyp)))
    assert load_hyp(best).lr0 == 0.002
    assert load_hyp(best).scale == 0.25


def test_every_searched_name_is_a_hyper_parameter_with_its_default_in_range() -> None:
    for name, (low, high, _) in SEARCH_SPACE.items():
        assert low <= getattr(Hyp(), name) <= high, name
