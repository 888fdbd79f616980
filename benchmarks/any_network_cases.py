"""The networks of `any_network`: a fixed list of names, the image size of each, and how each is built.

torchvision:NAME  all of torchvision's classifiers          timm:NAME  forty of timm's, chosen for their operators
backbone:NAME     the backbone of a detector of torchvision  frozen:NAME  torchvision's, with frozen batch norms
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.classifiers.libraries import LIBRARIES, build_from_library
from utils.boxes.torchvision_compat import import_torchvision

NUM_CLASSES = 10
_SIDE = 64
# Networks that do not take images of 64 px, and a size that they take.
_SIDES = {
    **{"torchvision:inception_v3": 96, "torchvision:maxvit_t": 224, "timm:inception_v4": 96},
    **{f"torchvision:vit_{name}": 224 for name in ("b_16", "b_32", "h_14", "l_16", "l_32")},
    **{"backbone:ssd300_vgg16": 300, "backbone:ssdlite320_mobilenet_v3_large": 160},
    **{f"timm:{name}": 224 for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "levit_128s")},
    **{f"timm:{name}": 224 for name in ("swin_tiny_patch4_window7_224", "visformer_tiny", "coat_lite_tiny")},
    **{f"timm:{name}": 224 for name in ("mixer_s32_224", "resmlp_12_224", "gmlp_s16_224")},
    "timm:botnet26t_256": 256,
}
# Shares of the channels that this project means to be able to prune.
WANTED: Mapping[str, float] = {
    **dict.fromkeys(("timm:repvgg_a0", "timm:mobileone_s0", "timm:cspdarknet53", "frozen:resnet18"), 0.8),
    **dict.fromkeys(("torchvision:regnet_x_400mf", "torchvision:regnet_y_400mf"), 0.6),
    **dict.fromkeys(("torchvision:resnext50_32x4d", "timm:resnext50_32x4d"), 0.6),
    **dict.fromkeys(("torchvision:convnext_tiny", "timm:convnext_tiny"), 0.6),
    "torchvision:shufflenet_v2_x1_0": 0.7,
}
_BACKBONES = (
    *("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"),
    *("ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
)
_FROZEN = ("resnet18", "resnet50", "resnext50_32x4d")
_TIMM = (
    *("repvgg_a0", "mobileone_s0", "cspdarknet53", "regnetx_004", "regnety_004", "resnext50_32x4d", "convnext_tiny"),
    *("convnextv2_atto", "legacy_xception", "xception41", "hrnet_w18_small", "densenet121", "dla34", "gernet_s"),
    *("efficientnet_b0", "tf_efficientnetv2_b0", "mobilenetv3_small_100", "mobilenetv4_conv_small", "rexnet_100"),
    *("ghostnet_100", "fasternet_t0", "ese_vovnet19b_dw", "hgnetv2_b0", "inception_v4", "seresnext26d_32x4d"),
    *("skresnet18", "resnest14d", "res2net50_26w_4s", "nf_regnet_b0", "dm_nfnet_f0", "repvit_m0_9", "poolformer_s12"),
    *("mixer_s32_224", "convmixer_768_32", "vit_tiny_patch16_224", "deit_tiny_patch16_224"),
    *("swin_tiny_patch4_window7_224", "levit_128s", "mobilevit_xxs", "botnet26t_256"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network of the table.

    Attributes:
        name: Kind and name, as in the heading of this file.
        side: Side of the images that it is traced on, in pixels.
    """

    name: str
    side: int = _SIDE

    @property
    def file_name(self) -> str:
        """Name that can be that of a file."""
        return self.name.replace(":", "_")

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.side, self.side

    @property
    def is_frozen(self) -> bool:
        """Whether batch norms are frozen once their statistics are known."""
        return self.name.startswith("frozen:")

    def build(self) -> nn.Module:
        """Build the network with random weights; batch norms are not yet frozen."""
        kind, _, name = self.name.partition(":")
        if kind == "backbone":
            return _backbone(name)
        library = f"torchvision:{name}" if kind == "frozen" else self.name
        return build_from_library(library, num_classes=NUM_CLASSES, in_channels=3)


def all_cases() -> list[Case]:
    """List the networks of the table."""
    return [Case(name=name, side=_SIDES.get(name, _SIDE)) for name in _names()]


def _names() -> Iterator[str]:
    torchvision = LIBRARIES["torchvision"]
    yield from (f"torchvision:{name}" for name in torchvision.names(torchvision.load()))
    yield from (f"backbone:{name}" for name in _BACKBONES)
    yield from (f"frozen:{name}" for name in _FROZEN)
    yield from (f"timm:{name}" for name in _TIMM)


def _backbone(name: str) -> nn.Module:
    import_torchvision()
    detection = importlib.import_module("torchvision.models.detection")
    backbone: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None).backbone
    return backbone


def freeze_norms_(model: nn.Module) -> None:
    """Replace batch norms by torchvision's frozen ones with the same numbers."""
    import_torchvision()
    frozen: Any = importlib.import_module("torchvision.ops").FrozenBatchNorm2d
    for path, norm in list(model.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            parent, _, last = path.rpartition(".")
            fixed = frozen(norm.num_features, eps=norm.eps).to(norm.weight.dtype)
            fixed.load_state_dict(norm.state_dict())
            setattr(model.get_submodule(parent), last, fixed)
