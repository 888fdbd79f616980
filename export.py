"""Export a detector or a classifier to ncnn, ONNX, OpenVINO, TensorRT or TorchScript; compare it with the network."""

from __future__ import annotations

from deploy.export_config import ExportConfig
from deploy.export_run import run_export
from utils.cli import run_script

if __name__ == "__main__":
    run_script(run_export, ExportConfig)
