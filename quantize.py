"""Quantise a detector or a classifier to integers, measure it, and write it as an artefact."""

from __future__ import annotations

from commands.quantize_config import QuantizeConfig
from utils.config.cli import RESUME_LATEST, run_script

if __name__ == "__main__":
    run_script("commands.quantize:run_quantization", QuantizeConfig, bare={"--resume": RESUME_LATEST})
