"""Random networks of everything a channel graph follows."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

KINDS = ("conv", "depthwise", "grouped", "add", "gate", "concat", "split", "chunk", "slice")
Program = list[tuple[str, int, int, int]]

programs = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 99), st.integers(2, 6)),
    min_size=3,
    max_size=12,
)


class Step(nn.Module):
    """One operator on two maps; `widths` are those of the maps it gives."""

    def __init__(self, kind: str, first: int, second: int, size: int) -> None:
        super().__init__()
        # A map of one channel cannot be divided.
        self.kind = kind if first > 1 else {"split": "conv", "chunk": "conv", "slice": "conv"}.get(kind, kind)
        if kind == "grouped" and first % 2:
            self.kind = "conv"
        self.first = first
        self.widths = {
            "conv": [size],
            "depthwise": [first * (1 + size % 2)],
            "grouped": [2 * size],
            "concat": [first + second],
            "slice": [first // 2],
        }.get(self.kind, [first] if self.kind in ("add", "gate") else [first - first // 2, first // 2])
        source = second if kind == "add" else first
        groups = {"depthwise": first, "grouped": 2}.get(self.kind, 1)
        made = self.widths[0]
        # Only what is used: copies of many modules take most of the time of a test.
        if self.kind in ("conv", "depthwise", "grouped", "add"):
            self.block = nn.Sequential(
                nn.Conv2d(source, made, 3, padding=1, groups=groups), nn.BatchNorm2d(made), nn.ReLU()
            )
        if self.kind == "gate":
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(first, first, 1), nn.Sigmoid())

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Two maps (B, C, H, W) to one or two."""
        if self.kind == "add":
            return [x + self.block(y)]
        if self.kind == "gate":
            return [x * self.gate(x)]
        if self.kind == "concat":
            return [torch.cat((x, y), 1)]
        if self.kind == "split":
            parts = torch.split(x, self.widths, dim=1)
            return [parts[0], parts[1]]
        if self.kind == "chunk":
            halves = x.chunk(2, 1)
            return [halves[0], halves[1]]
        if self.kind == "slice":
            return [x[:, 1::2]]
        return [self.block(x)]


class RandomNetwork(nn.Module):
    """Steps over a pool of maps, then a classifier over the last three of them."""

    def __init__(self, program: Program, *, cells: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.steps = nn.ModuleList()
        self.sources = []
        widths = [6]
        for kind, first, second, size in program:
            source = first % len(widths), second % len(widths)
            step = Step(kind, widths[source[0]], widths[source[1]], size)
            self.sources.append(source)
            self.steps.append(step)
            widths += step.widths
        self.pool = nn.AdaptiveAvgPool2d(cells)
        self.head = nn.Sequential(nn.Linear(sum(widths[-3:]) * cells**2, 7), nn.ReLU(), nn.Linear(7, 2))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2)."""
        maps = [self.stem(images)]
        for step, (first, second) in zip(self.steps, self.sources, strict=True):
            maps += step(maps[first], maps[second])
        return self.head(torch.flatten(self.pool(torch.cat(maps[-3:], 1)), 1))
