"""The names of torch's operators, and that pruning and quantisation both understand all of their spellings."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.operators import ACTIVATIONS, IDENTITIES, OPERATORS, module_operator, traced_operator
from pruning.channels.graph import ChannelGraph
from pruning.channels.operators import FUNCTION_RULES, MODULE_RULES
from quantization.lowering.lower import lower

Spelling = Callable[[Tensor], Tensor]

IMAGE = (3, 8, 8)
# What else an operator must be given.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "clamp": (-0.5, 0.5),
    "clamp_min": (-0.5,),
    "clamp_max": (0.5,),
    "pow": (2,),
    "threshold": (0.1, 0.0),
    "alpha_dropout": (0.5, False),
    "feature_alpha_dropout": (0.5, False),
    "dropout": (0.5, False),
    "dropout2d": (0.5, False),
}


def relu(x: Tensor) -> Tensor:
    """Not torch's, whatever its name."""
    return x.flip(1)


def spellings() -> dict[str, Spelling]:
    """All functions, methods and modules that are activations or have no effect, called with what they need."""
    found: dict[str, Spelling] = {}
    # dropout1d takes no maps.
    for name in sorted({*ACTIVATIONS, *IDENTITIES} - {"dropout1d"}):
        each, given = OPERATORS[name], ARGUMENTS.get(name, ())
        for function in each.functions(name):
            where = f"{getattr(function, '__module__', '')}.{function.__name__}"
            found[where] = lambda x, function=function, given=given: function(x, *given)  # type: ignore[misc]
        for method in each.methods(name):
            found[f"x.{method}"] = lambda x, method=method, given=given: getattr(x, method)(*given)  # type: ignore[misc]
        for kind in each.modules:
            found[f"nn.{kind.__name__}"] = kind(*given) if name == "threshold" else kind()
    return found


SPELLINGS = spellings()


class Around(nn.Module):
    """An operator between two convolutions."""

    def __init__(self, middle: Spelling) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 4, 1), middle, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def test_every_module_function_and_method_has_one_name() -> None:
    for spelled in (
        [each for one in OPERATORS.values() for each in one.modules],
        [each for name, one in OPERATORS.items() for each in one.functions(name)],
        [each for name, one in OPERATORS.items() for each in one.methods(name)],
    ):
        assert len(spelled) == len(set(spelled)) > 20


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.relu, "relu"),
        (F.relu_, "relu"),
        (operator.iadd, "add"),
        (torch.subtract, "sub"),
        (torch.concatenate, "cat"),
        (F.max_pool2d, "max_pool2d"),
        (F.logsigmoid, "logsigmoid"),
        (torch.softmax, "softmax"),
        (torch.cumsum, None),
        (relu, None),
        (torch.batch_norm, None),
    ],
)
def test_function_has_the_name_of_its_operator(function: Callable[..., Any], name: str | None) -> None:
    graph = fx.Graph()
    assert traced_operator(graph.call_function(function, (graph.placeholder("x"),))) == name


def test_method_and_module_have_the_name_of_their_operator() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert [traced_operator(graph.call_method(name, (x,))) for name in ("mul_", "clip", "cumsum")] == [
        "mul",
        "clamp",
        None,
    ]
    assert traced_operator(x) is None
    assert [module_operator(kind) for kind in (nn.ZeroPad2d, nn.Upsample, nn.LocalResponseNorm)] == [
        "pad",
        "interpolate",
        None,
    ]


def test_rules_of_pruning_are_for_operators_that_exist() -> None:
    assert MODULE_RULES.keys() | FUNCTION_RULES.keys() <= OPERATORS.keys()


@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_every_spelling_of_an_activation_is_known_to_pruning_and_quantisation(name: str) -> None:
    torch.manual_seed(0)
    model = Around(SPELLINGS[name]).eval()
    assert len(ChannelGraph.of(model, image_chw=IMAGE).prunable_ids) == 4
    assert {"first", "last"} <= lower(model, image_shape=IMAGE).nodes.keys()
