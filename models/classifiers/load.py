"""Reader of classifier files: the network takes the widths of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from models.classifiers.libraries import layers_digest, library_version
from models.classifiers.registry import empty_classifier
from models.classifiers.spec import ClassifierSpec
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint, is_own_checkpoint, load_checkpoint
from utils.storage.weights_file import check_finite, check_weights_file, is_legacy, read_plain

# Layers whose attributes tell their widths.
_RESIZED = (_ConvNd, nn.Linear, _NormBase, nn.PReLU)


@dataclass(frozen=True, kw_only=True)
class LoadedClassifier:
    """A classifier from a file.

    Attributes:
        model: Network in evaluation mode, float32, on the CPU.
        spec: Description of the network, without its widths.
        names: Class names, in order of class ids.
        checkpoint: The whole checkpoint.
    """

    model: nn.Module
    spec: ClassifierSpec
    names: tuple[str, ...]
    checkpoint: Checkpoint


def load_classifier(path: str | Path, *, skeleton: nn.Module | None = None) -> LoadedClassifier:
    """Read the checkpoint of a classifier, dense or pruned.

    Args:
        path: Checkpoint file.
        skeleton: Network to fill, if the file names none of this project's; it takes the widths of the weights.

    Raises:
        CheckpointError: The file cannot be read, is not a classifier's, or its weights do not fit its network.
    """
    checkpoint = load_checkpoint(path)
    return classifier_of(checkpoint, checkpoint.best_weights, where=f"weights {path}", skeleton=skeleton)


def classifier_of(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], *, where: str, skeleton: nn.Module | None = None
) -> LoadedClassifier:
    """Build the classifier that a checkpoint describes.

    Args:
        checkpoint: Checkpoint of a classifier.
        weights: Its averaged or its trained weights.
        where: Name of the file, for messages.
        skeleton: Network to fill, as in `load_classifier`.

    Raises:
        CheckpointError: It is not a classifier's, or its weights do not fit its network.
    """
    spec = ClassifierSpec.from_dict(checkpoint.spec, where=where)
    if skeleton is None and not spec.name:
        raise CheckpointError(f"{where} name no network of this project; load them into one with skeleton=")
    model = skeleton if skeleton is not None else _empty_network(spec, where=where)
    fill_(model, weights, spec=spec, where=where)
    if len(checkpoint.names) != spec.num_classes:
        raise CheckpointError(
            f"{where} name {len(checkpoint.names)} classes, expected {spec.num_classes} names, one for each; "
            "use an undamaged copy"
        )
    return LoadedClassifier(model=model.eval(), spec=spec, names=checkpoint.names, checkpoint=checkpoint)


def is_classifier(path: str | Path) -> bool:
    """Return whether a file is a checkpoint of a classifier; False if reading it would need pickled classes.

    Raises:
        CheckpointError: The file does not exist or is damaged.
    """
    if is_legacy(path):
        return False
    content: Any = read_plain(check_weights_file(path))
    return is_own_checkpoint(content) and ClassifierSpec.describes(content.get("spec"))


def _empty_network(spec: ClassifierSpec, *, where: str) -> nn.Module:
    """Build the network that a file names, without memory for its values.

    Raises:
        CheckpointError: No network has this name, or the installed library builds it with other layers.
    """
    try:
        model = empty_classifier(spec.name, num_classes=spec.num_classes, in_channels=spec.image_chw[0])
        installed = library_version(spec.name)
    except (ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        built = f" (it was built by version {spec.version})" if spec.version else ""
        raise CheckpointError(f"{where}: {reason}{built}") from None
    if spec.layers and layers_digest(model) != spec.layers:
        library = spec.name.partition(":")[0]
        raise CheckpointError(
            f"{where}: {spec.name} of {library} {spec.version or 'unknown'} has other layers than that of the "
            f"installed {installed}; pip install {library}=={spec.version or 'VERSION'}"
        )
    return model


def fill_(model: nn.Module, weights: Mapping[str, Tensor], *, spec: ClassifierSpec, where: str) -> None:
    """Fill a network with `weights` and resize its layers to them.

    A pruned network has the layers of its dense original and differs only in the shapes of its weights, so the
    weights alone record what was pruned.

    Raises:
        CheckpointError: The weights belong to other layers, do not fit each other, are not finite, or have a type
            that a layer cannot use.
    """
    _check_numbers(weights, model.state_dict(), where=where)
    for name, module in model.named_modules():
        if (weight := weights.get(f"{name}.weight")) is not None:
            _resize_(module, weight)
    _resize_scales_(model, weights)
    try:
        model.load_state_dict(dict(weights), strict=True, assign=True)
        shape = logits_shape(model.eval(), spec.image_chw)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{where} do not fit the network {spec.name or type(model).__name__} ({reason}); give another file"
        ) from error
    if shape[1:] != (spec.num_classes,):
        raise CheckpointError(f"{where} give logits of shape {shape[1:]}, expected ({spec.num_classes},)")


def _check_numbers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse tensors that torch would load into a layer and then fail on."""
    for name, weight in weights.items():
        is_dense = weight.layout == torch.strided
        wanted = own.get(name, weight).dtype
        if not is_dense or weight.is_meta or weight.dtype.is_floating_point != wanted.is_floating_point:
            found = f"{'dense' if is_dense else 'sparse'} {_word(weight.dtype)} on {weight.device.type}"
            raise CheckpointError(
                f"{where}: {name} is {found}, expected dense numbers such as {_word(wanted)}; use an undamaged copy"
            )
    check_finite(weights, where=where)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def logits_shape(model: nn.Module, image_chw: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a network's output for two images, without computing any values.

    Raises:
        RuntimeError: The network cannot run on images of this size.
    """
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    state = {name: tensor.to("meta") for name, tensor in tensors.items()}
    images = torch.empty(2, *image_chw, device="meta")
    try:
        return tuple(torch.func.functional_call(model, state, (images,)).shape)
    except (AssertionError, ValueError, TypeError) as error:  # a network's own checks of its images
        raise RuntimeError(str(error)) from error


def _resize_(module: nn.Module, weight: Tensor) -> None:
    """Resize the parameters of one layer to its new weight, on the meta device."""
    own = getattr(module, "weight", None)
    if not isinstance(module, _RESIZED) or not isinstance(own, Tensor) or weight.ndim != own.ndim:
        return
    made = weight.shape[1] if getattr(module, "transposed", False) else len(weight)
    if isinstance(module, _ConvNd):
        read = len(weight) if module.transposed else weight.shape[1]
        if module.groups > 1:  # groups are cut whole: each makes as many outputs as before
            module.groups = max(1, made // (module.out_channels // module.groups))
        module.out_channels, module.in_channels = made, read * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _NormBase):
        module.num_features = made
    else:
        module.num_parameters = made
    for name, each in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if name == "weight":
            setattr(module, name, nn.Parameter(torch.empty_like(weight, device="meta")))
        elif each.ndim == 1:
            fresh = torch.empty(made, dtype=each.dtype, device="meta")
            setattr(module, name, nn.Parameter(fresh) if isinstance(each, nn.Parameter) else fresh)


def _resize_scales_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Resize parameters and buffers outside of layers that have one value per channel, on the meta device."""
    for name, own in (*model.named_parameters(), *model.named_buffers()):
        given = weights.get(name)
        if given is not None and given.ndim == own.ndim and given.shape != own.shape:
            path, _, attribute = name.rpartition(".")
            fresh = torch.empty(given.shape, dtype=own.dtype, device="meta")
            setattr(model.get_submodule(path), attribute, nn.Parameter(fresh) if own.requires_grad else fresh)
