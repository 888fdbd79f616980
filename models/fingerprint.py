"""Fingerprint of a network, by which a plan or a quantised file names the network that it belongs to."""

from __future__ import annotations

import hashlib
import json

from torch import nn


def network_fingerprint(model: nn.Module) -> str:
    """Return SHA-256 over the names and shapes of the state dict: equal for one architecture and size."""
    shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()
