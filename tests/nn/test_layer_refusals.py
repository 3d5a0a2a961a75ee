"""What sparse layers refuse: sizes, inputs and states that kernels could only misread, each in one clear line."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.kernels import sparse
from gossamer.nn import SparseConv2d, SparseLinear

from .near import assert_equals_dense


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def refusal(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the meta device --


@pytest.mark.parametrize("name", ["to_dense", "positions", "support", "ascending", "dense_module"])
def test_there_is_nothing_to_read_on_the_meta_device(name: str) -> None:
    for layer in (SparseLinear(64, 48, 0.1).to("meta"), SparseConv2d(3, 4, 3, 0.5, device="meta")):
        assert "has sizes only" in refusal(getattr(layer, name))


def test_a_support_cannot_be_set_on_the_meta_device() -> None:
    layer = SparseLinear(64, 48, 0.1, device="meta")
    assert "has sizes only" in refusal(layer.set_support, SparseLinear(64, 48, 0.1).support())


def test_half_a_layer_on_the_meta_device_is_refused() -> None:
    layer = SparseLinear(64, 48, 0.1)
    layer.index = layer.index.to("meta")
    assert "has sizes only" in refusal(layer, torch.randn(2, 64))


@pytest.mark.parametrize("density", [0.0003, 0.1, 0.9, 1.0])
def test_the_index_has_the_same_size_on_the_meta_device(density: float) -> None:
    for kind, sizes in ((SparseLinear, (300, 200)), (SparseConv2d, (30, 20, 3))):
        real, meta = kind(*sizes, density), kind(*sizes, density, device="meta")
        assert meta.index.shape == real.index.shape
        assert meta.index.dtype == torch.uint8
        assert meta.values.shape == real.values.shape


def test_a_huge_layer_costs_nothing_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "build", None)
    layer = SparseLinear(10**6, 10**6, 1e-3, device="meta")
    assert layer.count == 10**9
    assert layer.index.is_meta
    assert layer(torch.zeros(2, 10**6, device="meta")).shape == (2, 10**6)


@pytest.mark.parametrize("density", [0.3, 0.1, 0.02])
def test_a_layer_of_another_count_is_assigned_to_one_on_the_meta_device(density: float) -> None:
    layer, other = SparseLinear(64, 48, 0.1, device="meta"), SparseLinear(64, 48, density)
    layer.load_state_dict(other.state_dict(), assign=True)
    assert layer.support() == other.support()
    assert torch.equal(layer.to_dense(), other.to_dense())
    assert_equals_dense(layer, torch.randn(3, 64))


# -- loading --


def changed(state: dict[str, Any], what: str) -> dict[str, Any]:
    other = SparseLinear(30, 20, 0.4)
    if what == "numpy":
        return {key: value.numpy() for key, value in state.items()}
    if what == "lists":
        return {key: value.tolist() for key, value in state.items()}
    if what == "meta":
        return dict(other.to("meta").state_dict())
    if what == "meta index":
        return {**state, "index": state["index"].to("meta")}
    if what == "index of another count":
        return {**state, "index": other.index}
    return {**other.state_dict(), "bias": torch.zeros(3)}


@pytest.mark.parametrize("what", ["numpy", "lists", "meta", "meta index", "index of another count", "bias"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_refused_state_changes_nothing(what: str, assign: bool) -> None:
    layer = SparseLinear(30, 20, 0.1)
    before = copy.deepcopy(layer.state_dict())
    state = changed(copy.deepcopy(before), what)
    if what == "meta" and assign:  # that is how torch moves a layer there
        layer.load_state_dict(state, assign=True)
        assert layer.values.is_meta
        return
    with pytest.raises(RuntimeError, match="sparse layer at the root: "):
        layer.load_state_dict(state, assign=assign)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert_equals_dense(layer, torch.randn(3, 30))


def test_an_index_on_the_meta_device_must_have_the_right_size() -> None:
    layer = SparseLinear(30, 20, 0.1, device="meta")
    state = {**layer.state_dict(), "index": torch.empty(7, dtype=torch.uint8, device="meta")}
    with pytest.raises(RuntimeError, match=r"index has shape \(7,\); that of 60 values in a 20 x 30 matrix has"):
        layer.load_state_dict(state, assign=True)


# -- damage by hand --


def test_new_memory_of_the_index_is_looked_through() -> None:
    layer, x = SparseLinear(256, 256, 0.1), torch.randn(2, 256)
    layer(x)
    version = layer.index._version
    layer.index.data = torch.full_like(layer.index, 3)
    assert layer.index._version == version
    assert "no index of" in refusal(layer, x)


def test_tensors_of_inference_mode_are_looked_through_each_time() -> None:
    with torch.inference_mode():
        layer, x = SparseLinear(256, 256, 0.1), torch.randn(2, 256)
        layer(x)
        layer.index[200:] = 77
        assert "no index of" in refusal(layer, x)


def test_sizes_that_were_changed_by_hand_are_refused() -> None:
    for name in ("in_features", "out_features"):
        layer = SparseLinear(256, 256, 0.1)
        setattr(layer, name, 3)
        assert "not those of its weight, (256, 256)" in refusal(layer, torch.randn(2, layer.in_features))
    for name, value in {"in_channels": 9, "out_channels": 4, "groups": 1, "kernel_size": (2, 2)}.items():
        convolution = SparseConv2d(8, 8, 3, 0.5, groups=2)
        setattr(convolution, name, value)
        x = torch.randn(2, convolution.in_channels, 5, 5)
        assert "not those of its weight, (8, 4, 3, 3)" in refusal(convolution, x)


def test_a_bias_of_another_length_is_refused() -> None:
    layer, convolution = SparseLinear(64, 48, 0.1), SparseConv2d(3, 4, 3, 0.5)
    layer.bias = convolution.bias = nn.Parameter(torch.zeros(1))
    assert "bias has shape (1,), the sparse layer has 48 outputs" in refusal(layer, torch.randn(2, 64))
    assert "bias has shape (1,), the sparse layer has 4 outputs" in refusal(convolution, torch.randn(2, 3, 5, 5))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_an_imaginary_part_is_not_dropped() -> None:
    layer = SparseLinear(20, 10, 0.3).to(torch.complex64)
    assert "cannot hold torch.complex64" in refusal(layer, torch.randn(2, 20, dtype=torch.complex64))


# -- sizes --


@pytest.mark.parametrize("bad", [1.5, "a", 0, -1, True, None, math.nan])
def test_sizes_that_cannot_be(bad: Any) -> None:
    expected = f"={bad!r}: expected a whole number of 1 or more"
    assert refusal(SparseLinear, bad, 2, 0.5) == f"in_features{expected}"
    assert refusal(SparseLinear, 2, bad, 0.5) == f"out_features{expected}"
    assert refusal(SparseConv2d, bad, 4, 3, 0.5) == f"in_channels{expected}"
    assert refusal(SparseConv2d, 4, 4, 3, 0.5, groups=bad) == f"groups{expected}"


def test_kernel_sizes_that_cannot_be() -> None:
    for bad in (1.5, "ab", (1.5, 2), None):
        assert "expected one whole number from 1 on, or 2 of them" in refusal(SparseConv2d, 3, 4, bad, 0.5)
    assert SparseConv2d(3, 4, np.int64(3), 0.5).kernel_size == (3, 3)
    assert "a kernel of 33124 entries" in refusal(SparseConv2d, 1, 2, 182, 0.1)


def test_an_index_that_fits_no_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(sparse, "build", build)
    assert "needs an index of 256 GiB" in refusal(SparseLinear, 2**31, 2**31, 1e-19)


# -- inputs --


@pytest.mark.parametrize("make", [lambda: SparseLinear(20, 10, 0.3), lambda: SparseConv2d(3, 4, 3, 0.3)])
def test_inputs_that_are_no_ordinary_tensors(make: Callable[[], nn.Module]) -> None:
    layer, x = make(), torch.randn(2, 20)
    assert "the input is a ndarray; expected a tensor" in refusal(layer, x.numpy())
    assert "the input is a list; expected a tensor" in refusal(layer, x.tolist())
    assert "the input is a torch.sparse_coo tensor" in refusal(layer, x.to_sparse())
    if torch.backends.mkldnn.is_available():
        assert "the input is a torch._mkldnn tensor" in refusal(layer, x.to_mkldnn())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    rows: list[Tensor] = [torch.randn(2, 20), torch.randn(3, 20)]
    for layout in (torch.strided, torch.jagged):
        x = torch.nested.nested_tensor(rows, layout=layout)
        assert "the input is a nested tensor" in refusal(SparseLinear(20, 10, 0.3), x)
