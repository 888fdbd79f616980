"""Export a detector or a classifier to ncnn, ONNX, OpenVINO, TensorRT or TorchScript; compare it with the network."""

from __future__ import annotations

from commands.export_config import ExportConfig
from utils.config.cli import run_script

if __name__ == "__main__":
    run_script("commands.export:run_export", ExportConfig)
