"""What sparsity training adds to gradients, by hand: which parameters, how strongly, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import TINY_CFG, tiny_config
from torch import Tensor, nn

from commands.train import run_training
from commands.train_config import TrainConfig
from engine.training.hooks import Hook
from engine.training.sync_bn import synchronise_batch_norms_
from engine.training.trainer import Trainer
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.choices import Shortcuts, Sparsity
from pruning.sparsity.penalties import Penalty, SparsityHook, decayed, make_penalties
from pruning.sparsity.scale_rate import ScaleRateHook
from pruning.sparsity.settings import Strengths
from tasks.task import Network

STRENGTHS = Strengths(scale=0.1, shift=1.0, kernel=0.01)
# Halfway through a run of 10 epochs, a strength that falls to a tenth is at 1 - .9 * 5 / 10.
EPOCH, EPOCHS, HALFWAY = 5, 10, 0.55
# In tests/tiny.yaml the C3 blocks 3 and 5 have a bottleneck with a shortcut, 8 has one without.
BRANCHES = {f"model.{c3}.m.0.{cv}" for c3 in (3, 5) for cv in ("cv1", "cv2")}
TIED = BRANCHES | {"model.3.cv1", "model.5.cv1"}
STEM = {"model.0", "model.1", "model.2", "model.4"}
FREE = (
    STEM
    | {"model.3.cv2", "model.3.cv3", "model.5.cv2", "model.5.cv3"}
    | {"model.8.cv1", "model.8.cv2", "model.8.cv3", "model.8.m.0.cv1", "model.8.m.0.cv2"}
)


def tiny() -> Detector:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_yaml(TINY_CFG))


def penalties_of(
    model: Detector, sparsity: Sparsity, *, shortcuts: Shortcuts = "skip", is_decayed: bool = True
) -> tuple[Penalty, ...]:
    return make_penalties(model, sparsity=sparsity, strengths=STRENGTHS, shortcuts=shortcuts, is_decayed=is_decayed)


def trainer_at(epoch: int) -> Any:
    """What the hook sees of a Trainer in one epoch of 10."""
    groups = [{"name": name, "lr": 0.5} for name in ("norm", "weight", "bias")]
    return SimpleNamespace(
        state=SimpleNamespace(epoch=epoch),
        settings=SimpleNamespace(epochs=EPOCHS),
        optimizer=SimpleNamespace(param_groups=groups),
    )


def added(model: Detector, penalties: Sequence[Penalty], *, epoch: int = EPOCH) -> dict[str, Tensor]:
    """What the hook makes of gradients of zero, by name of each parameter it touches."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    SparsityHook(penalties).gradients_ready(trainer_at(epoch))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None and gradient.any()}


def blocks(names: Sequence[str] | dict[str, Any]) -> set[str]:
    """Convolution blocks from paths of their parts."""
    return {name.split(".bn")[0].split(".conv")[0] for name in names}


def set_norm_(model: Detector, name: str, *, gamma: Sequence[float], beta: Sequence[float]) -> None:
    """The first scales and shifts of a batch norm."""
    norm = model.get_submodule(name)
    with torch.no_grad():
        norm.weight[: len(gamma)] = torch.tensor(gamma)
        norm.bias[: len(beta)] = torch.tensor(beta)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 1.0), (5, 0.55), (9, 0.19)])
def test_strength_falls_in_a_line(epoch: int, expected: float) -> None:
    assert decayed(1.0, epoch=epoch, epochs=10) == pytest.approx(expected)


def test_scales_get_the_decayed_strength_and_shifts_the_whole_one() -> None:
    model = tiny()
    set_norm_(model, "model.0.bn", gamma=[0.5, -0.5, 0.0], beta=[0.2, -0.2, 0.0])
    gradients = added(model, penalties_of(model, "bn"))
    scale = 0.1 * HALFWAY
    torch.testing.assert_close(gradients["model.0.bn.weight"][:3], torch.tensor([scale, -scale, 0.0]))
    torch.testing.assert_close(gradients["model.0.bn.bias"][:3], torch.tensor([1.0, -1.0, 0.0]))
    # A shift of exactly zero stays where it is.
    assert set(gradients) - {"model.0.bn.bias"} == {f"{name}.bn.weight" for name in FREE}


def test_decay_can_be_switched_off() -> None:
    model = tiny()
    gradients = added(model, penalties_of(model, "bn", is_decayed=False), epoch=9)
    torch.testing.assert_close(gradients["model.0.bn.weight"], torch.full((8,), 0.1))


def test_skipping_leaves_out_branches_and_the_convolution_before_them() -> None:
    assert blocks([penalty.layer for penalty in penalties_of(tiny(), "bn")]) == FREE


def test_tied_draws_every_batch_norm() -> None:
    model = tiny()
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {penalty.layer for penalty in penalties_of(model, "bn", shortcuts="tied")} == norms
    assert blocks(sorted(norms)) == FREE | TIED


def test_residual_draws_branches_twice_as_hard_without_decay() -> None:
    model = tiny()
    set_norm_(model, "model.3.m.0.cv2.bn", gamma=[-0.5], beta=[0.2])
    gradients = added(model, penalties_of(model, "residual"), epoch=9)
    torch.testing.assert_close(gradients["model.3.m.0.cv2.bn.weight"][:2], torch.tensor([-0.2, 0.2]))
    torch.testing.assert_close(gradients["model.3.m.0.cv2.bn.bias"][0], torch.tensor(1.0))
    torch.testing.assert_close(gradients["model.0.bn.weight"], torch.full((8,), 0.1 * 0.19))
    assert blocks(gradients) == FREE | BRANCHES


def test_residual_and_tied_draws_no_scale_twice() -> None:
    model = tiny()
    layers = [penalty.layer for penalty in penalties_of(model, "residual", shortcuts="tied")]
    assert len(layers) == 2 * len(set(layers)), "one scale and one shift each"
    assert blocks(layers) == FREE | TIED


def test_kernel_draws_convolutions_but_not_the_head() -> None:
    model = tiny()
    weight = model.get_parameter("model.1.conv.weight")
    with torch.no_grad():
        weight[0, 0, 0] = torch.tensor([0.5, -0.5, 0.0])
    gradients = added(model, penalties_of(model, "kernel"))
    step = 0.01 * HALFWAY
    torch.testing.assert_close(gradients["model.1.conv.weight"][0, 0, 0], torch.tensor([step, -step, 0.0]))
    assert set(gradients) == {f"{name}.conv.weight" for name in FREE}


def test_mixed_draws_scales_and_kernels_with_their_own_strengths() -> None:
    model = tiny()
    gradients = added(model, penalties_of(model, "mixed"), epoch=0)
    assert set(gradients) == {f"{name}.{part}.weight" for name in FREE for part in ("bn", "conv")}
    assert gradients["model.0.bn.weight"].unique().tolist() == pytest.approx([0.1])
    assert gradients["model.0.conv.weight"].abs().unique().tolist() == pytest.approx([0.01])


def test_term_is_added_to_the_gradient_of_the_loss() -> None:
    parameter = nn.Parameter(torch.tensor([2.0, -2.0]))
    parameter.grad = torch.tensor([1.0, 1.0])
    penalty = Penalty(layer="norm", parameter=parameter, channels=None, strength=0.5, is_decayed=False)
    SparsityHook([penalty]).gradients_ready(trainer_at(0))
    assert parameter.grad.tolist() == [1.5, 0.5]


def test_channels_that_stay_get_no_term() -> None:
    parameter = nn.Parameter(torch.ones(2, 1, 1, 1))
    parameter.grad = torch.zeros_like(parameter)
    penalty = Penalty(
        layer="conv", parameter=parameter, channels=torch.tensor([True, False]), strength=0.5, is_decayed=False
    )
    SparsityHook([penalty]).gradients_ready(trainer_at(0))
    assert parameter.grad.flatten().tolist() == [0.5, 0.0]


def test_frozen_layers_stay_frozen() -> None:
    model = tiny()
    penalties = penalties_of(model, "bn")
    for parameter in model.parameters():
        parameter.grad = None
    SparsityHook(penalties).gradients_ready(trainer_at(0))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scales_can_move_at_a_rate_of_their_own() -> None:
    trainer = trainer_at(0)
    ScaleRateHook(4.0).gradients_ready(trainer)
    assert {group["name"]: group["lr"] for group in trainer.optimizer.param_groups} == {
        "norm": 2.0,
        "weight": 0.5,
        "bias": 0.5,
    }


def test_strength_zero_draws_nothing() -> None:
    for sparsity in ("bn", "residual", "kernel", "mixed"):
        assert (
            make_penalties(tiny(), sparsity=sparsity, strengths=Strengths(), shortcuts="skip", is_decayed=True) == ()
        )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_synchronised_batch_norms_are_drawn_too(device: str) -> None:
    model = tiny()
    plain = [penalty.layer for penalty in penalties_of(model, "residual")]
    synchronise_batch_norms_(model, torch.device(device))
    assert [penalty.layer for penalty in penalties_of(model, "residual")] == plain


def test_gated_blocks_of_mobilenet_are_no_shortcuts() -> None:
    model = build_model(ModelSpec.from_yaml("yolov5s-mobilenetv3-small-075", num_classes=2))
    drawn = {penalty.layer for penalty in penalties_of(model, "bn")}
    # Layer 5 widens, filters, gates and narrows with a shortcut around it; only its output is joined.
    assert {"model.5.expand.bn", "model.5.depthwise.bn"} <= drawn
    assert "model.5.project.bn" not in drawn


class Spy(Hook):
    """Gradients of one parameter at each optimiser step, and how many batches were seen before it."""

    def __init__(self, model: Detector, seen: list[Tensor]) -> None:
        self.parameter, self.seen = model.get_parameter("model.0.bn.weight"), seen

    def gradients_ready(self, trainer: Trainer) -> None:
        assert self.parameter.grad is not None
        self.seen.append(self.parameter.grad.clone())


class LossScaling(Hook):
    """Mixed precision's scaling of the loss, which on CPUs is off otherwise."""

    def before_training(self, trainer: Trainer) -> None:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


def terms_of_run(folder: Path, *, hooks: Sequence[Hook] = (), **settings: Any) -> list[Tensor]:
    """What the sparsity hook adds to the gradient at each step of an epoch."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def make(network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        model = network.model
        assert isinstance(model, Detector)
        sparsity = SparsityHook(penalties_of(model, "bn"))
        return [*hooks, Spy(model, before), sparsity, Spy(model, after)]

    hyp = folder / "hyp.yaml"
    hyp.write_text("warmup_epochs: 0\n")
    run_training(replace(tiny_config(folder, epochs=1, notest=True, hyp=str(hyp)), **settings), hooks=make)
    assert all(gradient.abs().max() > 0 for gradient in before)
    return [b - a for a, b in zip(before, after, strict=True)]


def test_term_keeps_its_size_when_the_loss_is_scaled(tmp_path: Path) -> None:
    terms = terms_of_run(tmp_path, hooks=[LossScaling()])
    assert len(terms) == 2
    for term in terms:
        torch.testing.assert_close(term, torch.full((8,), 0.1), atol=1e-4, rtol=0)


def test_term_is_added_once_per_optimiser_step(tmp_path: Path) -> None:
    # 8 pictures in batches of 2, and steps of 2 batches.
    terms = terms_of_run(tmp_path, batch_size=2, nominal_batch=4)
    assert len(terms) == 2
    for term in terms:
        torch.testing.assert_close(term, torch.full((8,), 0.1), atol=1e-4, rtol=0)
