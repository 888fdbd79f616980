"""`prune.py --iterative` as a run: settings, the state between rounds, and refusals that come before any training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latency_tables import invented_table
from tiny import TINY_CFG

from commands.prune_config import PruneConfig
from commands.prune_rounds import RoundScore, SavedRound, iterative_settings
from models.complexity import count_macs, count_parameters
from models.detector import Detector, build_model
from models.fingerprint import network_fingerprint
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.iterative import IterativeSettings, Quantity, Round, before_rounds
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.rounding import Rounding
from tasks.task import Network
from utils.errors import CheckpointError, PruningError
from utils.storage.checkpoint import Checkpoint, save_checkpoint
from utils.storage.run_folder import plain

IMAGE = (3, 64, 64)
# Of the tiny network: without those that shortcuts hold, and all that may be pruned.
FREE, PRUNABLE = 184, 232


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_yaml(TINY_CFG))


def network_of(model: Detector) -> Network:
    return Network(model=model, spec=model.spec, names=("a", "b", "c"))


def settings_for(model: Detector, config: PruneConfig) -> IterativeSettings:
    return iterative_settings(network_of(model), config, image_chw=IMAGE)


def config_of(**settings: Any) -> PruneConfig:
    defaults = {"weights": "a.pt", "data": "d.yaml", "criterion": "taylor", "iterative": True, "img_size": 64}
    return PruneConfig(**{**defaults, **settings})


def saved_round(model: Detector, folder: Path) -> SavedRound:
    config = config_of(protect=("model.0.conv",), target="macs=50%")
    settings = settings_for(model, config)
    state = before_rounds(model, settings=settings, image_chw=IMAGE)
    return SavedRound(
        network=network_of(model),
        round=replace(state, number=4, loss=0.1),
        config=config,
        fingerprint=network_fingerprint(model),
        folder=folder,
        scores=(RoundScore(number=0, pruned={"channels": 0.0}, loss=0.0, headline={"AP50": 0.9, "AP": 0.6}),),
    )


@pytest.mark.parametrize("percent", [None, 0.5])
def test_percent_is_of_the_channels_that_may_go(model: Detector, percent: float | None) -> None:
    settings = settings_for(model, config_of(percent=percent))
    # Half of those that may go, as a share of all that the loop counts.
    assert (settings.quantity, settings.ratio) == ("channels", FREE // 2 / PRUNABLE)


def test_rounds_towards_milliseconds_count_what_the_table_predicts(model: Detector) -> None:
    graph = ChannelGraph.of(model)
    table = invented_table(model, graph, IMAGE, fixed_ms=0.1)
    config = config_of(target="speedup=2", shortcuts="tied")
    settings = iterative_settings(network_of(model), config, image_chw=IMAGE, table=table)
    assert (settings.quantity, settings.cost_power, settings.has_fast_widths) == ("ms", 1.0, True)
    assert settings.ratio == pytest.approx(0.5)
    state = before_rounds(model, settings=settings, image_chw=IMAGE)
    assert state.now["ms"] == pytest.approx(LatencyCost.of(model, graph, IMAGE, table).milliseconds())
    with pytest.raises(PruningError, match=r"ms cannot be reached .* the nearest is"):
        before_rounds(model, settings=replace(settings, ratio=0.999), image_chw=IMAGE)


def test_saved_round_goes_on_with_the_table_of_its_run(model: Detector, tmp_path: Path) -> None:
    saved = saved_round(model, tmp_path)
    assert saved.config_to_resume(device="cpu").latency_table == ""
    (tmp_path / "latency.json").write_text("{}")
    assert saved.config_to_resume(device="cpu").latency_table == str(tmp_path / "latency.json")


def test_protected_layers_do_not_count_as_free(model: Detector) -> None:
    settings = settings_for(model, config_of(percent=0.5, protect=("model.4.conv",)))
    assert settings.ratio == (FREE - 32) // 2 / PRUNABLE


@pytest.mark.parametrize(
    ("target", "ratio"),
    [
        ("macs=40%", 0.6),
        ("params=25%", 0.75),
        (f"params={count_parameters(build_model(ModelSpec.from_yaml(TINY_CFG))) // 2}", 0.5),
    ],
)
def test_target_becomes_the_share_to_remove(model: Detector, target: str, ratio: float) -> None:
    settings = settings_for(model, config_of(target=target))
    assert settings.quantity == target.partition("=")[0]
    assert settings.ratio == pytest.approx(ratio)


def test_flags_become_settings_of_the_loop(model: Detector) -> None:
    flags = {"step": 40, "updates": 7, "lr": 0.02, "taylor_batches": 3, "shortcuts": "tied", "min_channels": 2}
    settings = settings_for(model, config_of(**flags, round="8", round_direction="up"))
    assert (settings.step, settings.updates, settings.lr, settings.rank_batches) == (40, 7, 0.02, 3)
    assert (settings.shortcuts, settings.min_channels) == ("tied", 2)
    assert settings.rounding == Rounding(unit=8, direction="up")
    assert settings.final_updates == 0


def test_target_that_is_met_already_is_refused(model: Detector) -> None:
    now = count_macs(model, IMAGE)
    with pytest.raises(PruningError, match="the network has no more than .* macs; give less than that"):
        settings_for(model, config_of(target=f"macs={now}"))


def test_percent_of_less_than_one_channel_is_refused(model: Detector) -> None:
    with pytest.raises(PruningError, match="--percent 0.001 of 184 channels that may go is none; give more"):
        settings_for(model, config_of(percent=0.001))


def test_saved_round_comes_back_as_it_was(model: Detector, tmp_path: Path) -> None:
    saved = saved_round(model, tmp_path)
    saved.save()
    found = SavedRound.load(tmp_path)
    assert (found.round, found.config, found.network.names) == (saved.round, saved.config, ("a", "b", "c"))
    assert (found.fingerprint, found.folder, found.scores) == (saved.fingerprint, tmp_path, saved.scores)
    assert found.network.spec == model.spec
    before, after = model.state_dict(), found.network.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_run_that_was_killed_before_rounds_were_measured_goes_on(model: Detector, tmp_path: Path) -> None:
    saved = saved_round(model, tmp_path)
    state = {"round": plain(saved.round), "fingerprint": saved.fingerprint}
    del state["round"]["importance"]
    save_checkpoint(
        saved.network.to_checkpoint(plain(saved.config), training_state=state), tmp_path / "last_round.pt"
    )
    found = SavedRound.load(tmp_path)
    assert (found.round, found.scores) == (replace(saved.round, importance={}), ())


def test_score_of_a_round_is_told_and_kept_with_the_shares_pruned() -> None:
    shares: dict[Quantity, float] = {"channels": 0.25, "macs": 0.5}
    score = RoundScore(number=3, pruned=shares, loss=0.5, headline={"AP50": 0.9, "AP": 0.6})
    assert score.as_text() == "after round 3, 25.0% of channels pruned: mAP50 0.900, mAP 0.600"
    row = {"round": 3, "channels_pruned": 0.25, "macs_pruned": 0.5, "loss": 0.5, "AP50": 0.9, "AP": 0.6}
    assert score.to_dict() == row


def test_round_is_rebuilt_from_plain_lists() -> None:
    state = Round(number=2, now={"macs": 3.0}, dense={"macs": 4.0}, loss=0.5, kept={"a": (0, 2)})
    values = {"number": 2, "now": {"macs": 3.0}, "dense": {"macs": 4.0}, "loss": 0.5, "kept": {"a": [0, 2]}}
    assert Round.from_dict(values) == state


def test_round_is_told_in_shares_of_the_dense_network() -> None:
    dense: dict[Quantity, float] = {"channels": 200.0, "macs": 4e9, "params": 1e6}
    now: dict[Quantity, float] = {"channels": 150.0, "macs": 1e9, "params": 5e5}
    state = Round(number=3, now=now, dense=dense, loss=0.25, kept={})
    assert state.as_text() == "round 3: 75.0 % of channels, 25.0 % of MACs, 50.0 % of parameters left, loss 0.2500"


def test_folder_without_a_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no last_round.pt; give the folder of an --iterative run"):
        SavedRound.load(tmp_path)


@pytest.mark.parametrize("state", [{}, {"round": None}, {"round": {"number": 1}, "fingerprint": "f"}])
def test_checkpoint_without_a_whole_round_is_refused(model: Detector, tmp_path: Path, state: dict[str, Any]) -> None:
    checkpoint = Checkpoint(
        spec=model.spec.to_dict(), names=("a", "b", "c"), weights=model.state_dict(), training_state=state
    )
    save_checkpoint(checkpoint, tmp_path / "last_round.pt")
    with pytest.raises(CheckpointError, match="contains no round of prune.py --iterative; give another run folder"):
        SavedRound.load(tmp_path)
