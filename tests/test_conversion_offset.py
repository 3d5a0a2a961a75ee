"""Networks with offsets: `convert` puts them in, `sparsify` trains S masked and sparse alike, files hold no D."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import checkpoint, methods
from gossamer.errors import AttachError, CheckpointError, ConfigError, TargetError
from gossamer.nn import OffsetConv2d, OffsetLinear, PackedActivation, SparseWeight, conversion_report
from gossamer.offsets import DCT, Identity, Offset
from gossamer.sparse_methods import refusal
from gossamer.topology import Support

from .laws.executions import close, data, pair, same_supports
from .laws.settings import batches, convnet, mlp, train_step
from .nn.near import assert_near
from .nn.test_offset_modules import Drawn
from .test_conversion import PLAIN, STEPS, built

METHOD = methods.static(0.3)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def offset_mlp() -> nn.Module:
    return gossamer.convert(mlp(), offset=DCT())


def offset_convnet() -> nn.Module:
    return gossamer.convert(convnet(), offset=DCT())


def shaken(model: nn.Module) -> nn.Module:
    """With other numbers in all Parameters that train."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def layouts(make: Any = convnet) -> dict[str, nn.Module]:
    made = {
        "masked": gossamer.convert(make(), offset=DCT()),
        "sparse": gossamer.convert(make(), METHOD, offset=DCT()),
        "hybrid": gossamer.convert(make(), METHOD, offset=DCT(), layout="hybrid"),
    }
    return {name: shaken(model) for name, model in made.items()}


# -- whole networks --


def test_all_layers_get_an_offset_and_nothing_else() -> None:
    plain = convnet()
    biases = [plain[0].bias, plain[5].bias]
    x, state = torch.randn(18, 2, 6, 6), torch.get_rng_state()
    dense = gossamer.convert(copy.deepcopy(plain), offset=DCT())
    sparse = gossamer.convert(plain, METHOD, offset=DCT(), alpha=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert sparse is plain
    assert [type(m).__name__ for m in sparse] == [
        "OffsetConv2d",
        "Tanh",
        "OffsetConv2d",
        "OffsetConv2d",
        "Flatten",
        "OffsetLinear",
    ]
    assert sparse[0].sparse.bias is biases[0]
    assert sparse[5].sparse.bias is biases[1]
    assert_near(sparse(x), dense(x))
    alone = [
        OffsetConv2d(2, 8, 3, None, DCT(), 2, 1),
        OffsetConv2d(8, 8, 3, None, DCT(), 1, 1, 1, 8),
        OffsetConv2d(8, 6, 1),
        OffsetLinear(54, 4),
    ]
    for one, layer in zip(alone, [m for m in dense if hasattr(m, "alpha")], strict=True):
        assert torch.equal(one.offset_weight(), layer.offset_weight())


def test_the_report_tells_offsets() -> None:
    report = str(conversion_report(gossamer.convert(convnet(), METHOD, offset=DCT()))).splitlines()
    assert report[1].split()[:5] == ["0.sparse.weight", "dct", "+", "sparse", "8x2x3x3"]
    report = str(conversion_report(offset_convnet())).splitlines()
    assert report[-1].split() == ["5.sparse.weight", "dct", "+", "dense", "4x54", "216", "asked", "for"]


def test_activations_stay_packed_and_leave_plain() -> None:
    model = gossamer.convert(convnet(), METHOD, offset=DCT())
    kinds: list[type] = []
    for layer in model:
        layer.register_forward_hook(lambda m, i, o: kinds.append(type(o)))
    assert type(model(torch.randn(16, 2, 6, 6))) is Tensor
    assert set(kinds) == {PackedActivation}
    lone = gossamer.convert(nn.Linear(20, 30), METHOD, offset=DCT())
    assert isinstance(lone, OffsetLinear)
    assert type(lone(torch.randn(3, 20))) is Tensor


@pytest.mark.parametrize("layout", ["masked", "sparse", "hybrid"])
def test_back_is_a_plain_network_that_computes_the_same(layout: str) -> None:
    model, x = layouts()[layout].eval(), torch.randn(17, 2, 6, 6)
    y = model(x)
    masked = gossamer.convert(copy.deepcopy(model), layout="masked")
    assert {type(m.sparse) for m in masked if hasattr(m, "alpha")} == {nn.Conv2d, nn.Linear}
    assert_near(masked(x), y)
    again = gossamer.convert(
        masked, {f"{n}.weight": Support.full(m.weight_shape) for n, m in masked.named_children() if hasattr(m, "alpha")}
    )
    assert_near(again(x), y)
    plain = gossamer.convert(model, layout="dense")
    assert [type(m) for m in plain] == [type(m) for m in convnet()]
    assert_near(plain(x), y)
    assert not plain.training
    assert conversion_report(plain) is None
    assert not plain._forward_hooks


def test_hooks_and_modes_are_kept() -> None:
    model, seen = mlp().eval(), []
    handle = model[3].register_forward_hook(lambda m, i, o: seen.append((type(m), o.shape)))
    model[0].weight.requires_grad_(False)
    gossamer.convert(model, offset=DCT(), targets=["!0.weight"])
    model(torch.randn(2, 20))
    assert seen == [(OffsetLinear, (2, 12))]
    gossamer.convert(model, layout="dense")(torch.randn(2, 20))
    assert seen[1:] == [(nn.Linear, (2, 12))]
    handle.remove()
    model(torch.randn(2, 20))
    assert len(seen) == 2
    assert not any(module.training for module in model.modules())


def test_alpha_is_set_and_trained_or_not() -> None:
    model = gossamer.convert(mlp(), offset=DCT(), alpha=0.5, train_alpha=False)
    assert [float(m.alpha) for m in model if isinstance(m, OffsetLinear)] == [0.5] * 3
    assert not any("alpha" in name for name, _ in model.named_parameters())
    assert len(model.state_dict()) == len(offset_mlp().state_dict())


def test_drawn_offsets_depend_on_seed_and_name() -> None:
    def weights(seed: int, what: Any = None) -> list[Tensor]:
        twins = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        return [m.offset_weight() for m in gossamer.convert(twins, what, offset=Drawn(), seed=seed)]

    first, again, other = weights(3), weights(3, METHOD), weights(4)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.recurrent = nn.GRU(16, 16)
        self.line = nn.Conv1d(16, 16, 3)
        self.up = nn.ConvTranspose2d(16, 16, 3)
        self.wrapped = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.tied, self.twin = nn.Linear(16, 16), nn.Linear(16, 16)
        self.twin.weight = self.tied.weight


def test_what_takes_no_offset_stays_with_a_reason() -> None:
    for what in (None, METHOD):
        model = gossamer.convert(Mixed(), what, offset=DCT())
        report = conversion_report(model)
        assert report is not None
        rows = {c.name: c for c in report.choices}
        assert [c.name for c in report.choices if c.offset] == ["fine.sparse.weight"]
        assert "attention computes" in rows["attention.in_proj_weight"].why
        assert "no offset: recurrent" in rows["recurrent.weight_hh_l0"].why
        assert "no offset layer for Conv1d" in rows["line.weight"].why
        assert "ConvTranspose2d" in rows["up.weight"].why
        assert "reflect" in rows["wrapped.weight"].why
        assert "TransformerEncoderLayer" in rows["block.linear1.weight"].why
        assert rows["line.weight"].layout == ("dense" if what is None else "sparse")
    tied = gossamer.convert(Mixed(), offset=DCT(), targets=["fine.weight", "tied.weight"])
    assert "tied" in str(conversion_report(tied))


# -- names --


def test_supports_go_by_either_name() -> None:
    mask = torch.rand(16, 20) < 0.5
    for model in (mlp(), offset_mlp()):
        for name in ("0.weight", "0.sparse.weight"):
            offset = DCT() if isinstance(model[0], nn.Linear) else None
            made = gossamer.convert(copy.deepcopy(model), {name: mask}, offset=offset)
            assert torch.equal(made[0].sparse.support().mask, mask)
            assert type(made[3]) is type(model[3]), "what is not named stays"


def test_targets_go_by_either_name() -> None:
    for target in ("3.weight", "3.sparse.weight"):
        assert list(gossamer.sparsify(offset_mlp(), METHOD, targets=target).supports) == ["3.sparse.weight"]
    assert list(gossamer.sparsify(offset_mlp(), METHOD, targets=["!0.weight"]).supports) == [
        "3.sparse.weight",
        "5.sparse.weight",
    ]
    assert next(iter(gossamer.sparsify(offset_mlp(), METHOD, targets=OffsetLinear).supports)) == "0.sparse.weight"
    text = nn.ModuleDict({"embedding": nn.Embedding(7, 16), "body": nn.Linear(16, 16), "classifier": nn.Linear(16, 3)})
    text = gossamer.convert(text, offset=DCT())  # type: ignore[assignment]
    chosen = gossamer.sparsify(text, METHOD, targets="advances").supports
    assert list(chosen) == ["body.sparse.weight"], "a task head is one with an offset too"


def test_sparse_networks_take_offsets_later() -> None:
    model = gossamer.convert(mlp(), METHOD)
    supports = [m.support() for m in model if isinstance(m, SparseWeight)]
    gossamer.convert(model, offset=DCT())
    assert [m.sparse.support() for m in model if isinstance(m, OffsetLinear)] == supports
    x = torch.randn(16, 20)
    assert_near(model(x), offset_like(model)(x))
    assert type(model(x)) is Tensor


def offset_like(model: nn.Module) -> nn.Module:
    other = offset_mlp()
    own, mine = other.state_dict(), model.state_dict()
    other.load_state_dict({name: mine.get(name, value) for name, value in own.items()})
    return other


# -- training --


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
@pytest.mark.parametrize("name", ["rigl", "set"])
def test_masked_and_sparse_agree_for_a_hundred_steps(name: str, optimizer: str) -> None:
    kind = methods.rigl if name == "rigl" else methods.set_
    masked, sparse = pair(kind(0.3, every=7), optimizer, torch.float64, offset_mlp, steps=100)
    start = masked.sparsifier.supports
    same_supports(masked, sparse)
    for batch in data((20,), torch.float64, 100):
        masked.step(batch)
        sparse.step(batch)
        same_supports(masked, sparse)
    assert any(support != start[weight] for weight, support in masked.sparsifier.supports.items())
    close(sparse.tensors(), masked.tensors(), 1e-9)


@pytest.mark.parametrize("name", ["rigl", "set", "static"])
def test_convolutions_agree_too(name: str) -> None:
    method = {"rigl": methods.rigl, "set": methods.set_}.get(name)
    made = METHOD if method is None else method(0.3, every=3)
    masked, sparse = pair(made, "sgd-momentum", torch.float64, offset_convnet, steps=20)
    for batch in data((2, 6, 6), torch.float64, 20):
        masked.step(batch)
        sparse.step(batch)
    same_supports(masked, sparse)
    close(sparse.tensors(), masked.tensors(), 1e-9)


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_ties_among_weights_that_are_all_zero_are_resolved_alike(name: str) -> None:
    kind = methods.rigl if name == "rigl" else methods.set_
    method = kind(0.3, every=2)
    runs = pair(method, "sgd", torch.float64, offset_mlp, steps=9)
    for run in runs:
        run.optimizer.param_groups[0]["lr"] = 0.0
    start = runs[0].sparsifier.supports
    for batch in data((20,), torch.float64, 5):
        for run in runs:
            run.step(batch)
    assert not any(layer.sparse.weight.any() for layer in runs[0].model if isinstance(layer, OffsetLinear))
    same_supports(*runs)
    assert runs[0].sparsifier.supports != start
    assert {n: s.count for n, s in runs[0].sparsifier.supports.items()} == {n: s.count for n, s in start.items()}


@pytest.mark.parametrize("allocation", ["uniform", "erk", "equal_per_layer", "equal_per_filter"])
def test_counts_are_those_of_the_allocation(allocation: str) -> None:
    method = methods.static(0.1, allocation=allocation)
    masked = gossamer.sparsify(offset_convnet(), method, seed=3).supports
    layout: Any = "hybrid" if allocation == "equal_per_filter" else "sparse"
    model = gossamer.convert(convnet(), method, offset=DCT(), seed=3, layout=layout)
    sparse = {f"{n}.sparse.weight": m.sparse.support() for n, m in model.named_children() if hasattr(m, "alpha")}
    assert dict(masked) == sparse
    plain = gossamer.sparsify(convnet(), method).supports
    assert [s.count for s in plain.values()] == [s.count for s in masked.values()]
    assert sum(s.count for s in masked.values()) == round(0.1 * (144 + 72 + 48 + 216))


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("magnitude", "synflow")])
def test_every_method_trains_s(name: str) -> None:
    """Masked and, where sparse layers run it, sparse: the same training."""
    method = built(name)
    runs = [("masked", None), ("sparse", method)] if not refusal(method) else [("masked", None)]
    losses = []
    for _, what in runs:
        model = gossamer.convert(mlp(), offset=DCT())
        if what is not None and not isinstance(method.init, gossamer.foresight.Saliency):
            model = gossamer.convert(model, what, total_steps=STEPS, seed=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=STEPS, seed=3)
        losses.append([train_step(model, [optimizer], batch) for batch in batches((20,), 8)])
        assert all(n.endswith("sparse.weight") for n in sparsifier.supports)
        sparsifier.detach()
    assert losses[0] == pytest.approx(losses[-1], rel=1e-4)
    assert losses[0][-1] < float("inf")


def test_rigl_moves_nothing_in_layers_of_few_entries() -> None:
    """int(3 * 0.3) = 0: as published."""
    allocation = {"0.sparse.weight": 3 / 320, "3.sparse.weight": 40 / 192, "5.sparse.weight": 20 / 48}
    method = methods.rigl(63 / 560, allocation=allocation, every=2)
    model = offset_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, method, optimizer, total_steps=40)
    before = sparsifier.supports
    assert before["0.sparse.weight"].count == 3
    for batch in batches((20,), 12):
        train_step(model, [optimizer], batch)
    assert sparsifier.supports["0.sparse.weight"] == before["0.sparse.weight"]
    assert sparsifier.supports["3.sparse.weight"] != before["3.sparse.weight"]


# -- files --


@pytest.mark.parametrize("layout", ["masked", "sparse", "hybrid"])
@pytest.mark.parametrize("offset", [DCT(), Drawn()])
def test_model_files(tmp_path: Path, layout: str, offset: Offset) -> None:
    path = tmp_path / "model.safetensors"
    how: dict[str, Any] = {} if layout == "masked" else {"what": METHOD, "layout": layout}
    model = gossamer.convert(convnet(), offset=offset, seed=3, **how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = gossamer.sparsify(model, METHOD, optimizer, seed=3)
    for batch in batches((2, 6, 6), 3):
        train_step(model, [optimizer], batch)
    checkpoint.save_model(path, model, sparsifier)
    x = torch.randn(5, 2, 6, 6)
    for other in (gossamer.convert(convnet(9), offset=offset), gossamer.convert(convnet(9), METHOD, offset=offset)):
        state = checkpoint.load_model(path, other)
        assert_near(other(x), model(x))
        assert state["0.alpha"].item() == model[0].alpha.item() != 1
    with pytest.raises(CheckpointError, match=r"other offsets than this model has: 0 .* \(here "):
        checkpoint.load_model(path, gossamer.convert(convnet(), offset=Drawn() if offset == DCT() else DCT()))
    with pytest.raises(CheckpointError, match=r"it has in addition 0.alpha"):
        checkpoint.load_model(path, convnet())


def test_the_state_that_a_file_gives_knows_its_offsets(tmp_path: Path) -> None:
    path, model, x = tmp_path / "model.safetensors", nn.Sequential(OffsetLinear(8, 8), nn.Tanh()), torch.randn(5, 8)
    checkpoint.save_model(path, model)
    twin = nn.Sequential(OffsetLinear(8, 8, alpha=0.5), nn.Tanh())
    for state in (checkpoint.load_model(path), checkpoint.load_model(path, copy.deepcopy(twin))):
        with pytest.raises(RuntimeError, match=r"offset layer 0: the state is of DCT\(.*\), the layer has Identity"):
            nn.Sequential(OffsetLinear(8, 8, offset=Identity()), nn.Tanh()).load_state_dict(state)
        twin.load_state_dict(state)
        assert torch.equal(twin(x), model(x))


def test_training_goes_on_from_either_file(tmp_path: Path) -> None:
    path, method = tmp_path / "training.safetensors", methods.rigl(0.3, every=3)
    masked, sparse = pair(method, "adamw", torch.float64, offset_mlp, steps=40)
    everything = data((20,), torch.float64, 20)
    for batch in everything[:10]:
        masked.step(batch)
    checkpoint.save_training(path, model=masked.model, optimizers=masked.optimizer, sparsifier=masked.sparsifier)
    checkpoint.load_training(path, model=sparse.model, optimizers=sparse.optimizer, sparsifier=sparse.sparsifier)
    for batch in everything[10:]:
        masked.step(batch)
        sparse.step(batch)
    same_supports(masked, sparse)
    close(sparse.tensors(), masked.tensors(), 1e-9)


def test_files_hold_values_not_matrices(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    method = methods.static(0.001)
    model = gossamer.convert(
        nn.Sequential(nn.Linear(500, 500, bias=False), nn.Linear(500, 500, bias=False)), method, offset=DCT()
    )
    checkpoint.save_model(path, model)
    assert path.stat().st_size < 500 * 8 + 2500, "dense tensors would be two million bytes"


# -- refusals --


def refused(kind: type[Exception], *arguments: Any, **named: Any) -> str:
    with pytest.raises(kind) as caught:
        gossamer.convert(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arguments_that_cannot_be() -> None:
    dct = {"offset": DCT()}
    assert "offset is a str" in refused(ConfigError, mlp(), offset="dct")
    assert "alpha='x'" in refused(ConfigError, mlp(), alpha="x", **dct)
    assert "alpha=2.0, train_alpha=True are of an offset" in refused(ConfigError, mlp(), METHOD, alpha=2.0)
    assert "train_alpha=False are of an offset" in refused(ConfigError, mlp(), METHOD, train_alpha=False)
    assert "takes neither" in refused(ConfigError, mlp(), layout="dense", **dct)
    assert "takes neither" in refused(ConfigError, mlp(), METHOD, layout="masked")
    assert "holds offset layers already" in refused(ConfigError, offset_mlp(), **dct)
    assert "there are none" in refused(ConfigError, mlp(), layout="hybrid", **dct)
    assert "leave targets out" in refused(
        ConfigError, mlp(), {"0.weight": torch.ones(16, 20) > 0}, targets="dctps", **dct
    )
    assert "no layer can take an offset: weight" in refused(ConfigError, nn.Conv1d(4, 4, 3), **dct)
    assert "did you mean" in refused(TargetError, mlp(), {"0.weigth": torch.ones(16, 20) > 0}, **dct)
    sparsified = offset_mlp()
    gossamer.sparsify(sparsified, METHOD)
    assert "sparsified already" in refused(AttachError, sparsified, METHOD)


@pytest.mark.parametrize("number", range(4))
def test_what_raises_changes_nothing(number: int) -> None:
    what: Any = [methods.static(1e-4), {"0.weight": torch.ones(3, 3) > 0}, 0.1, methods.rewire(0.2)][number]
    model = mlp()
    before, modules = copy.deepcopy(model.state_dict()), list(model)
    refused(ConfigError, model, what, offset=DCT())
    assert list(model) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
