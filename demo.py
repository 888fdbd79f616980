"""The whole line on the bundled blood cells: train, train sparse, prune, fine-tune, export to ncnn, compare, time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from commands.export import run_export
from commands.export_config import ExportConfig
from commands.slim import run_slimming
from commands.slim_config import SlimConfig
from commands.slim_report import StageResult
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from deploy.formats import load_detector
from deploy.settings import RuntimeOptions
from deploy.verification.latency import Latency, measure_latencies
from models.load import load_model
from pruning.surgery.report import NetworkSize
from utils.config.cli import run_script
from utils.storage.run_folder import RunFolder

logger = logging.getLogger(__name__)

_IMG_SIZE = 320


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """From bundled pictures to a verified ncnn model, in minutes on two cores."""

    cfg: str = "yolov5n.yaml"  # architecture YAML, trained from scratch
    data: str = "data/bccd.yaml"  # data set YAML
    epochs: int = 36  # of the dense network
    sparse_epochs: int = 8  # with channels drawn to zero
    finetune_epochs: int = 22  # of the pruned network, the sparse one as teacher
    target: str = "macs=50%"  # what is left of the network
    project: str = "runs/demo"  # where run folders are made
    name: str = "exp"  # name of the run folder


def demo(config: DemoConfig) -> bool:
    """Run every stage and show one table.

    Returns:
        Whether the exported network passed its verification.
    """
    folder = RunFolder.create(project=config.project, name=config.name)
    shared: dict[str, Any] = {
        "data": config.data,
        "img_size": (_IMG_SIZE,),
        "batch_size": 16,
        "nominal_batch": 16,  # a few hundred pictures need small steps, and many of them
        "cache_images": True,
        "project": str(folder.path),
    }
    trained = run_training(
        TrainConfig(cfg=config.cfg, epochs=config.epochs, optimizer="adamw", lr0=0.003, name="dense", **shared)
    )
    assert trained is not None, "one process returns its result"
    dense = _dense_row(trained)
    slimmed = run_slimming(
        SlimConfig(
            stages=("sparse", "prune", "finetune"),
            weights=str(dense.weights),
            epochs=config.sparse_epochs,
            finetune_epochs=config.finetune_epochs,
            target=config.target,
            sr=0.005,
            scale_rate=20,
            beta_ratio=0,
            aim=0.5,
            distill=1,
            hyp="data/hyp/cells.yaml",
            name="slim",
            **shared,
        )
    )
    assert slimmed is not None, "one process returns its result"
    return _ship([dense, *slimmed.stages], config, folder)


def _dense_row(trained: TrainResult) -> StageResult:
    model = load_model(trained.best).model
    size = NetworkSize.of(model, (3, _IMG_SIZE, _IMG_SIZE))
    return StageResult(
        stage="dense",
        weights=trained.best,
        scores=trained.evaluation.headline,
        parameters=size.parameters,
        macs=size.macs,
        megabytes=size.megabytes,
    )


def _ship(rows: Sequence[StageResult], config: DemoConfig, folder: RunFolder) -> bool:
    """Export the first and the last network, compare, time and report."""
    passed, paths = True, []
    for row in (rows[0], rows[-1]):
        output = folder.path / "ncnn" / ("dense" if row is rows[0] else "small")
        passed &= run_export(
            ExportConfig(
                weights=str(row.weights),
                img_size=(_IMG_SIZE,),
                data=config.data,
                threads=1,
                output=str(output),
                project=str(output),
                name="report",
            )
        )
        paths.append(output / f"{row.weights.stem}_ncnn_model")
    options = RuntimeOptions(threads=1)
    runtimes = [load_detector(path, device=torch.device("cpu"), options=options) for path in paths]
    image = torch.rand(1, 3, _IMG_SIZE, _IMG_SIZE)
    before, after = measure_latencies(runtimes, image, threads=1, runs=20)
    # Training sparse changes no width, nor does fine-tuning.
    times = {rows[0].macs: before, rows[-1].macs: after}
    data = [{**row.to_dict(), "ncnn_ms": times[row.macs].fastest} for row in rows]
    folder.write_result({"stages": data, "passed": passed, "ncnn": str(paths[-1])})
    logger.info("%s", _table(rows, times))
    logger.info("pictures and curves: %s/*, %s/slim/round1/*", folder.path / "dense", folder.path)
    logger.info("TensorBoard: .venv/bin/tensorboard --logdir %s", folder.path)
    logger.info("for the phone: %s (its README.md has the C++ and Python lines)", paths[-1])
    return passed


def _table(rows: Sequence[StageResult], times: dict[int, Latency]) -> str:
    """List each stage, a line each; times belong to networks of equal MACs."""
    lines = [f"{'stage':<16} {'mAP50':>6} {'mAP':>6} {'parameters':>11} {'MACs G':>7} {'MB':>6} {'ncnn ms':>8}"]
    for row in rows:
        scores = f"{row.scores['AP50']:6.3f} {row.scores['AP']:6.3f}"
        lines.append(
            f"{row.stage:<16} {scores} {row.parameters:11,d} {row.macs / 1e9:7.3f} "
            f"{row.megabytes:6.2f} {times[row.macs].fastest:8.1f}"
        )
    return "\n".join([*lines, "ncnn ms: fastest call, fp32, one thread; mAP: 50-95, on val"])


if __name__ == "__main__":
    run_script(demo, DemoConfig)
