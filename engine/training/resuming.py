"""Restores a run from a checkpoint, after checking that every part of it fits."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.training.ema import Ema
from engine.training.optim import STATE_ENTRIES
from engine.training.trainer import Trainer
from utils.errors import CheckpointError
from utils.storage.checkpoint import Checkpoint

# The only entry of an optimiser's state that does not have its parameter's shape: a count, as a scalar tensor.
_STEP = "step"
_LOOP_STATE: dict[str, type | tuple[type, ...]] = {
    "best_fitness": (float, int),
    "best_epoch": int,
    "scaler": dict,
    "hooks": dict,
}
_MAX_NAME = 80


def load_weights_(model: nn.Module, checkpoint: Checkpoint, *, where: str) -> None:
    """Load the trained (not the averaged) weights into `model`.

    Args:
        model: Network built from the checkpoint's spec.
        checkpoint: Checkpoint as read from its file.
        where: Name of the file, for messages.

    Raises:
        CheckpointError: A tensor is missing, surplus or of another shape.
    """
    with _naming_file(where):
        _check_weights(checkpoint.weights, model, what="weights")
    model.load_state_dict(checkpoint.weights)


def resume_(trainer: Trainer, checkpoint: Checkpoint, *, where: str, ema: Ema | None = None) -> None:
    """Restore the optimiser state, averages and counters of a checkpoint in a Trainer that has its hooks.

    Args:
        trainer: Trainer built from the checkpoint's settings; its model already has the weights.
        checkpoint: Checkpoint as read from a file that training wrote.
        where: Name of the file, for messages.
        ema: Averaged weights to restore.

    Raises:
        CheckpointError: A part does not fit the network or the optimiser; nothing was changed then.
    """
    with _naming_file(where):
        state = _checked_optimizer(checkpoint.optimizer, trainer)
        _check_loop(checkpoint.training_state, trainer)
        if ema is not None:
            _check_weights(checkpoint.ema or {}, ema.model, what="ema")
    # The groups' settings come from the run; the file contains only a copy of them.
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if ema is not None:
        ema.restore_(checkpoint.ema or {}, checkpoint.ema_updates)
    trainer.restore(checkpoint.training_state, epoch=checkpoint.epoch)


class _Misfit(ValueError):
    """A part of a checkpoint that does not fit, with what was expected."""


@contextmanager
def _naming_file(where: str) -> Iterator[None]:
    try:
        yield
    except _Misfit as error:
        raise CheckpointError(
            f"weights {where} cannot be resumed: {error}; use an undamaged copy, or train on with --weights {where}"
        ) from error


def _check_loop(state: Mapping[str, Any], trainer: Trainer) -> None:
    for name, kind in _LOOP_STATE.items():
        if not isinstance(state.get(name), kind):
            raise _Misfit(f"training_state lacks a valid {name!r}")
    for name in trainer.scaler.state_dict():
        if not isinstance(state["scaler"].get(name), float | int):
            raise _Misfit(f"training_state: the scaler of fp16 lacks a valid {name!r}")


def _check_weights(given: Mapping[str, Tensor], model: nn.Module, *, what: str) -> None:
    """Check the names and shapes of all tensors against the model's."""
    expected = model.state_dict()
    for name in [*expected, *given]:
        if name not in given or name not in expected:
            raise _Misfit(f"{what} {_lacks_or_has(name, expected)}")
        if given[name].shape != expected[name].shape:
            shapes = f"{tuple(given[name].shape)}, expected {tuple(expected[name].shape)}"
            raise _Misfit(f"{what} {name!r} has shape {shapes}")


def _lacks_or_has(name: object, expected: Container[object]) -> str:
    return f"{'lacks' if name in expected else 'has a surplus'} {str(name)[:_MAX_NAME]!r}"


def _checked_optimizer(stored: Any, trainer: Trainer) -> dict[int, dict[str, Tensor]]:
    """Return the optimiser state by position of the parameter, as torch stores it, after checking that it fits."""
    optimizer = trainer.optimizer
    if not isinstance(stored, dict) or not isinstance(stored.get("state"), dict):
        raise _Misfit("optimizer has no 'state'")
    _check_groups(stored.get("param_groups"), optimizer)
    state: dict[int, dict[str, Tensor]] = stored["state"]
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    surplus = [key for key in state if key not in range(len(parameters))]
    if surplus:
        raise _Misfit(f"optimizer state has a surplus {str(surplus[0])[:_MAX_NAME]!r}, which is no parameter")
    if all(isinstance(entries, dict) and not entries for entries in state.values()):  # no step was taken yet
        return {}
    for position, parameter in enumerate(parameters):
        what = f"optimizer state of {names[parameter]}"
        _check_entries(state.get(position), STATE_ENTRIES[type(optimizer)], parameter, what=what)
    return state


def _check_groups(stored: Any, optimizer: Optimizer) -> None:
    expected = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    if not isinstance(stored, list) or not all(isinstance(group, dict) for group in stored):
        raise _Misfit("optimizer has no 'param_groups'")
    if len(stored) != len(expected):
        raise _Misfit(f"optimizer has {len(stored)} groups of parameters, expected {len(expected)}")
    for number, (group, positions) in enumerate(zip(stored, expected, strict=True)):
        if group.get("params") != positions:
            raise _Misfit(f"optimizer group {number} lists other parameters than the network's {len(positions)}")


def _check_entries(entries: Any, expected: tuple[str, ...], parameter: Tensor, *, what: str) -> None:
    if not isinstance(entries, dict) or not entries:
        raise _Misfit(f"{what} is missing")
    for entry in [*expected, *entries]:
        if entry not in entries or entry not in expected:
            raise _Misfit(f"{what} {_lacks_or_has(entry, expected)}")
        value, is_step = entries[entry], entry == _STEP
        wanted = (torch.float32, ()) if is_step else (parameter.dtype, tuple(parameter.shape))
        given = (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else (type(value).__name__, ())
        if given != wanted:
            raise _Misfit(f"{what}: {entry} is {_words(*given)}, expected {_words(*wanted)}")


def _words(dtype: object, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {shape}"
