"""Settings for exporting and running artefacts; imports no torch, so that command lines answer at once."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.choices import Int8Method, Precision
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an export that every format needs.

    Attributes:
        image_hw: Height and width of images in pixels.
        batch_size: Images per call.
        dynamic: Whether the artefact takes any batch size and any multiple of the stride; the two above are then
            only the values it is traced with.
        precision: Precision of weights and arithmetic.
        opset: Version of the ONNX operators; other formats ignore it.
    """

    image_hw: tuple[int, int] = (640, 640)
    batch_size: int = 1
    dynamic: bool = False
    precision: Precision = "fp32"
    opset: int = 17


@dataclass(frozen=True, kw_only=True)
class Int8Budget:
    """Milliseconds that a network with layers in int8 and in floating point may take.

    Attributes:
        milliseconds: Most of a call.
        threads: Number of threads; None takes as many as torch.
    """

    milliseconds: float
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class FormatSettings:
    """Settings of an export that only some formats use.

    Attributes:
        int8_skip: Patterns of the paths of layers that int8 keeps in floating point.
        int8_search: Whether to search for the layers in which int8 costs most mAP, and leave them out too.
        int8_budget: Time by which layers are left in floating point; None for no limit.
        calib_method: Method that chooses the ranges of int8, as `QuantConfig.observer`.
        compute_capability: Compute capability of the GPU to build for, such as 8.6; "" for this machine's (TensorRT).
    """

    int8_skip: tuple[str, ...] = ()
    int8_search: bool = False
    int8_budget: Int8Budget | None = None
    calib_method: Int8Method = "mse"
    compute_capability: str = ""


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Settings for how a runtime uses the machine.

    Attributes:
        half: Whether to compute in 16 bits if the device supports it.
        threads: Number of threads; None takes as many as torch. For torch it applies to the whole process.
        powersave: Cores of a phone or board that ncnn uses: 0 all, 1 the small ones, 2 the big ones. The last value
            set applies to the whole process.
    """

    half: bool = False
    threads: int | None = None
    powersave: int = 0

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads {self.threads}: expected at least 1")
        if self.powersave not in (0, 1, 2):
            raise ConfigError(f"--powersave {self.powersave}: expected 0, 1 or 2")

    @property
    def num_threads(self) -> int:
        """Number of threads; by default torch's."""
        import torch

        return self.threads or torch.get_num_threads()
