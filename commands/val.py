"""Measure networks and exported artefacts on a data set: scores, curves, confusion matrix, sample images, speed."""

from __future__ import annotations

import logging

from commands.val_config import ValConfig
from deploy.settings import RuntimeOptions
from engine.evaluation.evaluator import Evaluation, Evaluator, speed_line
from engine.evaluation.study import run_study
from tasks.choose import task_of
from utils.config.values import warn_of_ignored
from utils.device import select_device
from utils.errors import CheckpointError
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)


def val(config: ValConfig) -> Evaluation | None:
    """Measure, write the run folder and log the table; a study gives its numbers only as files."""
    task, device = task_of(data=config.data), select_device(config.device)
    warn_of_ignored(config, {f"{task.name} does not use them": task.ignored_later})
    options = RuntimeOptions(half=config.half, threads=config.threads, powersave=config.powersave)
    runtimes = [task.load_runtime(path, device=device, options=options) for path in config.weights]
    evaluator = Evaluator(data=task.validation(config, runtimes), device=device)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    if config.task == "study":
        points = run_study(evaluator, runtimes, sizes=config.study_sizes, folder=folder.path)
        folder.write_result({"study": [plain(point) for point in points], "config": plain(config)})
        logger.info("results in %s", folder.path / "study.csv")
        return None
    evaluation = evaluator.evaluate(runtimes, on_batch=task.batch_files(config, evaluator.data, folder.path))
    if not evaluation.is_finite:
        raise CheckpointError(
            f"{config.weights[0]} gives outputs that are NaN or infinite; train it again, or give another file"
        )
    folder.write_result({"split": config.split, **evaluation.to_dict(), "config": plain(config)})
    evaluation.save(folder.path)
    logger.info("%s", evaluation.as_text(is_verbose=config.verbose))
    logger.info("%s\nresults in %s", speed_line(evaluation), folder.path)
    return evaluation
