"""Names that settings choose among; nothing heavy is imported here, so that command lines start at once."""

from __future__ import annotations

from typing import Literal, TypeAlias

Part: TypeAlias = Literal["both", "weights", "activations"]
Layout = Literal["dense", "coo", "csr", "csc"]
