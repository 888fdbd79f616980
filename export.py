"""Export a detector to ncnn, ONNX, OpenVINO, TensorRT or TorchScript, and compare each file with the network."""

from __future__ import annotations

from deploy.export_config import ExportConfig
from deploy.export_run import run_export
from utils.cli import run_script

if __name__ == "__main__":
    run_script(run_export, ExportConfig)
