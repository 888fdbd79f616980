"""Channels that are chosen first fade to zero: when, how exactly, and after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stepping import SmallNet, average_of, fit, make_trainer, small_net

from pruning.channels.graph import ChannelGraph
from pruning.sparsity.fading import FadingHook, fadings, layers_without_norm, share_left
from pruning.surgery.cut import apply_plan
from pruning.surgery.plan import PLAN_NAME, PruningPlan
from utils.errors import PruningError

# Channels that stay in the two layers that lose some.
KEEP = {"first": (0, 2, 5), "second": (1, 2, 3, 4, 6)}


def plan_of(model: SmallNet) -> PruningPlan:
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    layers = {name: graph.layers[name].output_ids for name in KEEP}
    dropped = np.concatenate([np.delete(layers[name], list(kept)) for name, kept in KEEP.items()])
    return PruningPlan.of(model, graph, dropped)


def hook_for(model: SmallNet, folder: Path) -> FadingHook:
    return FadingHook(model, lambda: plan_of(model), folder=folder, image_chw=(3, 8, 8))


def schedule_(trainer: Any) -> Any:
    trainer.schedule = type("Updates", (), {"total_updates": 8 * trainer.settings.epochs})()
    return trainer


def chosen(model: SmallNet) -> torch.Tensor:
    """Scales and shifts of the chosen channels."""
    parts = []
    for name, norm in (("first", model.norm1), ("second", model.norm2)):
        gone = [channel for channel in range(len(norm.weight)) if channel not in KEEP[name]]
        parts += [norm.weight[gone], norm.bias[gone]]
    return torch.cat(parts).detach()


def kept(model: SmallNet) -> torch.Tensor:
    return torch.cat([model.norm1.weight[list(KEEP["first"])], model.norm2.weight[list(KEEP["second"])]]).detach()


def test_shares_fall_in_a_line_and_end_before_the_run() -> None:
    assert share_left(0.0) == 1.0
    assert share_left(0.2) == pytest.approx(0.5)
    assert share_left(0.4) == share_left(1.0) == 0.0


@pytest.mark.parametrize("epochs", [2, 6])
def test_chosen_channels_are_at_zero_at_the_end_whatever_the_length(tmp_path: Path, epochs: int) -> None:
    model = small_net()
    torch.nn.init.constant_(model.norm1.bias, 0.3)
    before = chosen(model).clone()
    trainer = schedule_(make_trainer(model, [hook_for(model, tmp_path)], epochs=epochs))
    seen = []
    fit(trainer, check=lambda _: seen.append(chosen(model).clone()))
    quarter = len(seen) // 4
    assert quarter * 4 == len(seen)
    torch.testing.assert_close(seen[quarter - 1], before * (1 - 0.25 / 0.4))
    assert not chosen(model).any()
    assert not chosen(average_of(trainer)).any(), "the averages are what is saved"
    assert (kept(model).abs() > 0.5).all(), "nothing draws on the others"
    assert not torch.equal(kept(model), torch.ones_like(kept(model))), "they train"


def test_the_cut_by_the_written_plan_changes_nothing(tmp_path: Path) -> None:
    model = small_net()
    fit(schedule_(make_trainer(model, [hook_for(model, tmp_path)])))
    model.eval()
    cut = apply_plan(model, PruningPlan.load(tmp_path / PLAN_NAME), image_chw=(3, 8, 8))
    assert [cut.get_submodule(name).out_channels for name in KEEP] == [3, 5]
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(cut(images), model(images))


def test_before_they_are_at_zero_no_epoch_is_the_best(tmp_path: Path) -> None:
    model = small_net()
    trainer = schedule_(make_trainer(model, [hook_for(model, tmp_path)], epochs=4))
    fit(trainer, epochs=1)
    assert trainer.state.is_interim
    assert trainer.state.best_epoch == -1
    assert trainer.state.extra["sparsity/left"] == pytest.approx(1 - 0.25 / 0.4)


def test_an_interrupted_run_ends_the_same(tmp_path: Path) -> None:
    whole = small_net()
    fit(schedule_(make_trainer(whole, [hook_for(whole, tmp_path)])))
    first = small_net()
    hook = hook_for(first, tmp_path)
    trainer = schedule_(make_trainer(first, [hook]))
    fit(trainer, epochs=2)
    again = hook_for(first, tmp_path)
    again.restore(hook.state())
    again._choose = lambda: pytest.fail("a resumed run has chosen already")
    trainer.hooks[0] = again
    fit(trainer)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name


def test_a_channel_without_batch_norm_is_refused_by_name() -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).relu())

    model = Plain()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    assert layers_without_norm(graph) == ("first", "last")
    assert layers_without_norm(ChannelGraph.of(small_net(), image_chw=(3, 8, 8))) == ("last",)
    with pytest.raises(PruningError, match="layer first has no batch norm"):
        fadings(model, graph, graph.layers["first"].output_ids[:1])
