"""`ClassifierSpec`: the description of a classifier in its checkpoints."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from models.classifiers.libraries import is_library_network, layers_digest, library_arguments, library_version
from models.classifiers.registry import empty_classifier
from utils.config.values import checked_values, required_fields
from utils.errors import CheckpointError, ConfigError

# Value of "kind" that marks the description of a classifier in a checkpoint.
_KIND = "classifier"
# Largest number of classes, and of pixels per side: the limit of torch's indices.
_MOST = 2**31 - 1
# Attributes that only networks of libraries have.
_OF_LIBRARIES = ("arguments", "version", "layers")
# Characters of version numbers and digests, which messages repeat.
_WORD = re.compile(r"[\w.+!-]{0,64}")


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """The description of a classifier without its widths, which follow from the shapes of its weights.

    Attributes:
        name: Key of `models.classifiers.CLASSIFIERS`, or a network of a library, such as `torchvision:resnet18`;
            empty for a network that code elsewhere builds.
        num_classes: Number of classes, the length of the logits.
        image_chw: Channels, height and width of an image.
        mean: Mean per channel, subtracted from images in [0, 1] before the network.
        std: Standard deviation per channel, by which images are then divided.
        arguments: Arguments by which a library builds the network; empty for one of this project.
        version: Version of the library that built the network; empty if there is none or it was not recorded.
        layers: Digest of the names and shapes of the network's tensors before pruning; empty if not recorded.
    """

    name: str
    num_classes: int
    image_chw: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    arguments: Mapping[str, int] = field(default_factory=dict, hash=False)
    version: str = ""
    layers: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        *,
        num_classes: int,
        image_chw: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> ClassifierSpec:
        """Describe a network by its name; of one from a library, record how it is built and which layers it has.

        Raises:
            ConfigError: No network has this name, its library is not installed, or a value is impossible.
        """
        plain = cls(name=name, num_classes=num_classes, image_chw=image_chw, mean=mean, std=std)
        if not is_library_network(name):
            return plain
        channels = image_chw[0]
        return replace(
            plain,
            arguments=library_arguments(name, num_classes=num_classes, in_channels=channels),
            version=library_version(name),
            layers=layers_digest(empty_classifier(name, num_classes=num_classes, in_channels=channels)),
        )

    def __post_init__(self) -> None:
        if len(self.image_chw) != 3 or min(self.image_chw) < 1 or max(self.image_chw) > _MOST:
            raise ConfigError(f"image size: got {self.image_chw}, expected channels, height and width")
        if not 2 <= self.num_classes <= _MOST:
            raise ConfigError(f"a classifier of {self.num_classes} classes: expected 2 to {_MOST}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.image_chw[0]:
                raise ConfigError(f"{name}: got {getattr(self, name)}, expected {self.image_chw[0]} numbers")
        if not all(map(math.isfinite, self.mean)):
            raise ConfigError(f"mean: got {self.mean}, expected finite numbers")
        # Written so that NaN fails as well.
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"std: got {self.std}, expected positive numbers")
        self._check_library()

    def _check_library(self) -> None:
        """Refuse arguments by which no network is built here: a file cannot choose what a constructor is given."""
        expected = library_arguments(self.name, num_classes=self.num_classes, in_channels=self.image_chw[0])
        for key, value in self.arguments.items():
            if key not in expected or type(value) is not type(expected[key]) or value != expected[key]:
                wanted = ", ".join(f"{known}={wanted}" for known, wanted in expected.items()) or "none"
                raise ConfigError(f"arguments of {self.name!r}: got {key!r}: {value!r}, expected {wanted}")
        for name in ("version", "layers"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, expected one word")

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data for checkpoints, without the empty attributes that only libraries fill."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        kept = {name: value for name, value in values.items() if value or name not in _OF_LIBRARIES}
        return {"kind": _KIND, **kept}

    @staticmethod
    def describes(values: object) -> bool:
        """Return whether a checkpoint's description is of a classifier."""
        return isinstance(values, Mapping) and values.get("kind") == _KIND

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> ClassifierSpec:
        """Rebuild from `to_dict`; `where` names its origin in messages.

        Raises:
            CheckpointError: The data describe something else, such as a detector.
        """
        if not cls.describes(values):
            raise CheckpointError(f"{where}: not a classifier; give one, or the YAML of a detector's data")
        rest = {name: value for name, value in values.items() if name not in ("kind", "arguments")}
        arguments = values.get("arguments", {})
        if not isinstance(arguments, dict):
            raise CheckpointError(f"{where}: its arguments are {type(arguments).__name__}; use an undamaged copy")
        try:
            checked = checked_values(cls, rest, where="its description")
            if missing := [name for name in required_fields(cls) if name not in checked]:
                raise CheckpointError(f"{where} has no {missing[0]!r}; use an undamaged copy")
            return cls(**checked, arguments=arguments)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from None
