"""Allowed values of settings; this module imports nothing heavy, so that command lines respond at once."""

from __future__ import annotations

from typing import Literal

Amp = Literal["auto", "bf16", "fp16", "off"]
Augment = Literal["none", "crop", "crop-flip", "resized-crop"]
Engine = Literal["faster", "pycocotools"]
