"""Quantise a detector or a classifier to integers, measure it, and write it as an artefact."""

from __future__ import annotations

from deploy.integer.quantize_config import QuantizeConfig
from deploy.integer.quantize_run import run_quantization
from utils.cli import run_script

if __name__ == "__main__":
    run_script(run_quantization, QuantizeConfig)
