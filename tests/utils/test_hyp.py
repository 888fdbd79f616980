"""Hyper-parameters: v5.0's numbers, files, and values that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.config.hyp import Hyp, hyp_from_dict, load_hyp
from utils.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "data/hyp"


def test_defaults_are_those_of_hyp_scratch() -> None:
    hyp = Hyp()
    assert (hyp.lr0, hyp.lrf, hyp.momentum, hyp.weight_decay) == (0.01, 0.2, 0.937, 5e-4)
    assert (hyp.box, hyp.cls, hyp.obj, hyp.anchor_t) == (0.05, 0.5, 1.0, 4.0)
    assert load_hyp(FOLDER / "scratch.yaml") == hyp


def test_finetune_file_has_the_numbers_of_v5() -> None:
    hyp = load_hyp(FOLDER / "finetune.yaml")
    assert (hyp.lr0, hyp.lrf, hyp.obj_pw, hyp.mixup) == (0.0032, 0.12, 0.911, 0.243)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads(path: Path) -> None:
    assert load_hyp(path).lr0 > 0


def test_numbers_come_back_from_a_dict() -> None:
    hyp = Hyp(lr0=0.02, mosaic=0.5)
    assert hyp_from_dict(hyp.to_dict(), where="x") == hyp


def test_text_that_is_a_number_is_taken_and_keys_of_other_tools_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text("lr0: 1e-3\nanchors: 3\ncopy_paste: 0.0\n")
    assert load_hyp(path).lr0 == 0.001


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate: 1", "unknown hyper-parameter 'learning_rate'; known: anchor_t, box"),
        ("lr0: fast", "lr0 is 'fast', expected a number"),
        ("lr0: true", "lr0 is True, expected a number"),
        ("lr0: 0", "lr0: got 0.0, expected more than 0"),
        ("lr0: .nan", "lr0: got nan, expected a finite number"),
        ("momentum: .inf", "momentum: got inf, expected a finite number"),
        ("label_smoothing: 3", "label_smoothing: got 3.0, expected 0 to 1"),
        ("mosaic: 2", "mosaic: got 2.0, expected 0 to 1"),
        ("anchor_t: 1", "anchor_t: got 1.0, expected more than 1"),
    ],
)
def test_value_that_cannot_be_names_file_and_expectation(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=f"hyp.yaml: .*{message}"):
        load_hyp(path)
