"""Feature distillation: which channels follow which, the distance by hand, and what is not compared."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from stepping import SmallNet, small_net
from tiny import TINY_CFG
from torch import Tensor, nn

from models.detector import build_model
from models.fuse import fuse
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.features import FeatureLoss, Followed
from pruning.surgery.cut import apply_plan
from pruning.surgery.plan import PruningPlan
from utils.errors import PruningError

IMAGE = (3, 8, 8)
KEEP = {"first": (0, 2, 5), "second": (1, 2, 3, 4, 6)}


def plan_of(model: nn.Module, keep: dict[str, tuple[int, ...]]) -> PruningPlan:
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    dropped = np.concatenate([np.delete(graph.layers[name].output_ids, list(kept)) for name, kept in keep.items()])
    return PruningPlan.of(model, graph, dropped)


def as_in_training(model: nn.Module) -> nn.Module:
    """Training mode, but for statistics of batches."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def faded(model: SmallNet) -> SmallNet:
    """The network with the scales and shifts of what is to go at zero."""
    with torch.no_grad():
        for name, norm in (("first", model.norm1), ("second", model.norm2)):
            gone = [channel for channel in range(len(norm.weight)) if channel not in KEEP[name]]
            norm.weight[gone] = 0
            norm.bias[gone] = 0
    return model


def compared(student: nn.Module, teacher: nn.Module, followed: Followed, images: Tensor) -> float:
    loss = FeatureLoss(student, teacher, followed.read)
    with torch.no_grad():
        teacher(images)
    student(images)
    distance = float(loss().detach())
    loss.close()
    return distance


def test_cut_of_channels_at_zero_reads_what_its_teacher_reads() -> None:
    teacher = faded(small_net()).eval()
    plan, images = plan_of(teacher, KEEP), torch.randn(4, *IMAGE)
    student = apply_plan(teacher, plan, image_chw=IMAGE)
    followed = Followed.of(teacher, student, plan, strength=1.0, image_chw=IMAGE)
    assert {name: len(channels) for name, channels in followed.read.items()} == {
        "first": 3,
        "second": 3,
        "third": 5,
        "last": 10,
    }
    assert followed.read["second"].tolist() == [0, 2, 5]
    assert compared(as_in_training(student), teacher, followed, images) == pytest.approx(0, abs=1e-9)
    # A student that still has the channels follows in those alone that stay.
    uncut = as_in_training(copy.deepcopy(teacher))
    with torch.no_grad():
        uncut.norm1.bias[1] = 3.0  # type: ignore[union-attr,operator,index]
        uncut.second.weight[:, 1] = 0  # type: ignore[union-attr,operator,index]
    assert compared(uncut, teacher, followed, images) == pytest.approx(0, abs=1e-9)


class Readers(nn.Module):
    """Two convolutions that read one tensor, and a linear layer that reads positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.last = nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        y = self.left(x) * self.right(x)
        return self.last(y.flatten(2).transpose(1, 2))


def test_distance_by_hand_counts_a_tensor_once() -> None:
    torch.manual_seed(0)
    teacher = Readers().eval()
    student = as_in_training(copy.deepcopy(teacher))
    with torch.no_grad():
        student.norm.bias += 0.5  # type: ignore[union-attr,operator]
        student.norm.running_var *= 2  # type: ignore[union-attr,operator]
    read = {"stem": torch.arange(3), "left": torch.arange(4), "right": torch.arange(4), "last": torch.arange(2)}
    images = torch.randn(2, 3, 5, 5)
    found = compared(student, teacher, Followed(read=read, strength=1.0), images)

    def tensors(model: nn.Module) -> list[Tensor]:
        x = model.norm(model.stem(images)).relu()  # type: ignore[operator]
        return [x, model.left(x) * model.right(x)]  # type: ignore[operator]

    with torch.no_grad():
        pairs = list(zip(tensors(student), tensors(teacher), strict=True))
    by_hand = [((own - taught) ** 2).mean() / (taught**2).mean() for own, taught in pairs]
    assert found == pytest.approx(float(sum(by_hand) / 2), rel=1e-4)


def test_student_that_reads_zeros_has_distance_one() -> None:
    teacher, student = small_net().eval(), as_in_training(small_net())
    with torch.no_grad():
        for norm in (student.norm1, student.norm2, student.norm3):
            norm.weight.zero_()  # type: ignore[union-attr,operator]
            norm.bias.zero_()  # type: ignore[union-attr,operator]
    followed = Followed(read={name: torch.arange(n) for name, n in (("second", 6), ("last", 10))}, strength=1.0)
    assert compared(student, teacher, followed, torch.randn(4, *IMAGE)) == pytest.approx(1.0, abs=1e-3)


def test_validation_is_not_compared_and_a_closed_loss_sees_nothing() -> None:
    teacher = small_net().eval()
    student, images = as_in_training(small_net()), torch.randn(2, *IMAGE)
    loss = FeatureLoss(student, teacher, {"second": torch.arange(6)})
    teacher(images)
    student(images)
    student.eval()
    student(images * 100)
    assert float(loss().detach()) == pytest.approx(0, abs=1e-9)
    loss.close()
    student.train()
    student(images)
    assert not student.second._forward_pre_hooks  # type: ignore[union-attr]
    assert not teacher.second._forward_pre_hooks


def test_student_gets_closer_by_gradients() -> None:
    torch.manual_seed(1)
    teacher, images = small_net().eval(), torch.randn(8, *IMAGE)
    plan = plan_of(teacher, KEEP)
    student = apply_plan(teacher, plan, image_chw=IMAGE).train()
    followed = Followed.of(teacher, student, plan, strength=1.0, image_chw=IMAGE)
    loss = FeatureLoss(student, teacher, followed.read)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    distances = []
    for _ in range(30):
        with torch.no_grad():
            teacher(images)
        student(images)
        distance = loss()
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        distances.append(float(distance.detach()))
    assert distances[-1] < 0.6 * distances[0]


def test_detector_follows_a_teacher_whose_batch_norms_are_folded() -> None:
    torch.manual_seed(0)
    teacher = build_model(ModelSpec.from_yaml(TINY_CFG)).eval()
    graph = ChannelGraph.of(teacher)
    dropped = np.concatenate([group.ids[: len(group.ids) // 2] for group in graph.groups])
    dropped = dropped[~np.isin(dropped, list(graph.protected))]
    with torch.no_grad():
        for layer in graph.layers.values():
            if layer.is_norm:
                norm = teacher.get_submodule(layer.name)
                norm.weight[np.isin(layer.output_ids, dropped)] = 0  # type: ignore[union-attr,operator,index]
    plan = PruningPlan.of(teacher, graph, dropped)
    student = apply_plan(teacher, plan)
    followed = Followed.of(teacher, student, plan, strength=1.0)
    distance = compared(as_in_training(student), fuse(teacher), followed, torch.rand(2, 3, 64, 64))
    assert distance == pytest.approx(0, abs=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    teacher = small_net().eval()
    plan = plan_of(teacher, KEEP)
    student = apply_plan(teacher, plan, image_chw=IMAGE)
    with pytest.raises(PruningError, match="the plan was made for another network"):
        Followed.of(small_net(width=9), student, plan, strength=1.0, image_chw=IMAGE)
    other = apply_plan(teacher, plan_of(teacher, {"first": (0, 1, 2, 3)}), image_chw=IMAGE)
    with pytest.raises(PruningError, match=r"layer norm1: the plan lets it read 3 channels, the weights others"):
        Followed.of(teacher, other, plan, strength=1.0, image_chw=IMAGE)
    with pytest.raises(PruningError, match="the plan removes bottlenecks"):
        Followed.of(teacher, student, replace(plan, bottlenecks=("model.2.m.0",)), strength=1.0, image_chw=IMAGE)


def test_two_plans_in_one_cut_what_both_cut() -> None:
    model = small_net().eval()
    first = plan_of(model, KEEP)
    between = apply_plan(model, first, image_chw=IMAGE)
    second = plan_of(between, {"first": (1, 2), "third": (0, 4, 9)})
    joint = first.then(second)
    assert joint.keep == {"first": (2, 5), "second": KEEP["second"], "third": (0, 4, 9)}
    images = torch.randn(2, *IMAGE)
    at_once = apply_plan(model, joint, image_chw=IMAGE)
    torch.testing.assert_close(at_once(images), apply_plan(between, second, image_chw=IMAGE)(images))
    with pytest.raises(PruningError, match="a plan that removes bottlenecks cannot follow another one"):
        first.then(replace(second, bottlenecks=("model.2.m.0",)))
