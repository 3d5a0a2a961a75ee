"""Layers of blocks compute, train, rewire, load and save as the masked layer of the same support does."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import methods
from gossamer.checkpoint import load_model, save_model
from gossamer.errors import ConfigError
from gossamer.kernels import sparse
from gossamer.nn import BlockSparseLinear, conversion_report, doubly_sparse
from gossamer.topology import Support
from gossamer.topology.structures import Block


def a_support(rows: int, columns: int, side: int, seed: int = 0, density: float = 0.4) -> Support:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(-(-rows // side), -(-columns // side), generator=generator) < density
    chosen[0, 0] = True
    mask = chosen.repeat_interleave(side, 0).repeat_interleave(side, 1)[:rows, :columns]
    return Support.from_mask(mask.contiguous())


def a_layer(rows: int = 21, columns: int = 34, side: int = 8, **options: Any) -> BlockSparseLinear:
    torch.manual_seed(0)
    return BlockSparseLinear(columns, rows, block=side, support=a_support(rows, columns, side), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(34,), (5, 34), (2, 3, 34), (0, 34), (4, 0, 34)])
def test_equals_the_dense_layer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = a_layer(dtype=dtype)
    dense = layer.dense_module()
    x = torch.randn(*shape).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    close = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y, dense(x), rtol=close, atol=close)
    assert torch.equal(layer.to_dense() != 0, layer.support().mask)
    assert layer.count == layer.support().count == len(layer.positions())
    assert torch.equal(layer.to_dense().flatten()[layer.ascending()[0]], layer.values.flatten()[layer.ascending()[1]])


def elsewhere(layer: nn.Module, x: Tensor, patch: pytest.MonkeyPatch) -> list[Tensor]:
    """Output and gradients, computed by rows as on another device."""
    with patch.context() as patched:
        patched.setattr(BlockSparseLinear, "packs", False)
        return output_and_gradients(layer, x)


def output_and_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    layer.zero_grad()
    given = x.clone().requires_grad_()
    y = layer(given)
    y.square().sum().backward()
    return [y.detach(), given.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("shape", [(34,), (2, 3, 34), (0, 34)])
def test_rows_give_what_packed_activations_do(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = a_layer(), torch.randn(shape)
    for mine, its in zip(elsewhere(layer, x, monkeypatch), output_and_gradients(layer, x), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y, dx, *_ = elsewhere(layer, x, monkeypatch)
    assert (y.dtype, dx.dtype, layer.values.grad.dtype) == (torch.float32,) * 3
    monkeypatch.setattr(BlockSparseLinear, "packs", False)
    with pytest.raises(ConfigError, match=r"the input is torch.int64"):
        layer(torch.zeros(2, 34, dtype=torch.int64))
    layer.index[0] = 7
    with pytest.raises(ConfigError, match="damaged"):
        layer(x)


def test_rows_beside_an_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    method, x = methods.static(0.4, structure=Block(8)), torch.randn(5, 34)
    layer = gossamer.convert(nn.Linear(34, 21), method, offset=gossamer.offsets.DCT(), layout="block")
    assert isinstance(layer.sparse, BlockSparseLinear)
    for mine, its in zip(elsewhere(layer, x, monkeypatch), output_and_gradients(layer, x), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [3, 8])
def test_a_damaged_index_is_refused(side: int) -> None:
    """By the reference too."""
    layer = a_layer(side=side)
    layer(torch.zeros(2, 34))
    layer.index[0] = -1
    with pytest.raises(ConfigError, match="damaged"):
        layer(torch.zeros(2, 34))


def test_a_density_draws_blocks_and_starts_as_sparse_layers_do() -> None:
    layer = BlockSparseLinear(256, 128, density=0.25, block=16)
    assert layer.values.shape == (32, 16, 16)
    assert Block(16).is_valid(layer.support().mask)
    fan_in = layer.support().mask.sum(1)
    bound = fan_in.double().rsqrt().unsqueeze(1) * (1 + 1e-6)
    assert (layer.to_dense().abs() <= bound).all()
    assert layer.to_dense().abs().max() > 0.9 * bound[fan_in > 0].min()


def test_other_forms() -> None:
    dense = nn.Linear(34, 21)
    support = a_support(21, 34, 8)
    layer = BlockSparseLinear.from_dense(dense, support, 8)
    assert layer.bias is dense.bias
    assert torch.equal(layer.to_dense(), dense.weight * support.mask)
    flat = support.index.flip(0)
    again = BlockSparseLinear.from_coo(flat, dense.weight.detach().flatten()[flat], (21, 34), dense.bias, block=8)
    assert torch.equal(again.values, layer.values)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.values, layer.values)
    assert twin.values is not layer.values
    meta = BlockSparseLinear(34, 21, 0.5, 8, device="meta")
    meta.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(meta.to_dense(), layer.to_dense())


def test_a_support_moves_values_and_a_state_dict_its_support() -> None:
    layer, other = a_layer(), a_support(21, 34, 8, seed=5)
    before, values = layer.to_dense().detach(), layer.values
    common = layer.support().mask & other.mask
    moves = layer.set_support(other)
    assert layer.support() == other
    assert layer.values is values
    assert torch.equal(layer.to_dense(), before * common)
    assert int((moves.source >= 0).sum()) + len(moves.born) == len(layer.values)
    third = a_layer()
    third.load_state_dict(layer.state_dict())
    assert third.support() == other
    state = layer.state_dict()
    state["index"] = state["index"].flip(0)
    with pytest.raises(RuntimeError, match=r"block-sparse layer at the root: .*damaged"):
        third.load_state_dict(state)
    state = layer.state_dict()
    state["values"] = torch.ones_like(state["values"])
    with pytest.raises(RuntimeError, match="not 0 beyond the edges"):
        third.load_state_dict(state)
    with pytest.raises(RuntimeError, match="expected floating"):
        BlockSparseLinear(34, 21, 0.5, block=16).load_state_dict(layer.state_dict())
    assert third.support() == other


def test_what_is_refused() -> None:
    mask = a_support(21, 34, 8).mask.clone()
    mask[0, 0] = False
    with pytest.raises(ConfigError, match=r"does not consist of whole blocks of 8 x 8"):
        BlockSparseLinear(34, 21, block=8, support=Support.from_mask(mask))
    with pytest.raises(ConfigError, match="block=0"):
        BlockSparseLinear(34, 21, 0.5, block=0)
    with pytest.raises(ConfigError, match="block=1025"):
        BlockSparseLinear(34, 21, 0.5, block=1025)
    with pytest.raises(ConfigError, match=r"dtype=torch.int32"):
        BlockSparseLinear(34, 21, 0.5, dtype=torch.int32)
    with pytest.raises(TypeError, match="stride"):
        BlockSparseLinear.from_coo(torch.arange(64), torch.ones(64), (8, 8), block=8, stride=2)
    with pytest.raises(ConfigError, match=r"the input is torch.float64"):
        a_layer(device="meta")(torch.zeros(2, 34, device="meta", dtype=torch.float64))
    with pytest.raises(ConfigError, match="needs a density"):
        BlockSparseLinear(34, 21)
    with pytest.raises(ConfigError, match=r"expected \(\.\.\., 34\)"):
        a_layer()(torch.zeros(2, 33))
    with pytest.raises(ConfigError, match="is of layout"):
        gossamer.convert(nn.Linear(8, 8), methods.static(0.5), block=8)
    with pytest.raises(ConfigError, match="no structure of blocks"):
        gossamer.convert(nn.Linear(8, 8), methods.static(0.5), layout="block")
    with pytest.raises(ConfigError, match="doubly sparse"):
        doubly_sparse(nn.Sequential(a_layer()))


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 52), nn.ReLU(), nn.Linear(52, 36), nn.ReLU(), nn.Linear(36, 20))


def train(model: nn.Module, method: Any, optimizer: str, steps: int = 12) -> Any:
    step_by: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    rate = {"lr": 0.05, "momentum": 0.9} if optimizer == "sgd" else {"lr": 1e-3}
    trainer = step_by(model.parameters(), weight_decay=1e-2, **rate)
    sparsifier = gossamer.sparsify(model, method, trainer, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(32, 40, generator=generator)
        trainer.zero_grad()
        (model(x) - x[:, :20]).square().mean().backward()
        trainer.step()
    return sparsifier


def weights(model: nn.Module) -> list[Tensor]:
    layers = [m for m in model if isinstance(m, nn.Linear | BlockSparseLinear)]
    return [m.to_dense() if isinstance(m, BlockSparseLinear) else m.weight for m in layers]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["static", "set_", "rigl"])
def test_training_is_that_of_masked_weights(name: str, optimizer: str) -> None:
    """Rewiring too, with slots that follow."""
    made = {
        "static": methods.static(0.4),
        "set_": methods.set_(0.4, every=4, fraction=0.4, split_signs=False),
        "rigl": methods.rigl(0.4, every=4, fraction=0.4),
    }
    method = replace(made[name], structure=Block(8, p=2.0 if optimizer == "sgd" else torch.inf))
    masked, blocks = a_model(), gossamer.convert(a_model(), method, layout="block", total_steps=12)
    assert all(isinstance(blocks[at], BlockSparseLinear) for at in (0, 2, 4))
    one, other = (train(model, method, optimizer) for model in (masked, blocks))
    for mine, its in zip(one.supports.values(), other.supports.values(), strict=True):
        assert mine == its
    for mine, its in zip(weights(masked), weights(blocks), strict=True):
        torch.testing.assert_close(its, mine, rtol=1e-4, atol=1e-5)
    assert other.summary().active == one.summary().active


def test_growth_from_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer on another device keeps what gradients of inactive blocks can be had from, too."""
    method = replace(methods.rigl(0.4, every=4, fraction=0.4), structure=Block(8))
    models = [gossamer.convert(a_model(), method, layout="block", total_steps=12) for _ in range(2)]
    one = train(models[0], method, "sgd").supports
    monkeypatch.setattr(BlockSparseLinear, "packs", False)
    assert dict(train(models[1], method, "sgd").supports) == dict(one)
    for mine, its in zip(weights(models[0]), weights(models[1]), strict=True):
        torch.testing.assert_close(its, mine, rtol=1e-4, atol=1e-5)


def test_a_choice_over_all_layers_counts_whole_blocks() -> None:
    """Their rounding is no other density."""
    method = replace(methods.magnitude(0.4), structure=Block(8))
    masked = gossamer.sparsify(a_model(), method).supports
    blocks = gossamer.sparsify(gossamer.convert(a_model(), method, layout="block"), method).supports
    assert sum(support.count for support in masked.values()) != round(0.4 * sum(s.numel for s in masked.values()))
    assert dict(masked) == dict(blocks)
    with pytest.raises(ConfigError, match="the density makes it"):
        gossamer.sparsify(gossamer.convert(a_model(), method, layout="block"), replace(method, density=0.6))


def test_a_layer_of_blocks_beside_a_dense_one() -> None:
    """What it leaves of the density, the other holds in whole blocks."""
    model = nn.Sequential(a_layer(), nn.ReLU(), nn.Linear(21, 20))
    held = model[0].support()
    supports = gossamer.sparsify(model, replace(methods.static(0.4), structure=Block(8))).supports
    assert supports["0.weight"] == held
    assert Block(8).is_valid(supports["2.weight"].mask)
    assert abs(sum(s.count for s in supports.values()) - 0.4 * sum(s.numel for s in supports.values())) <= 64


def test_convert_and_back() -> None:
    method = methods.static(0.4, structure=Block(8))
    model = a_model()
    x = torch.randn(18, 40)
    supports = gossamer.sparsify(masked := copy.deepcopy(model), method).supports
    gossamer.convert(model, method, layout="block")
    assert {c.layout for c in conversion_report(model).choices} == {"block"}
    torch.testing.assert_close(model(x), masked(x))
    assert type(model(x)) is Tensor
    given = gossamer.convert(a_model(), dict(supports), layout="block", block=8)
    assert torch.equal(given[0].values, model[0].values)
    gossamer.convert(model, layout="dense")
    assert torch.equal(model[0].weight, masked[0].weight)


def test_files_are_those_of_masked_models(tmp_path: Path) -> None:
    method = methods.static(0.4, structure=Block(8))
    model = gossamer.convert(a_model(), method, layout="block")
    save_model(tmp_path / "blocks.safetensors", model)
    dense = a_model()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    load_model(tmp_path / "blocks.safetensors", dense)
    for mine, its in zip(weights(dense), weights(model), strict=True):
        assert torch.equal(mine, its)
    other = gossamer.convert(a_model(), {"0.weight": a_support(52, 40, 8, seed=9)}, layout="block", block=8)
    gossamer.convert(other, layout="dense")
    again = gossamer.convert(other, methods.static(0.3, structure=Block(8)), layout="block")
    load_model(tmp_path / "blocks.safetensors", again)
    for mine, its in zip(weights(again), weights(model), strict=True):
        assert torch.equal(mine, its)


def test_packed_activations_go_in_and_out() -> None:
    layer = a_layer()
    x = torch.randn(20, 34)
    layer.keep_packed = True
    y = layer(x)
    assert type(y).__name__ == "PackedActivation"
    layer.keep_packed = False
    torch.testing.assert_close(y.unpacked(), layer(x))
    assert sparse.pack(x).shape == (2, 34, 16)


@pytest.mark.slow
def test_compiled_and_exported() -> None:
    layer, x = a_layer(), torch.randn(20, 34)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))
