"""Feature distillation: what the layers of a pruned network read follows what they read before the cut.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), let a student's features follow those
of its teacher through a learnt regression, since their channels mean different things. The channels of a pruned
network are channels of its teacher, so here each follows its own, in front of every layer, and nothing is learnt in
between. He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, refit layers one by one
to the same end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pruning.channels.graph import ChannelGraph
from pruning.surgery.plan import PruningPlan
from utils.errors import PruningError

# For a teacher whose layer reads zeros.
_LEAST_SQUARE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Followed:
    """Channels of a teacher that a pruned student has.

    Attributes:
        read: Indices among the channels that a layer of the teacher reads (n,), by path of the convolution or linear
            layer.
        strength: Weight of the distance.
    """

    read: Mapping[str, Tensor]
    strength: float

    @classmethod
    def of(
        cls,
        teacher: nn.Module,
        student: nn.Module,
        plan: PruningPlan,
        *,
        strength: float,
        image_chw: tuple[int, int, int] | None = None,
    ) -> Followed:
        """Find the channels by the plan of the cut.

        Args:
            teacher: Network that the plan was made for.
            student: Network that the plan left, or will leave: the channels that it drops may still be there.
            plan: Channels that are kept.
            strength: Weight of the distance, positive.
            image_chw: Image size, as in `ChannelGraph.of`.

        Raises:
            PruningError: The plan is of another teacher or leaves another student, or it removes bottlenecks, after
                which layers have other paths.
        """
        plan.check_fits(teacher)
        if plan.bottlenecks:
            raise PruningError("the plan removes bottlenecks, so layers have other paths; give --features 0")
        graph = ChannelGraph.of(teacher, image_chw=image_chw)
        own = ChannelGraph.of(student, image_chw=image_chw)
        dropped = plan.dropped_ids(teacher, graph)
        read = {}
        for name, layer in graph.layers.items():
            stays = np.flatnonzero(~np.isin(layer.input_ids, dropped))
            if name not in own.layers or len(own.layers[name].input_ids) not in (len(stays), len(layer.input_ids)):
                raise PruningError(
                    f"layer {name}: the plan lets it read {len(stays)} channels, the weights others; give the "
                    "plan of these weights"
                )
            if not layer.is_norm:
                read[name] = torch.from_numpy(stays)
        return cls(read=read, strength=strength)


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How much a student learns of its teacher.

    Attributes:
        answers: Weight of the teacher's outputs, at least 0.
        features: Weight of what the teacher's layers read, at least 0.
        plan: Cut that made the student of the teacher, or will; without it the student learns answers alone.
    """

    answers: float
    features: float = 0.0
    plan: PruningPlan | None = None

    def followed(
        self, teacher: nn.Module, student: nn.Module, *, image_chw: tuple[int, int, int] | None = None
    ) -> Followed | None:
        """Return the channels that the student follows, as `Followed.of`; None where it learns answers alone."""
        if self.plan is None or not self.features:
            return None
        return Followed.of(teacher, student, self.plan, strength=self.features, image_chw=image_chw)


class FeatureLoss:
    """Distance of what the layers of a student read from the same channels of its teacher.

    Per tensor that is read the mean squared difference, divided by the mean square of the teacher's channels; then
    the mean over tensors. A student that reads what its teacher reads has 0; one that reads zeros has 1.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, read: Mapping[str, Tensor]) -> None:
        """Watch both networks until `close`.

        Args:
            student: Network that trains; it is seen in training mode alone.
            teacher: Network that the student was pruned from.
            read: Channels to compare, as in `Followed`, on the device of both.
        """
        self._read = read
        self._own: dict[str, Tensor] = {}
        self._taught: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for name in read:
            own, taught = student.get_submodule(name), teacher.get_submodule(name)
            self._handles.append(own.register_forward_pre_hook(partial(_store_in_training, self._own, name)))
            self._handles.append(taught.register_forward_pre_hook(partial(_store, self._taught, name)))

    def __call__(self) -> Tensor:
        """Compare what the layers of both have read since the last call, and forget it."""
        # Several layers read one tensor; nobody learns from the image.
        tensors = {id(own): (own, self._taught[name], self._read[name]) for name, own in self._own.items()}
        distances = [_distance(*tensor) for tensor in tensors.values() if tensor[0].requires_grad]
        self._own.clear()
        self._taught.clear()
        return torch.stack(distances).mean()

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()


def _store(store: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    # Channels are the last dimension of what a linear layer reads, perhaps of many positions.
    store[name] = inputs[0].movedim(-1, 1) if isinstance(layer, nn.Linear) else inputs[0]


def _store_in_training(store: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    if layer.training:
        _store(store, name, layer, inputs)


def _distance(own: Tensor, taught: Tensor, channels: Tensor) -> Tensor:
    taught = taught.index_select(1, channels).float()
    if own.shape[1] != len(channels):  # the channels to drop are still there
        own = own.index_select(1, channels)
    return F.mse_loss(own.float(), taught) / (taught.square().mean() + _LEAST_SQUARE)
