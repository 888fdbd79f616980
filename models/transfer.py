"""Transfer of weights to a network that differs in part from the one that they were trained in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.blocks.head import Detect
from models.detector import Detector

# x, y, w, h and objectness: the outputs of an anchor that do not depend on the classes.
_BOX_OUTPUTS = 5


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """A summary of which tensors were transferred.

    Attributes:
        loaded: Number of tensors of the network that were filled completely.
        total: Number of tensors of the network.
        partial: Names of head tensors whose box and objectness rows alone were filled.
        skipped: Names of tensors of the network that were not filled at all, with the reason.
    """

    loaded: int
    total: int
    partial: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def as_text(self) -> str:
        """Return the report as one line for the log."""
        text = f"loaded {self.loaded} of {self.total} tensors"
        if self.partial:
            text += f", box and objectness rows of {len(self.partial)} (the class count differs)"
        if self.skipped:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            more = len(self.skipped) - 3
            text += f"; not loaded {len(self.skipped)}: {shown}" + (f"; and {more} more" if more > 0 else "")
        return text


def transfer_weights_(model: Detector, state: Mapping[str, Tensor]) -> TransferReport:
    """Fill `model` with the tensors of `state` that fit by name and shape.

    Where only the class count differs, the box and objectness rows of the head are filled. Anchors belong to the
    spec and are not changed.

    Args:
        model: Network, changed in place.
        state: Tensors of another network by name.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.endswith(".anchors")}
    loaded, partial, skipped = 0, [], []
    head_prefix = f"model.{len(model.model) - 1}.m."
    with torch.no_grad():
        for name, target in own.items():
            source = state.get(name)
            if source is None:
                skipped.append((name, "not in the weights"))
            elif source.shape == target.shape:
                target.copy_(source)
                loaded += 1
            elif name.startswith(head_prefix) and _copy_box_rows(target, source, head=model.head):
                partial.append(name)
            else:
                skipped.append((name, f"{tuple(source.shape)} in the weights, {tuple(target.shape)} here"))
    return TransferReport(loaded=loaded, total=len(own), partial=tuple(partial), skipped=tuple(skipped))


def _copy_box_rows(target: Tensor, source: Tensor, *, head: Detect) -> bool:
    """Copy the rows of each anchor that do not depend on classes; False where the shapes do not allow it."""
    num_anchors = head.num_anchors
    if source.shape[1:] != target.shape[1:] or len(source) % num_anchors or len(source) <= 5 * num_anchors:
        return False
    rows = source.view(num_anchors, -1, *source.shape[1:])[:, :_BOX_OUTPUTS]
    target.view(num_anchors, -1, *target.shape[1:])[:, :_BOX_OUTPUTS] = rows
    return True
