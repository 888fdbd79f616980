"""Integer ids of channels, and ties that make several ids one channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class ChannelIds:
    """Issues ids, collects ties between them, and resolves all ties at once at the end."""

    def __init__(self) -> None:
        self._count = 0
        self._ties: list[tuple[IntArray, IntArray]] = []
        self._protected: list[tuple[IntArray, str]] = []

    def new(self, count: int) -> IntArray:
        """Issue the next `count` ids (count,)."""
        self._count += count
        return np.arange(self._count - count, self._count, dtype=np.int64)

    def new_protected(self, count: int, reason: str) -> IntArray:
        """Issue the next `count` ids (count,), of channels that must be kept."""
        ids = self.new(count)
        self.protect(ids, reason)
        return ids

    def tie(self, first: IntArray, second: IntArray) -> None:
        """Declare that two lists of ids (n,) name the same channels, position by position."""
        assert first.shape == second.shape, f"tied lists of {len(first)} and {len(second)} channels"
        if first is not second:
            self._ties.append((first, second))

    def protect(self, ids: IntArray, reason: str) -> None:
        """Declare that these channels must be kept."""
        self._protected.append((ids, reason))

    def labels(self) -> IntArray:
        """Return, for each issued id, the smallest id it is tied to directly or through others (count,)."""
        labels = np.arange(self._count, dtype=np.int64)
        if not self._ties:
            return labels
        first = np.concatenate([tie[0] for tie in self._ties])
        second = np.concatenate([tie[1] for tie in self._ties])
        # Union-find on whole arrays: the root of each end of a tie takes the smaller root, paths are halved
        # until they are flat, and rounds repeat until no tie joins two roots.
        while np.any(labels[first] != labels[second]):
            smaller = np.minimum(labels[first], labels[second])
            np.minimum.at(labels, labels[first], smaller)
            np.minimum.at(labels, labels[second], smaller)
            while np.any(labels[labels] != labels):
                labels = labels[labels]
        return labels

    def protected(self, labels: IntArray) -> dict[int, str]:
        """Map the label of each protected channel to the first reason given, in order of labels."""
        reasons: dict[int, str] = {}
        for ids, reason in self._protected:
            for label in labels[ids].tolist():
                reasons.setdefault(label, reason)
        return dict(sorted(reasons.items()))
