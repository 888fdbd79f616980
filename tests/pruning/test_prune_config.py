"""Settings of prune.py: what targets mean, and which settings exclude each other."""

from __future__ import annotations

from typing import Any

import pytest

from commands.prune_config import PruneConfig
from pruning.selection.targets import parse_target
from utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "quantity", "absolute"),
    [
        ("macs=2.1G", "macs", 2.1e9),
        ("params=700K", "params", 7e5),
        ("params=1.5m", "params", 1.5e6),
        ("MACS=12345", "macs", 12345),
        ("macs=1e9", "macs", 1e9),
        ("macs=50%", "macs", 2e9),  # of the 4e9 that the network has
        ("params=12.5%", "params", 5e8),
        ("ms=8", "ms", 8.0),
        ("MS=7.5", "ms", 7.5),
        ("ms=25%", "ms", 1e9),
        ("speedup=4", "ms", 1e9),
    ],
)
def test_target_is_a_number_or_a_share_of_now(text: str, quantity: str, absolute: float) -> None:
    target = parse_target(text)
    assert target.quantity == quantity
    assert target.absolute(4e9) == pytest.approx(absolute)


@pytest.mark.parametrize(
    "text",
    [
        *("", "macs", "macs=", "=5", "flops=2G", "macs=-1G", "macs=0", "macs=nan", "macs=inf", "macs=2GG", "macs=2T"),
        *("ms=0", "ms=-1", "ms=nan", "ms=8k", "ms=8m", "speedup=1", "speedup=.5", "speedup=0", "speedup=50%"),
    ],
)
def test_text_that_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a form such as macs=2.1G, params=700K or macs=50%"):
        parse_target(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"percent": 1.0}, r"--percent 1.0: expected a share from 0 up to, not including, 1"),
        ({"percent": -0.1}, r"--percent -0.1: expected"),
        ({"percent": float("nan")}, r"--percent nan: expected"),
        ({"bn_percent": 1.5}, r"--bn-percent 1.5: expected"),
        ({"min_channels": 0}, r"--min-channels 0: expected at least 1"),
        ({"img_size": 0}, r"--img-size 0: expected at least 1"),
        ({"tolerance": -0.1}, r"--tolerance -0.1: expected at least 0"),
        ({"round": "pow3"}, r"--round pow3: expected pow2, none or a number"),
        ({"target": "macs"}, r"--target macs: expected a form such as"),
        ({"percent": 0.5, "target": "macs=50%"}, r"--percent and --target both say how much to cut; leave one out"),
        ({"percent": 0.5, "conv_percent": 0.5}, r"--percent and --bn-percent/--conv-percent both say"),
        ({"plan": "plan.json", "percent": 0.5}, r"--percent and --plan both say"),
        ({"plan": "plan.json", "drop_bottlenecks": ("all",)}, r"leave --drop-bottlenecks out"),
        ({"scan": True, "data": "d.yaml", "target": "macs=50%"}, r"--scan looks for a percent .* leave one out"),
        ({"scan": True}, r"--scan measures on images; give --data"),
        ({"criterion": "taylor"}, r"--criterion taylor measures on images; give --data"),
        ({"criterion": "fisher"}, r"--criterion fisher measures on images; give --data"),
        ({"balance": 1.5, "target": "macs=50%"}, r"--balance 1.5: expected a share from 0 to 1, such as 0.6"),
        ({"notest": True}, r"--notest is for rounds; add --iterative or leave --notest out"),
        ({"balance": 0.5}, r"--balance limits what --target takes; give --target"),
    ],
)
def test_settings_are_checked_when_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneConfig(weights="a.pt", **settings)


def test_either_share_makes_pruning_mixed() -> None:
    assert PruneConfig(weights="a.pt", bn_percent=0.85).is_mixed
    assert PruneConfig(weights="a.pt", conv_percent=0.78).is_mixed
    assert not PruneConfig(weights="a.pt", percent=0.5).is_mixed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "bn_gamma"}, r"--iterative ranks by Taylor expansion, not bn_gamma; add --criterion taylor"),
        ({"data": ""}, r"--criterion taylor measures on images; give --data"),
        ({"plan": "p.json"}, r"--iterative decides round by round, without --plan; leave one of them out"),
        ({"scan": True}, r"without --scan; leave one"),
        ({"bn_percent": 0.5}, r"without --bn-percent/--conv-percent; leave one"),
        ({"drop_bottlenecks": ("all",)}, r"without --drop-bottlenecks; leave one"),
        ({"dry_run": True}, r"without --dry-run; leave one"),
        ({"strict": True}, r"without --strict; leave one"),
        ({"balance": 0.5, "target": "macs=50%"}, r"without --balance; leave one"),
        ({"step": 0}, r"--step 0: expected at least 1"),
        ({"updates": -1}, r"--updates -1: expected at least 0"),
        ({"taylor_batches": 0}, r"--taylor-batches 0: expected at least 1"),
        ({"lr": 0.0}, r"--lr 0.0: expected a positive number, such as 0.001"),
        ({"lr": float("nan")}, r"--lr nan: expected a positive number"),
        ({"percent": 0.5, "target": "macs=50%"}, r"--percent and --target both say how much to cut"),
    ],
)
def test_settings_of_rounds_are_checked_when_made(settings: dict[str, Any], message: str) -> None:
    values = {"weights": "a.pt", "data": "d.yaml", "criterion": "taylor", "iterative": True, **settings}
    with pytest.raises(ConfigError, match=message):
        PruneConfig(**values)


@pytest.mark.parametrize("power", [-0.1, 4.5, float("nan")])
def test_cost_power_out_of_range_is_refused(power: float) -> None:
    with pytest.raises(ConfigError, match=f"--cost-power {power}: expected a number from 0 to 4, such as 0.5"):
        PruneConfig(weights="a.pt", target="macs=50%", cost_power=power)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"target": "ms=8", "criterion": "taylor", "data": "d.yaml"}, 0.6),
        ({"target": "macs=50%", "criterion": "fisher", "data": "d.yaml"}, 0.6),
        ({"target": "macs=50%", "criterion": "fisher", "data": "d.yaml", "balance": 0.0}, 0.0),
        ({"target": "macs=50%", "criterion": "taylor", "data": "d.yaml", "iterative": True}, 0.0),
        ({"target": "macs=50%"}, 0.0),
        ({"percent": 0.5, "criterion": "taylor", "data": "d.yaml"}, 0.0),
    ],
)
def test_importance_measured_on_images_leaves_every_layer_a_share(settings: dict[str, Any], share: float) -> None:
    assert PruneConfig(weights="a.pt", **settings).least_share == share


def test_cost_power_without_a_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="--cost-power weighs what --target counts; give --target"):
        PruneConfig(weights="a.pt", percent=0.5, cost_power=0.5)


@pytest.mark.parametrize("name", ["step", "updates", "lr"])
def test_settings_of_rounds_without_rounds_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is for rounds; add --iterative or leave --{name} out"):
        PruneConfig(weights="a.pt", **{name: 3})  # type: ignore[arg-type]


def test_weights_are_needed_unless_a_run_goes_on() -> None:
    assert PruneConfig(resume="runs/prune/exp").weights == ""
    with pytest.raises(ConfigError, match="no --weights given; give the checkpoint to prune, or --resume"):
        PruneConfig(percent=0.5)


def test_taylor_sees_the_pictures_that_training_sees() -> None:
    config = PruneConfig(weights="a.pt", data="d.yaml", img_size=320, batch_size=8, workers=2, seed=3, cache_dir="c")
    training = config.training()
    assert (training.weights, training.data, training.img_size) == ("a.pt", "d.yaml", (320,))
    assert (training.batch_size, training.workers, training.seed, training.cache_dir) == (8, 2, 3, "c")
