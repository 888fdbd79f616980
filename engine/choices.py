"""Names that settings choose from; imports nothing heavy, so that command lines answer at once."""

from __future__ import annotations

from typing import Literal

OptimizerName = Literal["sgd", "adam", "adamw", "ranger"]
ScheduleName = Literal["cosine", "linear", "multistep", "flat"]
