"""Runtimes that serve a trained detector or classifier, and the three-line Python API.

from deploy import load
model = load("best.pt")
detections = model("image.jpg")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.artefact.runtime import RuntimeModel
    from deploy.formats import FORMATS, Format, load_classifier, load_detector, load_runtime
    from deploy.predictor import Predictor, PredictSettings, load

__all__ = [
    "FORMATS",
    "Format",
    "PredictSettings",
    "Predictor",
    "RuntimeModel",
    "load",
    "load_classifier",
    "load_detector",
    "load_runtime",
]

_HOMES = {
    **dict.fromkeys(("Predictor", "PredictSettings", "load"), "deploy.predictor"),
    **dict.fromkeys(("FORMATS", "Format", "load_classifier", "load_detector", "load_runtime"), "deploy.formats"),
    "RuntimeModel": "deploy.artefact.runtime",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that settings in this package do not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
