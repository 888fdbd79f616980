"""Runtimes that serve a trained detector, and the three-line Python API.

from deploy import load
model = load("best.pt")
detections = model("picture.jpg")
"""

from deploy.predictor import Predictor, PredictSettings, load
from deploy.registry import RUNTIMES, load_runtime
from deploy.runtime import RuntimeModel

__all__ = ["RUNTIMES", "PredictSettings", "Predictor", "RuntimeModel", "load", "load_runtime"]
