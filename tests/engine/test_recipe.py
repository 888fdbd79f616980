"""What a run trains with where its settings leave it open: by its length, shown, kept, and never what was given."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from interruption import KillAfter, Killed, assert_same_weights
from tiny import tiny_config
from tiny_classes import classifier_config, small_pictures, trained

from commands.evolve import run_evolution
from commands.finetune_config import FinetuneConfig
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_recipe import is_settled, read_hyp, settled
from commands.train_sparsity_config import SparsityConfig
from engine.training.ema import ema_decay
from engine.training.recipe import RunLength, ShortRuns, averaged_steps, warmup_batches
from engine.training.schedule import Schedule
from tasks.choose import CLASSIFICATION, DETECTION
from utils.config.hyp import Hyp, load_hyp
from utils.errors import ConfigError
from utils.storage.checkpoint import load_checkpoint, save_checkpoint

RULES = ShortRuns()


def chosen(images: int, **settings: Any) -> tuple[int | None, int | None, float | None]:
    """Nominal batch, epochs without mosaics and last rate of a detector's run."""
    config = TrainConfig(**{"epochs": 60, **settings})
    result, hyp = settled(config, read_hyp(config, DETECTION.recipe), DETECTION.recipe, images=images)
    assert hyp.lrf == result.lrf
    return result.nominal_batch, result.close_mosaic, result.lrf


@pytest.mark.parametrize(
    ("images", "wanted"),
    [(200, (16, 20, 0.05)), (5_000, (32, 14, 0.0948)), (100_000, (64, 0, 0.2))],
)
def test_few_images_get_the_small_data_recipe_and_many_that_of_v5(
    images: int, wanted: tuple[int, int, float]
) -> None:
    # 5,000 images are 79 steps of 64 an epoch, 4,740 in all: .474 of 10,000.
    assert chosen(images) == wanted


def test_pascal_voc_for_50_epochs_is_the_recipe_that_v5_found_there() -> None:
    assert chosen(16_551, epochs=50) == (64, 0, 0.2)


def test_epochs_count_as_images_do() -> None:
    assert chosen(200, epochs=2500) == chosen(100_000)
    assert chosen(100_000, epochs=1)[0] == 16


def test_a_few_images_more_never_change_a_run_much() -> None:
    runs = [chosen(images) for images in range(100, 20_000, 100)]
    for (nominal, closing, rate), (nominal2, closing2, rate2) in pairwise(runs):
        assert nominal2 - nominal in (0, 16)  # type: ignore[operator]
        assert closing - closing2 in (0, 1)  # type: ignore[operator]
        assert 0 <= rate2 - rate < 0.003  # type: ignore[operator]
    assert {nominal for nominal, _, _ in runs} == {16, 32, 48, 64}


@pytest.mark.parametrize(("epochs", "closing"), [(1, 0), (8, 2), (30, 10), (60, 20), (300, 20)])
def test_at_most_a_third_of_a_run_is_without_mosaics(epochs: int, closing: int) -> None:
    assert chosen(200, epochs=epochs)[1] == closing


@pytest.mark.parametrize(("batch", "nominal"), [(1, 16), (16, 16), (24, 24), (64, 64), (128, 64)])
def test_step_sees_at_least_a_batch_and_at_most_what_long_runs_have(batch: int, nominal: int) -> None:
    assert chosen(200, batch_size=batch)[0] == nominal


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"nominal_batch": 64}, (64, 20, 0.05)),
        ({"close_mosaic": 0}, (16, 0, 0.05)),
        ({"close_mosaic": 45}, (16, 45, 0.05)),
        ({"lrf": 0.2}, (16, 20, 0.2)),
        ({"lrf": 0.0}, (16, 20, 0.0)),
        ({"hyp": "data/hyp/finetune.yaml"}, (16, 20, 0.12)),
        ({"hyp": "data/hyp/finetune.yaml", "lrf": 0.3}, (16, 20, 0.3)),
        ({"nominal_batch": 7, "close_mosaic": 3, "lrf": 0.5}, (7, 3, 0.5)),
    ],
)
def test_what_is_given_stays(given: dict[str, Any], wanted: tuple[int, int, float]) -> None:
    assert chosen(200, **given) == wanted


def test_long_runs_take_what_is_given_too() -> None:
    assert chosen(100_000, nominal_batch=16, close_mosaic=20, lrf=0.05) == (16, 20, 0.05)


def test_run_without_mosaics_has_none_to_end(tmp_path: Path) -> None:
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("mosaic: 0\n")
    assert chosen(200, rect=True)[1] == chosen(200, hyp=str(hyp))[1] == 0


def test_weights_and_names_of_data_have_no_say() -> None:
    assert chosen(205, weights="yolov5n.pt", data="data/bccd.yaml") == chosen(205, data="my.yaml")


@pytest.mark.parametrize("images", [200, 100_000])
def test_classifier_keeps_its_recipe(images: int) -> None:
    config = TrainConfig(data="mnist", cfg="lenet5", epochs=5)
    recipe = CLASSIFICATION.recipe
    result, hyp = settled(config, read_hyp(config, recipe), recipe, images=images)
    assert (result.nominal_batch, result.close_mosaic, hyp) == (128, 0, load_hyp("data/hyp/classes.yaml"))


@pytest.mark.parametrize("kind", [SparsityConfig, FinetuneConfig])
def test_sparse_training_and_fine_tuning_have_the_same_defaults(kind: type[TrainConfig]) -> None:
    config = kind(epochs=60)
    result, _ = settled(config, read_hyp(config, DETECTION.recipe), DETECTION.recipe, images=200)
    assert isinstance(result, kind)
    assert (result.nominal_batch, result.close_mosaic, result.lrf) == (16, 20, 0.05)


@pytest.mark.parametrize("lr0", [None, 0.0001])
def test_biases_warm_up_at_a_rate_that_suits_the_optimiser(lr0: float | None) -> None:
    """.1 for SGD's .01; Adam would move every bias by .1 a step."""
    hyp = read_hyp(TrainConfig(optimizer="adam", lr0=lr0), DETECTION.recipe)
    assert hyp.lr0 == pytest.approx(lr0 or 0.001)
    assert hyp.warmup_bias_lr == pytest.approx(10 * hyp.lr0)
    assert read_hyp(TrainConfig(lr0=0.0001), DETECTION.recipe).warmup_bias_lr == 0.1


def test_steps_are_counted_as_the_schedule_counts_them() -> None:
    length = RunLength(images=205, epochs=60)
    for nominal, accumulate in ((16, 1), (64, 4)):
        schedule = Schedule(name="cosine", hyp=Hyp(), epochs=60, batches=13, accumulate=accumulate)
        assert length.steps(nominal) == schedule.total_updates
    assert RULES.share(length, 64) == RULES.least_share


def test_warm_up_is_that_of_v5_where_there_is_time_for_it() -> None:
    assert warmup_batches(3, epochs=60, batches=6250, least=1000) == 18_750
    assert warmup_batches(3, epochs=60, batches=200, least=1000) == 1000
    assert warmup_batches(3, epochs=60, batches=13, least=1000) == 78
    assert warmup_batches(0, epochs=60, batches=13, least=1000) == 0


def test_warm_up_that_is_asked_for_is_not_changed() -> None:
    assert warmup_batches(3, epochs=60, batches=13, least=1000, is_exact=True) == 39
    assert warmup_batches(30, epochs=60, batches=13, least=1000, is_exact=True) == 390
    assert warmup_batches(99, epochs=60, batches=13, least=1000, is_exact=True) == 780


def test_averaging_is_that_of_v5_in_long_runs_and_what_is_asked_for() -> None:
    assert [averaged_steps(total) for total in (10, 1000, 10**6)] == [1, 20, 10_000]
    assert ema_decay(10**6, 1000, window=50) == pytest.approx(0.98)


def lines_of(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [line for line in caplog.messages if any(word in line for word in words.split("|"))]


CHOICES = "nominal batch|mosaics|learning rate falls|warm-up over|averaged over"


def test_every_choice_is_shown_in_a_line_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(tmp_path, epochs=3, nominal_batch=None)
    with caplog.at_level(logging.INFO):
        result = run_training(config)
    assert result is not None
    assert lines_of(caplog, CHOICES) == [
        "nominal batch 16: 3 steps; 64 would make 3, too few below 10,000 (--nominal-batch)",
        "last 1 of 3 epochs without mosaics, on whole images (--close-mosaic)",
        "learning rate falls to 0.05 of its start (--lrf)",
        "warm-up over 1 of 6 batches (--warmup-epochs)",
        "weights averaged over about the last 1 steps (--ema-steps)",
    ]
    wanted = {"steps": 3, "nominal_batch": 16, "close_mosaic": 1, "lrf": 0.05, "warmup_batches": 1, "ema_steps": 1.0}
    assert yaml.safe_load((result.folder / "recipe.yaml").read_text()) == wanted
    assert json.loads((result.folder / "result.json").read_text())["recipe"] == wanted
    assert load_hyp(result.folder / "hyp.yaml").lrf == 0.05
    given = yaml.safe_load((result.folder / "opt.yaml").read_text())
    assert [given[name] for name in ("nominal_batch", "close_mosaic", "lrf", "ema_steps")] == [None] * 4


def test_lines_say_what_was_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {"nominal_batch": 8, "close_mosaic": 0, "lrf": 0.3, "warmup_epochs": 1.0, "ema_steps": 2}
    with caplog.at_level(logging.INFO):
        result = run_training(tiny_config(tmp_path, epochs=3, **given))
    assert result is not None
    assert lines_of(caplog, CHOICES) == [
        "nominal batch 8: 3 steps, as given",
        "mosaics to the end, as given",
        "learning rate falls to 0.3 of its start, as given",
        "warm-up over 2 of 6 batches, as given",
        "weights averaged over about the last 2 steps, as given",
    ]
    assert result.recipe == {
        **{"nominal_batch": 8, "close_mosaic": 0, "lrf": 0.3, "ema_steps": 2},
        **{"steps": 3, "warmup_batches": 2},
    }


def test_lines_of_a_classifier_are_about_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trained(classifier_config(tmp_path, nominal_batch=None, epochs=1), small_pictures())
    assert lines_of(caplog, CHOICES) == [
        "nominal batch 128: 1 steps (--nominal-batch)",
        "learning rate falls to 0.01 of its start (--lrf)",
        "warm-up over 1 of 3 batches (--warmup-epochs)",
    ]


def test_averaging_over_given_steps_changes_what_is_shipped_and_nothing_else(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=3)
    short, long = (run_training(replace(config, name=f"ema{steps}", ema_steps=steps)) for steps in (1, 50))
    assert short is not None
    assert long is not None
    with pytest.raises(AssertionError):
        assert_same_weights(short.last, long.last)
    losses = [
        [line.split(",")[:4] for line in (run.folder / "results.csv").read_text().splitlines()]
        for run in (short, long)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("killed_in", [0, 2])
def test_resumed_run_has_the_choices_it_began_with(
    tmp_path: Path, killed_in: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, epochs=3, nominal_batch=None, batch_size=2)
    whole = run_training(replace(config, name="whole"))
    with pytest.raises(Killed):
        run_training(replace(config, name="killed"), hooks=lambda *_: [KillAfter(killed_in)])
    # Rules that have changed since.
    monkeypatch.setattr(ShortRuns, "nominal_batch", lambda *args, **settings: 2)
    monkeypatch.setattr(ShortRuns, "closing", lambda *args: 3)
    monkeypatch.setattr(ShortRuns, "last_rate", lambda *args, **settings: 0.9)
    resumed = run_training(TrainConfig(resume=str(tmp_path / "runs/killed/weights/last.pt")))
    assert whole is not None
    assert resumed is not None
    assert_same_weights(whole.last, resumed.last)
    assert_same_weights(whole.best, resumed.best)
    assert whole.recipe == resumed.recipe


def test_run_that_began_before_there_was_a_choice_goes_on_as_it_began(tmp_path: Path) -> None:
    old = {"nominal_batch": 64, "close_mosaic": 0, "lrf": 0.2}  # what earlier versions did without flags
    config = tiny_config(tmp_path, epochs=6, batch_size=2, **old)
    whole = run_training(replace(config, name="whole"))
    with pytest.raises(Killed):
        run_training(replace(config, name="killed"), hooks=lambda *_: [KillAfter(1)])
    last = tmp_path / "runs/killed/weights/last.pt"
    checkpoint = load_checkpoint(last)
    then = {**checkpoint.config, "nominal_batch": None, "lrf": None}
    del then["ema_steps"]
    save_checkpoint(replace(checkpoint, config=then), last)
    (tmp_path / "runs/killed/recipe.yaml").unlink()
    resumed = run_training(TrainConfig(resume=str(last)))
    assert whole is not None
    assert resumed is not None
    assert_same_weights(whole.last, resumed.last)
    assert resumed.recipe == {}


def test_settings_of_an_earlier_version_are_not_taken_for_chosen_ones() -> None:
    assert not is_settled(TrainConfig(close_mosaic=0))
    assert is_settled(TrainConfig(close_mosaic=0, nominal_batch=64, lrf=0.2))


def test_search_starts_from_what_the_run_would_have(tmp_path: Path) -> None:
    best = run_evolution(tiny_config(tmp_path, epochs=1, evolve=1), run=run_training)
    assert load_hyp(best.with_name("trial0.yaml")).lrf == 0.05


@pytest.mark.parametrize("name", ["nominal_batch", "ema_steps", "close_mosaic"])
def test_choice_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} -1: expected at least"):
        TrainConfig(**{name: -1})
