"""The training loop: determinism, what methods share, accumulation, controls, the contract of result.json, faults."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gossamer.analysis import UNWATCHED
from gossamer.checkpoint import load, load_model
from gossamer.errors import CheckpointError, ConfigError, DivergedError
from gossamer.experiments import models
from gossamer.experiments import train as loop
from gossamer.experiments.computing import pinned
from gossamer.experiments.config import ResolvedConfig, RunConfig
from gossamer.experiments.optimizers import build_optimizers, rate_factor
from gossamer.experiments.runs import RunFolder, write_atomically
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.experiments.tasks import TASKS, Totals, evaluate

from .tiny import Make, model_of, rows_of

KEYS = {
    "task", "data", "model", "method", "seed", "density", "counts", "metric", "final_loss", "steps", "seconds",
    "checkpoint_bytes", "config", "first_support", "notes", "execution", "structure", "machine", "ledger", "trained",
}  # fmt: skip


def _resolved(**values: Any) -> ResolvedConfig:
    return make_plan(RunConfig(data="digits", model="mlp", **values)).config


# -- determinism -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dense", "small", "static", "set", "rigl", "rewire"])
def test_two_runs_are_bit_equal(make: Make, method: str) -> None:
    runs = [make(name, method=method, amp="bf16") for name in ("a", "b")]
    for run in runs:
        loop.train(run)
    assert model_of(runs[0]) == model_of(runs[1])
    assert rows_of(runs[0]) == rows_of(runs[1])


def test_another_seed_is_another_run(make: Make) -> None:
    runs = [make(f"seed{seed}", seed=seed) for seed in (0, 1)]
    for run in runs:
        loop.train(run)
    assert rows_of(runs[0]) != rows_of(runs[1])


def test_all_methods_share_init_at_a_seed(make: Make) -> None:
    def weights(method: str) -> tuple[dict[str, torch.Tensor], Any]:
        plan = make_plan(make(method=method, model_options={"hidden": [16, 16]}))
        with pinned(plan.config):
            parts = build_parts(plan)
        return parts.model.state_dict(), parts.sparsifier

    dense, _ = weights("dense")
    for method in ("static", "set", "rigl", "rewire"):
        sparse, sparsifier = weights(method)
        assert sparsifier is not None
        for name, value in sparse.items():
            kept = sparsifier.supports[name].mask if name in sparsifier.supports else torch.ones_like(value).bool()
            assert torch.equal(value, torch.where(kept, dense[name], torch.zeros_like(value)))


def test_global_torch_state_is_left_alone(make: Make) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    loop.train(make(threads=2, steps=2))
    assert torch.equal(torch.rand(3), expected)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, strict)


# -- the loop --------------------------------------------------------------------------------------------------


def test_two_micro_batches_equal_one_batch_of_both(make: Make) -> None:
    options = {"hidden": [16], "batch_norm": "false", "bias": "true"}
    common = {"steps": 4, "lr": 0.1, "method": "rewire", "args": {"exploit": "none"}, "model_options": options}
    one, two = make("one", batch_size=50, **common), make("two", batch_size=25, accumulate=2, **common)
    for run in (one, two):
        loop.train(run)
    for name, value in load_model(f"{one.out}/model.safetensors").items():
        torch.testing.assert_close(value, load_model(f"{two.out}/model.safetensors")[name], rtol=1e-4, atol=1e-6)


def test_dense_training_equals_a_plain_loop(make: Make) -> None:
    config = make(method="dense", density=None, lr=0.1, momentum=0.9, weight_decay=0.0, clip=0.5, steps=5)
    loop.train(config)
    plan = make_plan(config)
    with pinned(plan.config):
        torch.manual_seed(0)
        model = models.build("mlp", plan.dataset, hidden=(16,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(5):
            optimizer.param_groups[0]["lr"] = 0.1 * rate_factor(plan.config)(step)
            x, y = plan.dataset.train.batch(step, plan.config.batch_size, seed=0)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    trained = load_model(f"{config.out}/model.safetensors")
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_runs_stay_sparse(make: Make, amp: str) -> None:
    result = loop.train(make(method="rigl", args={"every": 4}, amp=amp, steps=12))
    weights = load_model(f"{make().out}/model.safetensors")
    nonzero = sum(int((weights[name] != 0).sum()) for name in ("linear1.weight", "head.weight"))
    assert nonzero <= result.counts["active"] == round(0.2 * result.counts["eligible"])


def test_muon_and_adamw_train_one_sparse_model(make: Make) -> None:
    config = make(optimizer="muon", lr=0.02, model_options={"hidden": [16, 16]}, method="rewire")
    plan = make_plan(config)
    optimizers = build_optimizers(build_parts(plan).model, plan.config)
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["Muon", "AdamW"]
    result = loop.train(config)
    assert result.counts["active"] == round(0.2 * result.counts["eligible"])


def test_muon_needs_hidden_matrices(make: Make) -> None:
    with pytest.raises(ConfigError, match="muon acts on hidden 2-D weights and the model has none"):
        loop.train(make(optimizer="muon", model="cnn", model_options={}))


@given(
    steps=st.integers(1, 200),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "step", "constant"]),
)
def test_rates_rise_to_the_peak_and_never_again(steps: int, warmup: float, schedule: str) -> None:
    config = RunConfig(data="digits", model="mlp", steps=steps, warmup=warmup, schedule=schedule)
    factors = [rate_factor(config)(step) for step in range(steps)]  # type: ignore[arg-type]
    rising = round(warmup * steps)
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[: max(rising, 1)] == sorted(factors[: max(rising, 1)])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert schedule == "step" or max(factors) == 1


def test_biases_are_not_decayed() -> None:
    config = _resolved(weight_decay=0.1)
    model = models.build("mlp", ((4,), 2))
    groups = build_optimizers(model, config)[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


# -- measuring -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 9))
def test_totals_of_batches_equal_those_of_the_whole(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(sizes), 3, 5, generator=generator)
    targets = torch.randint(5, (sum(sizes), 3), generator=generator)
    parts, whole = Totals(), Totals()
    for x, y in zip(logits.split(sizes), targets.split(sizes), strict=True):
        parts.add(x, y)
    loss = whole.add(logits, targets)
    assert parts.correct == whole.correct
    assert parts.count == whole.count == targets.numel()
    assert parts.loss == pytest.approx(float(loss), rel=1e-5)
    assert TASKS["language"].value(whole) == pytest.approx(float(loss) / math.log(2), rel=1e-6)


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    model = models.build("mlp", ((4,), 3), hidden=(5,))
    x, y = torch.randn(10, 4), torch.randint(3, (10,))
    model.train()
    small, large = evaluate(model, x, y, batch_size=3), evaluate(model, x, y)
    assert (small.correct, small.count) == (large.correct, large.count)
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    assert model.training


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_test_split_is_used_once_and_validation_before(
    make: Make, monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    sizes: list[int] = []

    def counting(model: Any, x: torch.Tensor, y: torch.Tensor, **options: Any) -> Totals:
        sizes.append(len(x))
        return evaluate(model, x, y, **options)

    monkeypatch.setattr(loop, "evaluate", counting)
    config = make(valid_fraction=fraction)
    loop.train(config)
    validations = [round(1437 * fraction)] * 3 if fraction else []  # at steps 8, 16 and 20
    assert sizes == [*validations, 360]
    assert [row["step"] for row in rows_of(config)] == [8, 16, 20]
    assert all((row["valid_metric"] is None) == (fraction == 0) for row in rows_of(config))


def test_rows_have_the_same_keys_whatever_the_method(make: Make) -> None:
    rows = {}
    for method in ("dense", "small", "static", "set", "rewire"):
        config = make(method, method=method, density=None if method == "dense" else 0.25)
        loop.train(config)
        rows[method] = rows_of(config)
    keys = list(rows["dense"][0])
    assert all(list(row) == keys for each in rows.values() for row in each)
    assert all(UNWATCHED.items() <= row.items() for method in ("dense", "small") for row in rows[method])
    assert [row["rewirings"] for row in rows["static"]] == [0, 0, 0]
    assert [row["rewirings"] for row in rows["set"]] == [1, 2, 0]  # every 5, rows at 8, 16 and 20, none at the end
    assert [row["rewirings"] for row in rows["rewire"]] == [8, 8, 4]
    for method in ("static", "set", "rewire"):
        explored = [0.25, *(row["explored"] for row in rows[method])]
        assert explored == sorted(explored)
        assert (explored[-1] > 0.25) == (method != "static")
        assert all(sum(row["counts"].values()) == 296 for row in rows[method])


# -- results and controls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "density", "active"), [("dense", None, 1184), ("small", 0.25, 296), ("rewire", 0.25, 296)]
)
def test_result_keeps_the_contract(make: Make, method: str, density: float | None, active: int) -> None:
    config = make(method=method, density=density)
    result = loop.train(config)
    stored = json.loads((Path(str(config.out)) / "result.json").read_text())
    assert stored == json.loads(json.dumps(result.to_dict()))
    assert set(stored) == KEYS
    assert stored["counts"]["eligible"] == 64 * 16 + 16 * 10 == 1184
    assert stored["counts"]["total"] == 1184 + 10 + 2 * 16
    assert stored["counts"]["active"] == active
    assert stored["density"] == {"asked": density or 1.0, "achieved": active / 1184}
    assert (stored["metric"]["name"], stored["metric"]["higher_is_better"]) == ("accuracy", True)
    assert 0 <= stored["metric"]["value"] <= 100
    assert stored["steps"] == 20
    assert stored["checkpoint_bytes"] == len(model_of(config))
    assert stored["final_loss"] == rows_of(config)[-1]["loss"]
    assert yaml.safe_load((Path(str(config.out)) / "config.yaml").read_text()).items() <= stored["config"].items()


def test_small_reports_the_ratio_it_reached(make: Make) -> None:
    small = loop.train(make(method="small", density=0.3)).config["small"]
    assert small["width"] < 1
    assert small["ratio"] * round(0.3 * 1184) == pytest.approx(
        loop.train(make("b", method="small", density=0.3)).counts["active"]
    )
    assert small["parameters"] < 1226


def test_language_runs_report_bits_per_byte(make: Make) -> None:
    options = {"dim": 8, "depth": 1, "heads": 2, "hidden": 8}
    result = loop.train(
        make(data="stdlib", model="gpt", model_options=options, data_options={"context": 8}, steps=3, valid_fraction=0)
    )
    assert (result.task, result.metric["name"], result.metric["higher_is_better"]) == ("language", "bits/byte", False)
    assert 4 < result.metric["value"] < 9
    assert result.density["achieved"] == pytest.approx(0.2, abs=1e-2)


def test_targets_decide_what_is_eligible(make: Make) -> None:
    for method, density in (("dense", None), ("static", 0.5)):
        result = loop.train(make(method, method=method, density=density, targets="linear1.weight"))
        assert result.counts["eligible"] == 64 * 16


# -- faults ----------------------------------------------------------------------------------------------------


def test_diverging_runs_stop_and_keep_the_last_good_checkpoint(make: Make) -> None:
    config = make(method="dense", model_options={"hidden": [16], "batch_norm": False}, lr=9e3, checkpoint_every=1)
    with pytest.raises(
        DivergedError, match=r"became (nan|inf).*last good checkpoint is .*training\.safetensors"
    ) as caught:
        loop.train(config)
    assert "\n" not in str(caught.value)
    state = load(f"{config.out}/training.safetensors").state
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    assert not (Path(str(config.out)) / "result.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
        ({"model": "mpl"}, "unknown model 'mpl'; did you mean 'mlp'"),
        ({"model": "gpt"}, "model gpt takes tokens data"),
        ({"model_options": {"hiden": 3}}, "unknown option 'hiden' of model mlp; did you mean 'hidden'"),
        ({"data_options": {"pool": 2}}, "unknown option 'pool' of data set digits"),
        ({"targets": "fc.*"}, "target 'fc.*' matches no parameter"),
        ({"device": "gpu"}, "device = 'gpu' is no torch device"),
        ({"epochs": 1e-6, "steps": None}, "less than one step"),
        ({"batch_size": 5000}, "batch_size = 5000: expected 1 to 1293"),
        ({"method": "rewire", "args": {"scale": 2}}, "scale=2"),
    ],
)  # fmt: skip
def test_bad_configs_are_refused_before_anything_is_written(make: Make, values: dict[str, Any], message: str) -> None:
    config = make(**values)
    with pytest.raises(ConfigError) as caught:
        loop.train(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(str(config.out)).exists()


def test_folders_that_cannot_be_used_are_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"cannot use .*file/run as run folder"):
        loop.train(make("file/run"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="used is not empty; add --resume"):
        loop.train(make("used"))
    with pytest.raises(ConfigError, match=r"used is not empty and holds no config\.yaml"):
        loop.train(make("used"), resume=True)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    write_atomically(file, "old")

    def full(self: Path, *args: Any, **options: Any) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no result of a run"):
        RunFolder(tmp_path).result()
