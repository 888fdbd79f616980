"""Where export.py writes, and what it refuses before anything is written."""

from __future__ import annotations

from pathlib import Path

from commands.export_config import ExportConfig
from deploy.artefact.packages import optional_package
from deploy.formats import FORMATS, check_precision
from deploy.onnx.graph import check_opset
from utils.errors import ConfigError
from utils.storage.files import check_writable


def artefact_path(config: ExportConfig, name: str) -> Path:
    """Where the artefact of a format is written: best.onnx, best_int8_ncnn_model, ..."""
    suffix = "" if config.precision == "fp32" else f"_{config.precision}"
    return config.folder / f"{Path(config.weights).stem}{suffix}{FORMATS[name].suffix}"


def nms_path(config: ExportConfig) -> Path:
    """Where the ONNX file goes that gives boxes."""
    return config.folder / f"{Path(config.weights).stem}_nms{FORMATS['onnx'].suffix}"


def check_formats(config: ExportConfig) -> None:
    """Refuse what cannot be had, before anything is written.

    Raises:
        ConfigError: Names the format that is not to be had in the precision, the package that is not installed, the
            opset that lacks what is needed, the folder that cannot be written to, or the artefact that --verify-only
            does not find.
    """
    for name in config.include:
        check_precision(name, config.precision)
        for package in FORMATS[name].packages:
            optional_package(package, purpose=f"--include {name}")
        if _is_by_onnx(name):
            check_opset(config.opset, is_int8=config.int8)
    paths = [*(artefact_path(config, name) for name in config.include), *([nms_path(config)] if config.nms else [])]
    missing = [path for path in paths if not path.exists()]
    if not config.verify_only:
        check_writable(config.folder)
    elif missing:
        raise ConfigError(f"{missing[0]} does not exist; leave --verify-only out to write it")


def ignored_settings(config: ExportConfig) -> dict[str, tuple[str, ...]]:
    """Names of the settings that change nothing beside the others, by reason."""
    formats = " ".join(config.include)
    return {
        f"--include {formats}": () if any(map(_is_by_onnx, config.include)) else ("opset",),
        "without --include tensorrt": () if "tensorrt" in config.include else ("compute_capability",),
        "without --int8": () if config.int8 else ("calib_images", "calib_method"),
        "without --nms": () if config.nms else ("conf_thres", "iou_thres", "max_det"),
    }


def _is_by_onnx(name: str) -> bool:
    """Whether files of the format are made from an ONNX graph."""
    return "onnx" in FORMATS[name].packages
