"""--evolve: search hyper-parameters over many trainings, through Optuna, resumable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import optuna

from commands.train_config import TrainConfig
from commands.train_recipe import read_hyp, settled
from commands.train_result import TrainResult
from tasks.choose import task_of
from utils.config.hyp import Hyp
from utils.errors import ConfigError, TrainingError
from utils.storage.files import write_json, write_yaml
from utils.storage.run_folder import plain

LOGGER = logging.getLogger(__name__)

RunTraining: TypeAlias = Callable[[TrainConfig], TrainResult | None]


# Range of each hyper-parameter, and whether its order of magnitude is what matters. Ranges as in v5.0's search.
SEARCH_SPACE: dict[str, tuple[float, float, bool]] = {
    "lr0": (1e-5, 1e-1, True),
    "lrf": (0.01, 1.0, True),
    "momentum": (0.6, 0.98, False),
    "weight_decay": (1e-6, 1e-3, True),
    "warmup_epochs": (0.0, 5.0, False),
    "warmup_momentum": (0.0, 0.95, False),
    "warmup_bias_lr": (0.0, 0.2, False),
    "box": (0.02, 0.2, False),
    "cls": (0.2, 4.0, False),
    "cls_pw": (0.5, 2.0, False),
    "obj": (0.2, 4.0, False),
    "obj_pw": (0.5, 2.0, False),
    "anchor_t": (2.0, 8.0, False),
    "fl_gamma": (0.0, 2.0, False),
    "hsv_h": (0.0, 0.1, False),
    "hsv_s": (0.0, 0.9, False),
    "hsv_v": (0.0, 0.9, False),
    "degrees": (0.0, 45.0, False),
    "translate": (0.0, 0.9, False),
    "scale": (0.0, 0.9, False),
    "shear": (0.0, 10.0, False),
    "perspective": (0.0, 0.001, False),
    "flipud": (0.0, 1.0, False),
    "fliplr": (0.0, 1.0, False),
    "mosaic": (0.0, 1.0, False),
    "mixup": (0.0, 1.0, False),
}


# Settings without which the scores of two trainings cannot be compared, and their flags.
_COMPARED = {
    **{"optimizer_name": "optimizer", "epochs": "epochs", "img_size": "img-size"},
    **{"data": "data", "weights": "weights", "cfg": "cfg"},
}


def run_evolution(config: TrainConfig, *, run: RunTraining) -> Path:
    """Train `config.evolve` times with hyper-parameters that Optuna proposes, starting from those of `--hyp`.

    The study lies in `<project>/evolve/study.db`; the same command continues where it was stopped. One with another
    optimiser, data set, network, size or number of epochs is refused: its trainings cannot be compared with those.

    Args:
        config: Settings of each training, and their number.
        run: Function that runs one training.

    Returns:
        The YAML of the best hyper-parameters so far.

    Raises:
        ConfigError: The folder cannot be made, or its study is of other trainings.
    """
    folder = Path(config.project) / "evolve"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}; choose another --project") from error
    task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
    recipe, images = task.recipe, len(task.read_data(config).train)
    _, start = settled(config, read_hyp(config, recipe), recipe, images=images)
    spaces = {name: SEARCH_SPACE[name] for name in recipe.searched}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="evolve",
        storage=f"sqlite:///{folder / 'study.db'}",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=config.seed),
    )
    _check_comparable(study, config, folder)
    if not study.trials:
        study.enqueue_trial(
            {name: min(max(getattr(start, name), low), high) for name, (low, high, _) in spaces.items()}
        )
    finished = sum(trial.state.is_finished() for trial in study.trials)
    LOGGER.info("evolve: %d of %d trainings are done; study in %s", finished, config.evolve, folder)

    def objective(trial: optuna.Trial) -> float:
        return _train_once(trial, start, config, folder, spaces=spaces, run=run)

    def report(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        _write_best(study, start, folder)

    study.optimize(objective, n_trials=max(0, config.evolve - finished), callbacks=[report])
    return _write_best(study, start, folder)


def _check_comparable(study: optuna.Study, config: TrainConfig, folder: Path) -> None:
    """Keep with a new study the settings that all its trainings share, and refuse others in one that exists."""
    own = {name: plain(getattr(config, name)) for name in _COMPARED}
    kept = study.user_attrs.get("settings")
    if kept is None:
        study.set_user_attr("settings", own)
        return
    for name, flag in _COMPARED.items():
        if own[name] != kept[name]:
            raise ConfigError(
                f"--{flag} {own[name]}: the trainings in {folder} had {kept[name]}, and their scores cannot be "
                "compared; give another --project"
            )


def _train_once(
    trial: optuna.Trial,
    start: Hyp,
    config: TrainConfig,
    folder: Path,
    *,
    spaces: Mapping[str, tuple[float, float, bool]],
    run: RunTraining,
) -> float:
    """Fitness of one training with proposed hyper-parameters; one that diverges is worth nothing."""
    proposed = {
        name: trial.suggest_float(name, low, high, log=is_log) for name, (low, high, is_log) in spaces.items()
    }
    hyp_path = folder / f"trial{trial.number}.yaml"
    write_yaml(hyp_path, replace(start, **proposed).to_dict())
    settings = replace(
        config,
        evolve=0,
        hyp=str(hyp_path),
        lrf=None,
        momentum=None,
        weight_decay=None,
        warmup_epochs=None,
        label_smoothing=None,
        lr0=proposed["lr0"],
        project=str(folder),
        name=f"trial{trial.number}",
        exist_ok=True,
        noplots=True,
        nosave=True,
        notest=True,
    )
    try:
        result = run(settings)
    except TrainingError as error:
        LOGGER.warning("trial %d: %s", trial.number, error)
        return 0.0
    return 0.0 if result is None else result.evaluation.fitness


def _write_best(study: optuna.Study, start: Hyp, folder: Path) -> Path:
    path = folder / "hyp_evolved.yaml"
    write_yaml(path, replace(start, **study.best_params).to_dict())
    trials = [{"number": trial.number, "fitness": trial.value, **trial.params} for trial in study.trials]
    write_json(
        folder / "result.json", {"best": study.best_trial.number, "fitness": study.best_value, "trials": trials}
    )
    LOGGER.info("evolve: best fitness %.4f in trial %d; %s", study.best_value, study.best_trial.number, path)
    return path
