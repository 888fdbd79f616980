"""ncnn's `.param`, a text with one line per layer, checked before the runtime loads it.

The runtime invents blobs that no layer produces and then reads beyond its table, so a hand-edited file can crash the
process instead of failing with an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from utils.errors import CheckpointError

MAGIC = "7767517"


@dataclass(frozen=True, kw_only=True)
class ParamLayer:
    """One line of a `.param`.

    Attributes:
        kind: Type of the layer, such as "Convolution".
        name: Name of the layer, unique in the file.
        inputs: Names of the blobs it reads.
        outputs: Names of the blobs it produces.
        settings: Settings of the layer, each as `id=value`.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: tuple[str, ...] = ()

    def number(self, key: int, default: int = 0) -> int:
        """Return the integer setting with id `key`; `default` is ncnn's value if the line has none."""
        prefix = f"{key}="
        found = next((item for item in self.settings if item.startswith(prefix)), None)
        return default if found is None else int(found.removeprefix(prefix))

    def with_number(self, key: int, value: int) -> ParamLayer:
        """Return the layer with another value of the integer setting with id `key`."""
        others = tuple(item for item in self.settings if not item.startswith(f"{key}="))
        return replace(self, settings=(*others, f"{key}={value}"))

    def as_line(self) -> str:
        """Format the layer as a line that reads back as the same layer."""
        rest = (f"{len(self.inputs)} {len(self.outputs)}", *self.inputs, *self.outputs, *self.settings)
        return f"{self.kind:<24} {self.name:<24} {' '.join(rest)}"


def read_param(path: Path) -> tuple[ParamLayer, ...]:
    """Read the layers of a `.param`, in execution order.

    Raises:
        CheckpointError: There is no such file, it is not an ncnn param file, lines are missing, or a layer reads a
            blob that no earlier layer produces.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read: {reason}; export the model again") from error
    rows = [line.split() for line in lines if line.strip()]
    if not rows or rows[0] != [MAGIC]:
        raise CheckpointError(
            f"{path} is not an ncnn param file: expected {MAGIC} as its first line; export it again"
        )
    layers = tuple(_layer(path, row) for row in rows[2:])
    _check_counts(path, rows[1] if len(rows) > 1 else [], layers)
    _check_blobs(path, layers)
    return layers


def write_param(path: Path, layers: tuple[ParamLayer, ...]) -> None:
    """Write what `read_param` reads back."""
    path.write_text(param_text(layers), encoding="utf-8")


def param_text(layers: tuple[ParamLayer, ...]) -> str:
    """Return the content of a `.param`."""
    num_blobs = sum(len(layer.outputs) for layer in layers)
    lines = [MAGIC, f"{len(layers)} {num_blobs}", *(layer.as_line() for layer in layers)]
    return "\n".join(lines) + "\n"


def output_blobs(layers: tuple[ParamLayer, ...]) -> tuple[str, ...]:
    """Return the outputs of the network: the blobs that no layer reads."""
    read = {blob for layer in layers for blob in layer.inputs}
    return tuple(blob for layer in layers for blob in layer.outputs if blob not in read)


def input_blobs(layers: tuple[ParamLayer, ...]) -> tuple[str, ...]:
    """Return the inputs of the network: the blobs that the caller fills."""
    return tuple(blob for layer in layers if layer.kind == "Input" for blob in layer.outputs)


def _layer(path: Path, row: list[str]) -> ParamLayer:
    counts = row[2:4]
    if len(counts) < 2 or not all(count.isdecimal() for count in counts):
        raise CheckpointError(f"{path}: line {' '.join(row)!r} is not a layer; export the model again")
    num_inputs, num_outputs = map(int, counts)
    num_blobs = num_inputs + num_outputs
    blobs, settings = row[4 : 4 + num_blobs], row[4 + num_blobs :]
    if len(blobs) < num_blobs or any("=" in blob for blob in blobs):
        raise CheckpointError(f"{path}: layer {row[1]} names too few blobs; export the model again")
    return ParamLayer(
        kind=row[0],
        name=row[1],
        inputs=tuple(blobs[:num_inputs]),
        outputs=tuple(blobs[num_inputs:]),
        settings=tuple(settings),
    )


def _check_counts(path: Path, row: list[str], layers: tuple[ParamLayer, ...]) -> None:
    found = [str(len(layers)), str(sum(len(layer.outputs) for layer in layers))]
    if row != found:
        raise CheckpointError(
            f"{path} declares {'/'.join(row) or 'no'} layers and blobs but has {'/'.join(found)}; "
            "it was truncated or edited, export the model again"
        )


def _check_blobs(path: Path, layers: tuple[ParamLayer, ...]) -> None:
    made: set[str] = set()
    for layer in layers:
        for blob in layer.inputs:
            if blob not in made:
                raise CheckpointError(
                    f"{path}: layer {layer.name} reads blob {blob}, which no earlier layer produces; "
                    "export the model again"
                )
        made.update(layer.outputs)
