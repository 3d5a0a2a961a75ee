"""Checkpoints: bit-exact round trips, sparse storage, one file that is whole or absent, and plain errors."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import random
import resource
import socket
import struct
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer
from gossamer import _safetensors, checkpoint
from gossamer._packing import pack, unpack
from gossamer.errors import CheckpointError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
reusing_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def identical(a: Any, b: Any) -> bool:
    """Equal in type and in every bit, in order."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape) and raw(a) == raw(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, dict):
        return identical(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def raw(t: Tensor) -> bytes:
    return t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def tensors(draw: Any) -> Tensor:
    """Any bits at all, so also NaN payloads, -0.0 and denormals; sometimes strided, sometimes empty."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    t = flat.reshape(shape)
    return t.transpose(0, -1) if t.ndim > 1 and draw(st.booleans()) else t


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | tensors()
keys = st.text(max_size=4) | st.integers(-3, 3) | st.sampled_from(["$tensor", "$", "a/b", "__metadata__", "\ud800"])
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


# -- laws ------------------------------------------------------------------------------------------------------------


@reusing_folder
@given(trees)
def test_any_tree_comes_back_bit_for_bit(tmp_path: Path, tree: Any) -> None:
    checkpoint.save(tmp_path / "x", tree, metadata={"of": "a test"})
    contents = checkpoint.load(tmp_path / "x")
    assert identical(contents.state, tree)
    assert (contents.kind, contents.metadata) == ("state", {"of": "a test"})
    names = [row["name"] for row in checkpoint.describe(tmp_path / "x")["rows"]]
    assert sorted(names) == sorted(load_file(tmp_path / "x"))  # nothing sparse: an ordinary safetensors file


@reusing_folder
@given(st.data())
def test_masked_tensors_come_back_bit_for_bit_and_never_cost_more(tmp_path: Path, data: Any) -> None:
    shape = data.draw(st.sampled_from([(3, 5), (40,), (7, 11, 3), (64, 33)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    mask = torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
    state = {}
    for i, dtype in enumerate(data.draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4))):
        values = (torch.randn(shape, generator=generator) * 9).to(dtype)
        kind = data.draw(st.sampled_from(["sparse", "dense", "minus zero", "nan", "active zeros"]))
        t = values if kind == "dense" else torch.where(mask, values, torch.zeros((), dtype=dtype))
        if kind == "minus zero" and dtype.is_floating_point:
            t = torch.where(mask, values, torch.tensor(-0.0, dtype=dtype))
        if kind == "nan" and dtype.is_floating_point:
            t = torch.where(mask, torch.tensor(float("nan"), dtype=dtype), t)
        if kind == "active zeros":
            t = torch.zeros_like(t)
        state[f"t{i}"] = t
    checkpoint.save(tmp_path / "x", state, masks=dict.fromkeys(state, mask))
    assert identical(checkpoint.load(tmp_path / "x").state, state)
    about = checkpoint.describe(tmp_path / "x")
    assert about["totals"]["bytes"] <= about["totals"]["dense_bytes"]
    stored = sum(t.nbytes for t in load_file(tmp_path / "x").values())
    assert about["totals"]["bytes"] == stored
    assert about["totals"]["dense_bytes"] == sum(t.nbytes for t in state.values())


def test_pack_and_unpack_without_a_file() -> None:
    tree = {"a": [1, (2.5, None)], 7: {"b": torch.arange(3)}, "$x": -0.0}
    flat, skeleton = pack(tree)
    assert list(flat) == ["7/b"]
    assert identical(unpack(flat, json.loads(json.dumps(skeleton))), tree)


# -- what a tree may hold --------------------------------------------------------------------------------------------


def test_dict_subclasses_and_counters(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", {"o": OrderedDict(b=1, a=2), "milestones": Counter({30: 1, 80: 2})})
    state = checkpoint.load(tmp_path / "x").state
    assert list(state["o"].items()) == [("b", 1), ("a", 2)]
    assert sorted(state["milestones"].elements()) == [30, 80, 80]


def test_one_tensor_in_two_places_is_stored_once_and_stays_one(tmp_path: Path) -> None:
    t = torch.randn(100)
    square = t.view(10, 10)
    checkpoint.save(tmp_path / "x", {"a": t, "b": [t], "view": t[:50], "square": square, "turned": square.T})
    state = checkpoint.load(tmp_path / "x").state
    assert state["a"] is state["b"][0]
    assert torch.equal(state["view"], t[:50])
    assert torch.equal(state["turned"], square.T)
    assert checkpoint.describe(tmp_path / "x")["totals"]["bytes"] == 4 * 350


def test_a_loaded_tensor_does_not_depend_on_the_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", torch.arange(1000))
    t = checkpoint.load(tmp_path / "x").state
    with open(tmp_path / "x", "r+b") as file:  # in place: the same inode that was read
        file.write(b"\0" * (tmp_path / "x").stat().st_size)
    assert torch.equal(t, torch.arange(1000))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": [0, {1}]}}, r"cannot save a/b/1, a builtins\.set: a checkpoint holds"),
        ({"x": np.float64(1.0)}, r"cannot save x, a numpy\.float64: .*; write float\(\.\.\.\)"),
        ({"x": np.zeros(2)}, r"cannot save x, a numpy\.ndarray"),
        ({"f": len}, r"cannot save f, a builtins\.builtin_function_or_method"),
        ({(1, 2): 0}, r"cannot save the state itself: its key \(1, 2\) is neither a str nor an int"),
        ({"d": {True: 0}}, r"cannot save d: its key True"),
        ({"t": torch.zeros(2, dtype=torch.complex128)}, r"cannot save t, a tensor of torch\.complex128"),
        ({"t": torch.zeros(2, device="meta")}, r"cannot save t, a tensor on the meta device"),
        ({"t": torch.zeros(2, 2).to_sparse()}, r"cannot save t, a tensor of layout torch\.sparse_coo"),
        ({"t": nn.UninitializedParameter()}, r"cannot save t, a tensor of class UninitializedParameter"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_path(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.save(tmp_path / "x", tree)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_state_that_contains_itself(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="contains itself"):
        checkpoint.save(tmp_path / "x", loop)


def test_metadata_holds_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"metadata holds a tensor \(w\)"):
        checkpoint.save(tmp_path / "x", {}, metadata={"w": torch.ones(1)})


# -- sparse storage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("active", "stored", "size"),
    [
        (5, "gaps8", 5 * 4 + 5),
        (100, "gaps8", 100 * 4 + 100),
        (200, "bits", 200 * 4 + 1000 // 8),
        (980, "dense", 4000),
    ],
)
def test_the_smallest_form_is_chosen(tmp_path: Path, active: int, stored: str, size: int) -> None:
    t = torch.zeros(1000)
    t[(torch.arange(active) * (1000 / active)).long()] = 1.0  # gaps below 255 each
    checkpoint.save(tmp_path / "x", {"w": t}, masks={"w": t != 0})
    row = checkpoint.describe(tmp_path / "x")["rows"][0]
    assert (row["stored"], row["bytes"]) == (stored, size)
    assert row["count"] == (active if stored != "dense" else 1000)
    assert identical(checkpoint.load(tmp_path / "x").state["w"], t)


@pytest.mark.parametrize("dtype", _safetensors.DTYPES, ids=str)
def test_every_type_can_be_stored_sparse(tmp_path: Path, dtype: torch.dtype) -> None:
    t = torch.zeros(200).to(dtype)
    t[::40] = torch.ones(5).to(dtype)
    checkpoint.save(tmp_path / "x", {"w": t}, masks={"w": t != 0})
    assert identical(checkpoint.load(tmp_path / "x").state["w"], t)
    row = checkpoint.describe(tmp_path / "x")["rows"][0]
    assert (row["count"], row["dtype"]) == (5, str(dtype).removeprefix("torch."))


def test_a_shared_mask_is_stored_once(tmp_path: Path) -> None:
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[::5] = True
    state = {name: torch.where(mask, torch.rand(1000), 0.0) for name in "abc"}
    checkpoint.save(tmp_path / "x", state, masks=dict.fromkeys("abc", mask))
    assert [row["bytes"] for row in checkpoint.describe(tmp_path / "x")["rows"]] == [925, 800, 800]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": torch.ones(4, dtype=torch.bool)}, r"mask of w has shape \(4,\), the tensor has \(3,\)"),
        ({"v": torch.ones(3, dtype=torch.bool)}, "given for v, but the state has no such tensor"),
        ({"w": torch.ones(3)}, "expected a boolean tensor or a Support"),
        ({"w": "mask"}, "a mask is str"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, masks: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(tmp_path / "x", {"w": torch.ones(3)}, masks=masks)


# -- models ----------------------------------------------------------------------------------------------------------


def net(seed: int = 0, hidden: int = 64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 10))


def test_a_sparse_model_file_is_small_and_loads_into_a_plain_dense_model(tmp_path: Path) -> None:
    model = net(hidden=1024)
    sparsifier = gossamer.sparsify(model, gossamer.methods.static(0.05))
    checkpoint.save_model(tmp_path / "s", model, sparsifier, metadata={"data": "digits"})
    checkpoint.save(tmp_path / "d", dict(model.state_dict()))
    assert (tmp_path / "s").stat().st_size < 0.25 * (tmp_path / "d").stat().st_size
    plain = net(seed=5, hidden=1024)
    state = checkpoint.load_model(tmp_path / "s", plain)
    assert identical(dict(plain.state_dict()), dict(model.state_dict()))
    assert list(state) == list(model.state_dict())
    x = torch.randn(8, 32)
    assert torch.equal(plain.eval()(x), model.eval()(x))
    about = checkpoint.describe(tmp_path / "s")
    rows = {row["name"]: row for row in about["rows"]}
    assert about["metadata"] == {"model": "Sequential", "method": "static", "step": 0, "data": "digits"}
    for name, support in sparsifier.supports.items():
        assert (rows[name]["count"], rows[name]["shape"]) == (support.count, tuple(support.shape))
    assert rows["0.bias"]["stored"] == "dense"
    assert about["totals"]["file_bytes"] == (tmp_path / "s").stat().st_size


def test_without_a_sparsifier_exact_zeros_are_left_out(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[torch.rand(64, 32) < 0.9] = 0.0
    checkpoint.save_model(tmp_path / "x", model)
    rows = {row["name"]: row for row in checkpoint.describe(tmp_path / "x")["rows"]}
    assert rows["0.weight"]["count"] == int((model[0].weight != 0).sum())
    assert rows["3.weight"]["stored"] == "dense"
    assert identical(checkpoint.load_model(tmp_path / "x"), dict(model.state_dict()))


def test_tied_weights_and_wrapped_models(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    wrapped = torch.compile(model, backend="eager")
    checkpoint.save_model(tmp_path / "x", wrapped)
    fresh = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    assert list(checkpoint.load_model(tmp_path / "x", fresh)) == list(model.state_dict())
    assert checkpoint.describe(tmp_path / "x")["totals"]["entries"] == 16 * 16 + 2 * 16
    again = torch.compile(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), backend="eager")
    checkpoint.load_model(tmp_path / "x", again)
    assert torch.equal(again._orig_mod[1].weight, model[0].weight)


def test_a_model_that_is_not_sparse_is_refused(tmp_path: Path) -> None:
    model = net()
    sparsifier = gossamer.sparsify(model, gossamer.methods.static(0.2))
    with torch.no_grad():
        model[3].weight.add_(1.0)
    with pytest.raises(CheckpointError, match=r"3\.weight is not zero off its support.*restore\(\)"):
        checkpoint.save_model(tmp_path / "x", model, sparsifier)
    assert not (tmp_path / "x").exists()


def test_a_sparsifier_of_another_model(tmp_path: Path) -> None:
    run = Training("set", 0)
    for other in (net(hidden=65), nn.Linear(32, 64)):
        with pytest.raises(
            CheckpointError, match=r"sparsifier is of another model: this one has no 0\.weight \(64, 32\)"
        ):
            checkpoint.save_model(tmp_path / "x", other, run.sparsifier)
        with pytest.raises(CheckpointError, match="sparsifier is of another model"):
            checkpoint.save_training(tmp_path / "x", model=other, optimizers=run.optimizer, sparsifier=run.sparsifier)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            net(hidden=65),
            r"\(of model lenet\) does not fit this Sequential: of another shape are 0\.weight \(64, 32\) \(here",
        ),
        (nn.Sequential(nn.Linear(32, 64)), r"it has in addition 1\.weight, 1\.bias, 1\.running_mean and 4 more"),
        (nn.Sequential(*net(), nn.Linear(10, 2)), r"does not fit this Sequential: it lacks 4\.weight, 4\.bias"),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path: Path, other: nn.Module, message: str) -> None:
    checkpoint.save_model(tmp_path / "x", net(), metadata={"model": "lenet"})
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_model(tmp_path / "x", other)
    assert identical(dict(before), dict(other.state_dict()))


# -- training --------------------------------------------------------------------------------------------------------

METHODS: dict[str, Callable[[], Any]] = {
    "rewire": lambda: gossamer.methods.rewire(0.2, every=2, exploit=gossamer.Reset(5)),
    "set": lambda: gossamer.methods.set_(0.2, every=3),
    "rigl": lambda: gossamer.methods.rigl(0.2, every=3),
    "deepr": lambda: gossamer.methods.deepr(0.2, temperature=1e-3),  # signs
    "dsr": lambda: gossamer.methods.dsr(0.2, every=2, threshold=0.02, grace=5),  # threshold and ages
    "snfs": lambda: gossamer.methods.snfs(0.2, every=3),
    "topkast": lambda: gossamer.methods.topkast(0.2, every=2),  # what is trained
    "sr-ste": lambda: gossamer.methods.sr_ste(0.5, group=2),
    "srigl": lambda: gossamer.methods.srigl(0.2, every=3),
    "granet": lambda: gossamer.methods.granet(0.2, every=3),
    "gmp": lambda: gossamer.methods.gmp(0.2, every=3, scope="global"),
    "one-shot": lambda: gossamer.methods.one_shot(0.2, at=9),
}


class Training:
    """A small run: model, optimizer, schedule, sparsifier."""

    def __init__(self, method: str | None, seed: int, density: float | None = None) -> None:
        self.model = net(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [4, 9])
        self.sparsifier = None
        if method:
            chosen = METHODS[method]() if density is None else gossamer.methods.static(density)
            self.sparsifier = gossamer.sparsify(self.model, chosen, self.optimizer, total_steps=20, seed=1)

    def steps(self, first: int, last: int) -> None:
        for t in range(first, last):
            generator = torch.Generator().manual_seed(t)
            x = torch.randn(16, 32, generator=generator)
            y = torch.randint(0, 10, (16,), generator=generator)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.schedule.step()

    def save(self, path: Path) -> None:
        extra = {"schedule": self.schedule.state_dict(), "rng": torch.get_rng_state(), "history": [(1, 0.5)]}
        checkpoint.save_training(
            path, model=self.model, optimizers=self.optimizer, sparsifier=self.sparsifier, extra=extra
        )

    def load(self, path: Path) -> Any:
        extra = checkpoint.load_training(
            path, model=self.model, optimizers=[self.optimizer], sparsifier=self.sparsifier
        )
        self.schedule.load_state_dict(extra["schedule"])
        return extra


@pytest.mark.parametrize("method", [*METHODS, None])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, method: str | None) -> None:
    whole, first, resumed = Training(method, 0), Training(method, 0), Training(method, 9)
    whole.steps(0, 16)
    first.steps(0, 7)
    first.save(tmp_path / "x")
    extra = resumed.load(tmp_path / "x")
    assert extra["history"] == [(1, 0.5)]
    assert torch.equal(extra["rng"], torch.get_rng_state())
    assert identical(first.optimizer.state_dict(), resumed.optimizer.state_dict())
    resumed.steps(7, 16)
    assert identical(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert identical(whole.optimizer.state_dict(), resumed.optimizer.state_dict())


def test_a_training_file_holds_weights_slots_and_supports_once(tmp_path: Path) -> None:
    run = Training("set", 0)
    run.steps(0, 7)
    run.save(tmp_path / "x")
    about = checkpoint.describe(tmp_path / "x")
    rows = {row["name"]: row for row in about["rows"]}
    for number, (name, _) in enumerate(run.model.named_parameters()):
        if name in run.sparsifier.supports:
            support = run.sparsifier.supports[name]
            for path in (
                f"model/{name}",
                f"optimizers/0/state/{number}/exp_avg",
                f"optimizers/0/state/{number}/exp_avg_sq",
            ):
                assert rows[path]["count"] == support.count
                assert rows[path]["bytes"] == 4 * support.count  # the sparsifier's own support is used
    assert about["totals"]["bytes"] == sum(t.nbytes for t in load_file(tmp_path / "x").values())
    assert identical(checkpoint.load_model(tmp_path / "x"), dict(run.model.state_dict()))


def test_live_methods_keep_their_dense_state(tmp_path: Path) -> None:
    run = Training("rewire", 0)
    run.steps(0, 3)
    run.save(tmp_path / "x")
    rows = {row["name"]: row for row in checkpoint.describe(tmp_path / "x")["rows"]}
    assert rows["model/0.weight"]["stored"] == "bits"
    assert rows["optimizers/0/state/0/exp_avg"]["stored"] == "dense"
    assert rows["sparsifier/trainables/0.weight"]["count"] == 64 * 32


def test_training_files_that_do_not_fit(tmp_path: Path) -> None:
    run = Training("set", 0)
    run.steps(0, 2)
    run.save(tmp_path / "x")
    model, other = net(), net(hidden=65)
    adam, sgd = torch.optim.AdamW(model.parameters()), torch.optim.SGD(list(model.parameters())[:2], lr=0.1)
    load = checkpoint.load_training
    with pytest.raises(CheckpointError, match="does not fit this Sequential: of another shape"):
        load(tmp_path / "x", model=other, optimizers=adam, sparsifier=Training("set", 0).sparsifier)
    with pytest.raises(CheckpointError, match="holds 1 optimizers, 2 are given"):
        load(tmp_path / "x", model=model, optimizers=[adam, sgd])
    with pytest.raises(CheckpointError, match="holds a sparsifier's state, but none is given"):
        load(tmp_path / "x", model=model, optimizers=adam)
    with pytest.raises(
        CheckpointError,
        match=r"another optimizer \(AdamW\) than this SGD: its groups have \[6\] parameters, here \[2\]",
    ):
        load(tmp_path / "x", model=model, optimizers=sgd, sparsifier=run.sparsifier)
    with pytest.raises(CheckpointError, match="the saved method is 'set', this sparsifier's is 'rigl'"):
        Training("rigl", 0).load(tmp_path / "x")
    checkpoint.save_model(tmp_path / "m", model)
    with pytest.raises(CheckpointError, match="is a model file; resuming needs one written by save_training"):
        load(tmp_path / "m", model=model, optimizers=adam)
    checkpoint.save(tmp_path / "s", {})
    with pytest.raises(CheckpointError, match="is a state file; it was not written by save_model"):
        checkpoint.load_model(tmp_path / "s")
    dense = Training(None, 0)
    dense.save(tmp_path / "d")
    with pytest.raises(CheckpointError, match="holds no sparsifier's state, but one is given"):
        Training("set", 0).load(tmp_path / "d")


def whole(run: Training) -> Any:
    state = [run.model.state_dict(), run.optimizer.state_dict()]
    return copy.deepcopy([*map(dict, state), run.sparsifier.state_dict() if run.sparsifier else None])


@pytest.mark.parametrize("method", ["set", "rewire"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["sparsifier"].update(method="other"), "the saved method is 'other'"),
        (lambda s: s["sparsifier"]["supports"].popitem(), "belongs to another model or other targets"),
        (lambda s: s["model"].popitem(), "does not fit this Sequential: it lacks"),
        (lambda s: s["optimizers"][0]["param_groups"][0].pop("betas"), r"\(AdamW\) than this AdamW: it lacks betas"),
        (lambda s: s["optimizers"][0]["param_groups"][0]["params"].pop(), "its groups have .5. parameters, here .6."),
        (lambda s: s["optimizers"][0].update(state=[1]), "is damaged"),
        (lambda s: s.pop("extra"), "is damaged"),
        (lambda s: s.update(sparsifier=7), "."),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path: Path, method: str, change: Any, message: str) -> None:
    run, other = Training(method, 0), Training(method, 9)
    run.steps(0, 4)
    other.steps(0, 2)
    run.save(tmp_path / "x")
    state = checkpoint.load(tmp_path / "x").state
    change(state)
    checkpoint.save(tmp_path / "x", state, kind="training")
    before = whole(other)
    with pytest.raises(CheckpointError, match=message):
        other.load(tmp_path / "x")
    assert identical(before, whole(other))
    other.steps(2, 4)


def test_the_state_of_another_kind_of_optimizer(tmp_path: Path) -> None:
    run = Training(None, 0)
    run.steps(0, 2)
    run.save(tmp_path / "x")
    model = net(3)
    before = copy.deepcopy(dict(model.state_dict()))
    kinds = {torch.optim.SGD: "lacks dampening, momentum, nesterov", torch.optim.Adamax: "has amsgrad, "}
    for kind, message in kinds.items():
        with pytest.raises(
            CheckpointError, match=rf"another optimizer \(AdamW\) than this {kind.__name__}: it {message}"
        ):
            checkpoint.load_training(tmp_path / "x", model=model, optimizers=kind(model.parameters(), lr=0.1))
    half = list(model.parameters())
    groups = torch.optim.AdamW([{"params": half[:2]}, {"params": half[2:]}])
    with pytest.raises(CheckpointError, match=r"its groups have \[6\] parameters, here \[2, 4\]"):
        checkpoint.load_training(tmp_path / "x", model=model, optimizers=groups)
    assert identical(before, dict(model.state_dict()))


# -- files -----------------------------------------------------------------------------------------------------------


def edited(path: Path, change: Callable[[dict[str, Any]], None], tensors: dict[str, Tensor] | None = None) -> None:
    """Rewrite a file with another header of ours (and other tensors), by the official writer."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    info = json.loads(header["__metadata__"]["gossamer"])
    change(info)
    save_file(load_file(path) | (tensors or {}), path, {"gossamer": json.dumps(info)})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file with one sparse tensor."""
    w = torch.zeros(100)
    w[::10] = 1.0
    checkpoint.save(tmp_path / "x", {"w": w, "b": torch.ones(5)}, masks={"w": w != 0})
    return tmp_path / "x"


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.99])
def test_truncated_files(good: Path, share: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(share * len(data))])
    for read in (checkpoint.load, checkpoint.describe):
        with pytest.raises(CheckpointError, match="is no whole safetensors file") as caught:
            read(good)
        assert "\n" not in str(caught.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=f"cannot read {tmp_path}: "):
        checkpoint.load(tmp_path)
    torch.save({"w": torch.ones(3)}, tmp_path / "pickle")
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        checkpoint.load(tmp_path / "pickle")
    save_file({"w": torch.ones(3)}, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="not written by gossamer"):
        checkpoint.load(tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(version=3), "has format version 3, this gossamer reads versions up to 2"),
        (lambda info: info.pop("tree"), "is damaged: its header makes no sense"),
        (lambda info: info["tree"].update(w={"$tensor": "v"}), "is damaged"),
        (lambda info: info["tree"].update(w={"$later": 1}), "unknown kind of value, '\\$later'"),
        (lambda info: info["sparse"]["w"].update(shape=[90]), "the stored mask of w does not fit its 10 values"),
        (lambda info: info["sparse"]["w"].update(shape=[-100]), "the stored mask of w does not fit its 10 values"),
        (lambda info: info["sparse"]["w"].update(fill="0"), "the stored mask of w does not fit its 10 values"),
        (lambda info: info["sparse"]["w"].update(values="b"), "the stored mask of w does not fit its 5 values"),
    ],
)
def test_damaged_headers(good: Path, change: Any, message: str) -> None:
    edited(good, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(good)
    assert str(good) in str(caught.value)


@pytest.mark.parametrize("method", ["set", "rewire"])
def test_flipped_and_missing_bytes_are_one_kind_of_error(tmp_path: Path, method: str) -> None:
    rng, path, run = random.Random(7), tmp_path / "x", Training(method, 0)
    run.steps(0, 2)
    run.save(path)
    data, refused = path.read_bytes(), []
    header = 8 + struct.unpack("<Q", data[:8])[0]
    parts = {"model": run.model, "optimizers": run.optimizer, "sparsifier": run.sparsifier}
    for case in range(150):
        place = rng.randrange(header if case % 3 else len(data))  # two of three in the header
        changed = bytearray(data)
        changed[place] ^= rng.randrange(1, 256) if case % 2 else 1 << rng.randrange(7)
        path.write_bytes(data[:place] if case % 10 == 0 else changed)
        for read in (checkpoint.describe, checkpoint.load_model, lambda path: checkpoint.load_training(path, **parts)):
            try:
                read(path)
            except CheckpointError as error:
                refused.append(str(error))
    assert 100 < len(refused) < 450
    assert not any("\n" in message for message in refused)


@contextmanager
def no_privileges() -> Iterator[None]:
    """File permissions do not bind root; be nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with no_privileges(), pytest.raises(CheckpointError, match=r"cannot write .*: Permission denied$"):
        checkpoint.save(tmp_path / "x", {})
    tmp_path.chmod(0o755)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No such file or directory$"):
        checkpoint.save(tmp_path / "absent" / "x", {})
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*: Not a directory$"):
        checkpoint.save(tmp_path / "file" / "x", {})
    with pytest.raises(CheckpointError, match=r"cannot write .*: Is a directory$"):
        checkpoint.save(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_ordinary_file_with_ordinary_rights(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for value in (0, 1):
        checkpoint.save(tmp_path / "link", {"a": value})
    assert (tmp_path / "link").is_symlink()
    assert checkpoint.load(tmp_path / "real").state == {"a": 1}
    (tmp_path / "plain").touch()
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_no_space_left(good: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before = good.read_bytes()
    monkeypatch.setattr(os, where, failing(errno.ENOSPC))
    with pytest.raises(CheckpointError, match="No space left on device; the file that was there is unchanged"):
        checkpoint.save(good, {"w": torch.ones(1000)})
    assert good.read_bytes() == before
    assert [p.name for p in good.parent.iterdir()] == ["x"]


def test_a_file_size_limit_while_writing(good: Path) -> None:
    """A real failure in the middle of the data. Python ignores SIGXFSZ, so the write itself fails."""
    before, limits = good.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"cannot write .*: File too large; the file that was there is unchanged"
        ):
            checkpoint.save(good, {"w": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert good.read_bytes() == before
    assert [p.name for p in good.parent.iterdir()] == ["x"]


def test_an_interrupt_while_writing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = good.read_bytes()
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(good, {})
    assert good.read_bytes() == before
    assert [p.name for p in good.parent.iterdir()] == ["x"]


def test_a_kill_while_saving_leaves_the_old_file(good: Path) -> None:
    before = good.read_bytes()
    script = (
        "import os, signal, sys, torch\n"
        "from gossamer import checkpoint\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save(sys.argv[1], {'w': torch.ones(100_000)})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(good)], check=False)
    assert killed.returncode == -9
    assert good.read_bytes() == before
    assert len(list(good.parent.glob(".x.*.tmp"))) == 1
    assert len(list(good.parent.iterdir())) == 2
    checkpoint.save(good, {"a": 1})
    assert checkpoint.load(good).state == {"a": 1}


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_regular_file_is_neither_replaced_nor_read(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(odd)
        else:
            server.bind(str(odd))
        (tmp_path / "link").symlink_to("x")
        before = odd.stat().st_mode
        for path in (odd, tmp_path / "link"):
            with pytest.raises(CheckpointError, match=r"cannot write .*: it is not a regular file"):
                checkpoint.save(path, {"a": 1})
            with pytest.raises(CheckpointError, match=r"cannot read .*: it is not a regular file"):
                checkpoint.load(path)
        assert odd.stat().st_mode == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "x"]


def test_paths_that_name_no_file(tmp_path: Path) -> None:
    for folder in ("/", ".", str(tmp_path)):
        with pytest.raises(CheckpointError, match=r"cannot write .*: Is a directory$"):
            checkpoint.save(folder, {})
        with pytest.raises(CheckpointError, match=r"cannot read .*: Is a directory$"):
            checkpoint.load(folder)
    with pytest.raises(CheckpointError, match=r"cannot write '.*a\\x00b': embedded null"):
        checkpoint.save(tmp_path / "a\0b", {})
    for read in (checkpoint.load, checkpoint.describe):
        with pytest.raises(CheckpointError):
            read(tmp_path / "a\0b")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="not a regular file"):
        checkpoint.save(tmp_path / "loop", {})
    checkpoint.save(tmp_path / ("n" * 255), {"a": 1})  # the longest name there is
    assert checkpoint.load(tmp_path / ("n" * 255)).state == {"a": 1}


def test_savers_at_one_time_never_show_a_damaged_file(tmp_path: Path) -> None:
    """Whatever a reader meets under the final name is one saver's file, whole."""
    path = tmp_path / "x"

    def saver(number: int) -> None:
        for _ in range(15):
            checkpoint.save(path, {"w": torch.full((1000 * (number + 1),), float(number))})

    with ThreadPoolExecutor(4) as pool:
        checkpoint.save(path, {"w": torch.full((1000,), 0.0)})
        running = [pool.submit(saver, number) for number in range(4)]
        seen = 0
        while not all(job.done() for job in running) or not seen:
            w, seen = checkpoint.load(path).state["w"], seen + 1
            assert torch.equal(w, torch.full((1000 * (int(w[0]) + 1),), float(w[0])))
        for job in running:
            job.result()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
