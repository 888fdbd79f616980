"""Which operations a network becomes, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from quantised import noise, settled
from torch import Tensor, nn
from torch.nn.utils import prune

from models.classifiers import DenseNetCifar, LeNet5
from quantization.lowering.graph import Graph
from quantization.lowering.lower import lower
from utils.errors import QuantizationError


class Doing(nn.Module):
    """A network of one convolution and whatever a test does with it."""

    def __init__(self, body: Callable[[nn.Module, Tensor], object], **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.body = body

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.kind for node in graph.nodes.values())


def lowered(body: Callable[..., object], **modules: nn.Module) -> Graph:
    return lower(Doing(body, **modules).eval(), image_shape=(3, 8, 8))


def test_lenet_is_layers_and_pools() -> None:
    graph = lower(LeNet5(), image_shape=(1, 28, 28))
    assert list(graph.nodes)[:3] == ["input", "features.0", "features.2"]
    assert kinds(graph) == {"input": 1, "conv": 2, "max_pool": 2, "flatten": 1, "linear": 3}
    assert graph.nodes["features.0"].clamp == (0, float("inf"))


def test_batch_norm_and_relu_go_into_the_convolution() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()), noise(4, 3, 8, 8))
    graph = lower(model, image_shape=(3, 8, 8))
    assert list(graph.nodes) == ["input", "0"]
    assert graph.nodes["0"].clamp == (0, 6)


def test_synchronised_batch_norm_goes_into_the_convolution() -> None:
    graph = lower(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.ReLU()).eval(), image_shape=(3, 8, 8))
    assert list(graph.nodes) == ["input", "0"]


def test_batch_norm_before_a_convolution_is_a_depthwise_one() -> None:
    model = settled(DenseNetCifar(depth=7, growth=4), noise(4, 3, 32, 32))
    graph = lower(model, image_shape=(3, 32, 32))
    norm = graph.nodes["features.1.norm"]
    assert (norm.kind, norm.settings["groups"], norm.clamp) == ("conv", 16, (0, float("inf")))


def test_batch_norm_after_linear_is_folded() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.ReLU()).eval()
    assert kinds(lower(model, image_shape=(3, 2, 2))) == {"input": 1, "flatten": 1, "linear": 1}


def test_relu_of_two_readers_stays() -> None:
    graph = lowered(lambda m, x: (lambda y: torch.cat((y, F.relu(y)), 1))(m.conv(x)))
    assert kinds(graph)["rescale"] == 1


def test_relu_after_pooling_goes_before_it() -> None:
    graph = lowered(lambda m, x: F.relu(F.max_pool2d(m.conv(x), 2)))
    assert kinds(graph) == {"input": 1, "conv": 1, "max_pool": 1}


def test_functions_one_after_another_are_one_table() -> None:
    graph = lowered(lambda m, x: (lambda y: y * F.relu6(y + 3) / 6)(m.conv(x)))
    # y + 3, relu6 are one; y times that; a sixth of it.
    assert kinds(graph) == {"input": 1, "conv": 1, "lookup": 2, "multiply": 1}


def test_padding_by_zeros_on_one_side_is_cut_to_size() -> None:
    graph = lowered(lambda m, x: F.pad(m.conv(x), (0, 1, 0, 1)))
    assert kinds(graph)["slice"] == 2


def test_slices_and_chunks() -> None:
    def body(m: nn.Module, x: Tensor) -> list[Tensor]:
        first, second = m.conv(x), m.conv(x).chunk(2, 1)
        return [first[..., ::2, 1::2], second[0], second[1]]

    graph = lowered(body)
    assert len(graph.outputs) == 3
    assert kinds(graph)["slice"] == 4
    assert "conv@2" in graph.nodes


def test_means_upsampling_and_gates() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        gate = torch.sigmoid(y.mean((2, 3), keepdim=True))
        return F.interpolate(y * gate, scale_factor=2, mode="nearest").flatten(1)

    assert kinds(lowered(body)) == {
        "input": 1,
        "conv": 1,
        "mean": 1,
        "lookup": 1,
        "multiply": 1,
        "upsample": 1,
        "flatten": 1,
    }


def test_constants_per_channel_scale_the_weights() -> None:
    factor = torch.arange(1.0, 5.0).view(4, 1, 1)
    assert kinds(lowered(lambda m, x: m.conv(x) * factor)) == {"input": 1, "conv": 1}


def test_values_before_tables_and_outputs_are_wide() -> None:
    graph = lowered(lambda m, x: m.last(F.silu(m.conv(x))), last=nn.Conv2d(4, 2, 1))
    assert graph.wide() == {"conv", "last"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda m, x: m.conv(x) if x.sum() > 0 else x, "Doing: torch.fx cannot trace it"),
        (lambda m, x: F.softmax(m.conv(x), 1), "softmax: softmax is an operator, which has no integer form"),
        (lambda m, x: m.conv(x).view(4, 2, 8, 8), "view: view reshapes"),
        (lambda m, x: F.interpolate(m.conv(x), scale_factor=2, mode="bilinear"), "interpolates"),
        (lambda m, x: m.conv(x) - x[:, :1], "subtracts shapes"),
        (lambda m, x: F.avg_pool2d(m.conv(x), 3, 2, ceil_mode=True), "ceil_mode"),
        (lambda m, x: F.avg_pool2d(m.conv(x), 3, 1, 1, count_include_pad=False), "count_include_pad=False"),
        (lambda m, x: torch.sub(m.conv(x), 1.0, alpha=3), "sub has a factor alpha"),
        (lambda m, x: torch.div(m.conv(x), 0.5, rounding_mode="floor"), "div rounds the quotient"),
        (lambda m, x: m.conv(x) / 0, "truediv divides by zero"),
        (lambda m, x: torch.pow(x.abs(), m.conv(x)[:, :1]), "pow has another argument that is a tensor"),
        (lambda m, x: m.conv(x).abs() ** torch.ones(1, 4, 1, 1), "pow has another argument that is a tensor"),
    ],
)
def test_what_integers_cannot_do_is_named(body: Callable[..., object], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        lowered(body)


def test_masks_of_torch_are_to_be_made_permanent() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    with pytest.raises(QuantizationError, match=r"^0\.weight: is computed from other tensors.* with prune\.remove$"):
        lower(model, image_shape=(3, 8, 8))
    prune.remove(model[0], "weight")
    assert lower(model, image_shape=(3, 8, 8)).outputs


def test_untraceable_block_is_named_with_its_path() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(QuantizationError, match=r"1\.0 \(Branch\): torch.fx cannot trace it"):
        lower(nn.Sequential(nn.Identity(), nn.Sequential(Branch())), image_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (IndexError("far. away"), "IndexError: far"),
        (AssertionError(), "AssertionError"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError("\n"), "RuntimeError"),
        (AttributeError("no such"), "AttributeError: no such"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_whatever_tracing_meets_is_named_with_its_path(error: Exception, words: str) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(
        QuantizationError, match=rf"^1\.0 \(Failing\): torch.fx cannot trace it \({words}\)"
    ) as caught:
        lower(nn.Sequential(nn.Identity(), nn.Sequential(Failing())), image_shape=(3, 8, 8))
    assert "\n" not in str(caught.value)


def test_what_fails_on_the_example_is_named_with_its_path() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.new_zeros(1)[5]

    with pytest.raises(
        QuantizationError, match=r"^0\.1\.getitem: the network does not run.* \(IndexError: "
    ) as caught:
        lower(nn.Sequential(nn.Sequential(nn.Identity(), Failing())), image_shape=(3, 8, 8))
    assert "\n" not in str(caught.value)


def test_change_in_place_of_what_is_read_again_is_found() -> None:
    with pytest.raises(QuantizationError, match="in place"):
        lowered(lambda m, x: (lambda y: F.relu(y, inplace=True) + y)(m.conv(x)))


def test_images_of_a_wrong_shape_are_told() -> None:
    with pytest.raises(QuantizationError, match=r"does not run on images of shape \(1, 8, 8\)"):
        lower(nn.Conv2d(3, 4, 3), image_shape=(1, 8, 8))
