"""Networks of torchvision and timm by name, such as `torchvision:resnet18`; nothing is downloaded."""

from __future__ import annotations

import difflib
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.classifiers.initial import initialise_
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import ConfigError

# Networks whose constructors would add a second output, or warn that they draw no initial weights.
_SINGLE_OUTPUT = {"aux_logits": False, "init_weights": True}
_EXTRA = {"torchvision:googlenet": _SINGLE_OUTPUT, "torchvision:inception_v3": _SINGLE_OUTPUT}
# Functions that make the tensors of layers; others compute constants, whose values constructors read.
_FACTORIES = (torch.empty, torch.zeros, torch.ones)
_DIGEST_LENGTH = 16
_MOST_CLOSE = 5


@dataclass(frozen=True, kw_only=True)
class Library:
    """A package of networks.

    Attributes:
        load: Function that imports the package.
        names: Function from the package to the names of its classifiers.
        create: Function from the package, a name and arguments to a network with random weights.
        channels: Name of the argument that gives the number of image channels.
    """

    load: Callable[[], Any]
    names: Callable[[Any], Sequence[str]]
    create: Callable[[Any, str, Mapping[str, int]], nn.Module]
    channels: str


def library_arguments(name: str, *, num_classes: int, in_channels: int) -> dict[str, int]:
    """Return the arguments by which a network is built; empty for one of this project.

    Raises:
        ConfigError: The name's prefix is no known library.
    """
    if not is_library_network(name):
        return {}
    library, _ = _split(name)
    return {"num_classes": num_classes, library.channels: in_channels, **_EXTRA.get(name, {})}


def is_library_network(name: str) -> bool:
    """Return whether a name is that of a network of a library, such as `torchvision:resnet18`."""
    return ":" in name


def library_version(name: str) -> str:
    """Return the installed version of the library that `name` starts with, without its build; empty if it has none.

    Raises:
        ConfigError: The library is unknown or not installed.
    """
    if not is_library_network(name):
        return ""
    return str(_split(name)[0].load().__version__).partition("+")[0]


def build_from_library(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network of a library with random weights and one output, in training mode as well.

    Raises:
        ConfigError: The library is unknown or not installed, or it has no network of this name.
    """
    library, network = _split(name)
    package = library.load()
    if network not in (known := library.names(package)):
        prefix = name.partition(":")[0]
        close = [f"{prefix}:{other}" for other in difflib.get_close_matches(network, known, _MOST_CLOSE)]
        hint = f"close: {', '.join(close)}" if close else f"it has {len(known)} others, such as {prefix}:{known[0]}"
        raise ConfigError(f"--cfg {name!r}: no such classifier in {prefix} {library_version(name)}; {hint}")
    arguments = library_arguments(name, num_classes=num_classes, in_channels=in_channels)
    return library.create(package, network, arguments)


def library_with(network: str) -> str | None:
    """Return the name of a network in torchvision, for who forgot the prefix; None if it has none of this name."""
    library = LIBRARIES["torchvision"]
    return f"torchvision:{network}" if network in library.names(library.load()) else None


def layers_digest(model: nn.Module) -> str:
    """Compute a digest of the names and shapes of a network's tensors."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGEST_LENGTH]


class LayersOnMeta(TorchFunctionMode):
    """Context in which layers are built without memory, while constants are computed.

    Constructors that compute widths or rates with torch read them, which `torch.device("meta")` does not allow.

        with LayersOnMeta():
            model = build_classifier("torchvision:regnet_x_400mf")
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, on the meta device if it makes a layer's tensor."""
        kwargs = kwargs or {}
        if func in _FACTORIES and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _split(name: str) -> tuple[Library, str]:
    prefix, _, network = name.partition(":")
    if prefix not in LIBRARIES:
        raise ConfigError(f"--cfg {name!r}: no such library {prefix!r}; known: {', '.join(LIBRARIES)}")
    return LIBRARIES[prefix], network


def _torchvision_names(package: Any) -> list[str]:
    names: list[str] = package.models.list_models(module=package.models)
    return names


def _create_with_torchvision(package: Any, name: str, arguments: Mapping[str, int]) -> nn.Module:
    rest = {key: value for key, value in arguments.items() if key != "in_channels"}
    model: nn.Module = package.models.get_model(name, weights=None, **rest)
    if (channels := arguments["in_channels"]) != 3:
        _set_image_channels_(model, channels, name=name)
    return model


def _set_image_channels_(model: nn.Module, channels: int, *, name: str) -> None:
    """Replace the weights of the first convolution by random ones for images of `channels` channels."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise ConfigError(f"--cfg torchvision:{name} takes only images of 3 channels, got {channels}; choose another")
    first.in_channels = channels
    out_channels, _, *kernel = first.weight.shape
    first.weight = nn.Parameter(torch.empty(out_channels, channels, *kernel))
    initialise_(first)


def _import_timm() -> Any:
    import_torchvision()  # timm imports it
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"--cfg timm:NAME needs the package timm ({error}); pip install timm") from error


def _timm_names(package: Any) -> list[str]:
    names: list[str] = package.list_models()
    return names


def _create_with_timm(package: Any, name: str, arguments: Mapping[str, int]) -> nn.Module:
    model: nn.Module = package.create_model(name, pretrained=False, **arguments)
    return model


LIBRARIES: Mapping[str, Library] = {
    "torchvision": Library(
        load=import_torchvision, names=_torchvision_names, create=_create_with_torchvision, channels="in_channels"
    ),
    "timm": Library(load=_import_timm, names=_timm_names, create=_create_with_timm, channels="in_chans"),
}
