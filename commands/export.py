"""export.py: write each format, compare it with the network, report which files are fit to ship."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from commands.export_config import ExportConfig
from commands.quantize_training import trained_network
from deploy.artefact.packages import optional_package
from deploy.formats import FORMATS, check_precision, load_runtime, resolve
from deploy.int8.mixes import Int8Mix
from deploy.job import ExportJob
from deploy.latency.side_by_side import SideBySide, time_side_by_side
from deploy.layer_errors import LAYERS_NAME, write_layer_errors
from deploy.onnx.graph import check_opset
from deploy.onnx.nms import NmsReport, NmsSettings, check_nms, write_onnx_with_nms
from deploy.outputs.metadata import check_is_of
from deploy.settings import FormatSettings, RuntimeOptions
from deploy.verification.verify import MeasureMetric, Reference, VerifyReport, report_data, verify, verify_table
from engine.evaluation.evaluator import Evaluator
from quantization.layer_errors import LayerError
from tasks.choose import task_of
from tasks.measuring import open_evaluator
from tasks.settings import TaskSettings
from tasks.task import Task
from utils.config.values import warn_of_ignored
from utils.errors import ConfigError
from utils.storage.files import check_writable
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)

# Images per step when the metric is measured.
_VAL_BATCH = 32


def run_export(config: ExportConfig) -> bool:
    """Export a detector or classifier, verify, write the run folder.

    Returns:
        Whether every artefact that can run here is within its tolerance.

    Raises:
        ConfigError, CheckpointError, DataError: Settings, weights or data do not fit; no incomplete file is left.
    """
    check_writable(config.project)
    task, config = _for_its_task(config)
    check_export(config)
    warn_of_ignored(config, _ignored_settings(config))
    prepared = _prepared(task, config)
    reference = prepared.reference(config)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    reports: list[VerifyReport] = []
    not_run: list[str] = []
    mixes: list[Int8Mix] = []
    for name in config.include:
        path = _written(name, replace(prepared.job, tell_mix=mixes.append), config, folder.path)
        if FORMATS[name].needs_gpu and not torch.cuda.is_available():
            logger.warning("%s: built, but not run and so not verified: this machine has no GPU", path)
            not_run.append(str(path))
        else:
            reports.append(_verified(name, path, reference, config))
    with_nms = _with_nms(prepared, config, reference) if config.nms else None
    beside = [_beside(prepared.beside, report, reference, config) for report in reports if prepared.beside]
    passed = all(report.passed for report in reports) and (with_nms is None or with_nms.passed)
    data = [report_data(report) for report in reports]
    result = {"passed": passed, "reports": data, "not_run": not_run, "nms": plain(with_nms)}
    result["int8_budget"] = [mix.to_dict() for mix in mixes]
    result["beside"] = [timed.to_dict() for timed in beside]
    folder.write_result({**result, "config": plain(config)})
    if reports:
        logger.info("%s", verify_table(reports))
    if with_nms:
        logger.info("%s", with_nms.as_text())
    for line in (*(mix.as_text() for mix in mixes), *(timed.as_text() for timed in beside)):
        logger.info("%s", line)
    logger.info("files in %s, report in %s", config.folder, folder.path / "result.json")
    return passed


def _written(name: str, job: ExportJob, config: ExportConfig, folder: Path) -> Path:
    """Write an artefact, unless --verify-only, and return its path; into the run folder goes what int8 costs."""
    path = artefact_path(config, name)

    def tell(errors: Sequence[LayerError]) -> None:
        logger.info("%s", write_layer_errors(errors, folder, name=f"{LAYERS_NAME}_{name}"))

    if not config.verify_only:
        start = time.perf_counter()
        resolve(FORMATS[name].write)(replace(job, tell=tell), path)
        logger.info("%s: written in %.1f s", path, time.perf_counter() - start)
    return path


def _verified(name: str, path: Path, reference: Reference, config: ExportConfig) -> VerifyReport:
    """Load an artefact, and compare it with the network."""
    device = torch.device("cuda" if FORMATS[name].needs_gpu else "cpu")
    artefact = load_runtime(path, device=device, options=RuntimeOptions(threads=config.threads))
    check_is_of(artefact.metadata, reference.source, where=path)
    return verify(artefact, reference, path=path, batch_size=config.batch_size)


def _beside(other: ExportJob, report: VerifyReport, reference: Reference, config: ExportConfig) -> SideBySide:
    """Time the network of `--beside` in turns with an artefact."""
    images = reference.images[:1].expand(config.batch_size, -1, -1, -1)
    options = RuntimeOptions(threads=config.threads)
    return time_side_by_side(report.path, other, images, weights=Path(config.beside), options=options)


def _with_nms(prepared: _Prepared, config: ExportConfig, reference: Reference) -> NmsReport:
    """Write the ONNX file that gives boxes, and run it."""
    nms = NmsSettings(conf=config.conf_thres, iou=config.iou_thres, max_det=config.max_det)
    path = _nms_path(config)
    if not config.verify_only:
        write_onnx_with_nms(prepared.job, path, nms=nms)
        logger.info("%s: written", path)
    return check_nms(path, reference, nms=nms, batch_size=config.batch_size)


def artefact_path(config: ExportConfig, name: str) -> Path:
    """Return the path of the artefact of a format: best.onnx, best_int8_ncnn_model, ..."""
    suffix = "" if config.precision == "fp32" else f"_{config.precision}"
    return config.folder / f"{Path(config.weights).stem}{suffix}{FORMATS[name].suffix}"


def _nms_path(config: ExportConfig) -> Path:
    """Return the path of the ONNX file that returns boxes."""
    return config.folder / f"{Path(config.weights).stem}_nms{FORMATS['onnx'].suffix}"


def check_export(config: ExportConfig) -> None:
    """Refuse unsupported settings before anything is written.

    Raises:
        ConfigError: A format is not written in the precision, a package is not installed, the opset lacks what int8
            needs, the folder is not writable, or --verify-only does not find an artefact.
    """
    for name in config.include:
        check_precision(name, config.precision)
        for package in FORMATS[name].packages:
            optional_package(package, purpose=f"--include {name}")
        if _is_by_onnx(name):
            check_opset(config.opset, is_int8=config.int8)
    paths = [*(artefact_path(config, name) for name in config.include), *([_nms_path(config)] if config.nms else [])]
    missing = [path for path in paths if not path.exists()]
    if not config.verify_only:
        check_writable(config.folder)
    elif missing:
        raise ConfigError(f"{missing[0]} does not exist; leave --verify-only out to write it")


def _ignored_settings(config: ExportConfig) -> dict[str, tuple[str, ...]]:
    """Return the names of the settings that change nothing beside the others, by reason."""
    formats = " ".join(config.include)
    return {
        f"--include {formats}": () if any(map(_is_by_onnx, config.include)) else ("opset",),
        "without --include tensorrt": () if "tensorrt" in config.include else ("compute_capability",),
        "without --int8": () if config.int8 else ("calib_images", "calib_method"),
        "--verify-only writes nothing": ("int8_budget",) if config.verify_only else (),
        "without --nms": () if config.nms else ("conf_thres", "iou_thres", "max_det"),
    }


def _is_by_onnx(name: str) -> bool:
    """Return whether files of the format are made from an ONNX graph."""
    return "onnx" in FORMATS[name].packages


@dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    """A network to export.

    Attributes:
        job: The network with its settings.
        images: Images (B, C, H, W) in the form of network input to compare its artefacts on.
        beside: Another network to time beside its artefacts; None if there is none.
    """

    job: ExportJob
    images: Tensor
    beside: ExportJob | None = None

    def reference(self, config: ExportConfig) -> Reference:
        """Return the network that artefacts are compared with."""
        if config.threads:
            torch.set_num_threads(config.threads)
        return Reference(
            path=Path(config.weights),
            source=self.job.source,
            images=self.images,
            threads=torch.get_num_threads(),
            measure=self.job.measure,
        )


def _for_its_task(config: ExportConfig) -> tuple[Task, ExportConfig]:
    """Return the task, and the settings without those that mean nothing to it, after a warning that names them."""
    task = task_of(data=config.data, weights=config.weights)
    warn_of_ignored(config, {f"{task.name} does not use them": task.ignored_later})
    defaults: dict[str, Any] = {item.name: item.default for item in fields(config)}
    return task, replace(config, **{name: defaults[name] for name in task.ignored_later if name in defaults})


def _prepared(task: Task, config: ExportConfig) -> _Prepared:
    """Read the weights and the images.

    Raises:
        CheckpointError, ConfigError, DataError: Weights or data cannot be read, or do not fit each other.
    """
    network, device = task.load(config.weights), torch.device("cpu")
    image_chw = task.input_chw(network, config.image_hw)
    settings = TaskSettings(
        weights=config.weights,
        data=config.data,
        img_size=(max(config.image_hw),),
        batch_size=_VAL_BATCH,
        workers=config.workers,
        cache_dir=config.cache_dir,
    )
    evaluator = open_evaluator(task, settings, network, device=device) if config.data else None
    source = task.source(network, path=config.weights)
    calibration: tuple[Tensor, ...] = ()
    rounded = None
    if config.int8_trained and not config.verify_only:
        trained, runtime = Path(config.int8_trained), config.include[0]
        rounded = trained_network(
            trained, runtime=runtime, task=task, network=network, source=source, image_chw=image_chw
        )
    elif config.int8 and not config.verify_only:
        batches = task.calibration(settings, network, count=config.calib_images, image_chw=image_chw)
        calibration = torch.split(torch.cat(batches), 1)
    job = ExportJob(
        source=source,
        settings=config.settings,
        calibration=calibration,
        special=config.special,
        rounded=rounded,
        measure=_metric(evaluator) if evaluator else None,
    )
    images = task.examples(settings, network, count=config.verify_images, image_chw=image_chw)
    return _Prepared(
        job=job, images=images, beside=_network_beside(task, config, image_chw) if config.beside else None
    )


def _network_beside(task: Task, config: ExportConfig, image_chw: tuple[int, int, int]) -> ExportJob:
    """Read the network that is timed beside the files; it takes the same images.

    Raises:
        CheckpointError: It cannot be read.
        ConfigError: It is of another task, or takes other images.
    """
    own = task_of(weights=config.beside)
    if own.name != task.name:
        raise ConfigError(
            f"--beside {config.beside} is for {own.name}, --weights {config.weights} for {task.name}; "
            "give two networks of one task"
        )
    network = task.load(config.beside)
    if (chw := task.input_chw(network, config.image_hw)) != image_chw:
        sizes = ["x".join(map(str, size)) for size in (chw, image_chw)]
        raise ConfigError(
            f"--beside {config.beside} takes images of {sizes[0]}, --weights {config.weights} of {sizes[1]}; times "
            "compare on the same images alone"
        )
    special = FormatSettings(compute_capability=config.compute_capability)
    return ExportJob(source=task.source(network, path=config.beside), settings=config.settings, special=special)


def _metric(evaluator: Evaluator) -> MeasureMetric:
    """Return a function that measures a runtime; that of the network is measured once for each size."""

    def score(runtime: Any, frame_hw: tuple[int, int] | None) -> float:
        return replace(evaluator, data=evaluator.data.framed(frame_hw)).evaluate(runtime).score

    return cast("MeasureMetric", cache(score))
