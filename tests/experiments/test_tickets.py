"""Ticket runs: one folder and one result for several trainings, resumable and exact in each of them."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.checkpoint import load, load_model
from gossamer.errors import ConfigError, DivergedError
from gossamer.experiments.config import RunConfig
from gossamer.experiments.optimizers import build_optimizers, rate_factor
from gossamer.experiments.setup import build_parts, make_plan
from gossamer.experiments.train import Update, train
from gossamer.testing.oracles import Training, lottery_oracle
from gossamer.tickets import Tickets
from gossamer.topology import Support

from .kills import train_with_kills
from .tiny import Make, assert_alike, assert_continues_exactly, interrupt, rows_of

STEPS, EPSILON = 20, 5
VALUES: dict[str, dict[str, Any]] = {
    "one-shot": {"args": {"rewind": 0.25}},
    "imp": {"args": {"rewind": EPSILON, "levels": 2, "scope": "global"}, "optimizer": "adamw"},
    "learning-rate": {"args": {"rewind": EPSILON, "levels": 2, "mode": "learning_rate"}, "schedule": "step"},
    "fine-tuning": {"args": {"rewind": EPSILON, "mode": "none", "allocation": "erk"}, "schedule": "constant"},
}


@pytest.fixture
def ticket(make: Make) -> Make:
    """A tiny ticket run."""

    def build(name: str = "run", **values: Any) -> RunConfig:
        return make(name, **{"method": "lottery", "warmup": 0.2, "schedule": "cosine", **values})

    return build


def total_of(kind: str) -> int:
    return STEPS + int(VALUES[kind]["args"].get("levels", 1)) * (STEPS - EPSILON)


def folder_of(config: RunConfig) -> Path:
    return Path(str(config.out))


def transcribed(config: RunConfig) -> list[Training]:
    """The same run by the literal oracle."""
    plan = make_plan(config)
    cfg, method, model = plan.config, plan.method, build_parts(plan).model
    assert isinstance(method, Tickets)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.ndim == 2}
    counts: tuple[dict[str, int], ...] = method.counts(shapes)
    if method.scope == "global":
        counts = tuple(dict.fromkeys(shapes, 0) | {next(iter(shapes)): each[""]} for each in counts)
    factor = rate_factor(cfg)

    def loss(net: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(data[0]), data[1])

    return lottery_oracle(
        model,
        counts,
        lambda net: build_optimizers(net, cfg)[0],
        lambda step: plan.dataset.train.batch(step, cfg.batch_size, seed=cfg.seed),
        loss,
        lambda step: cfg.lr * factor(min(step, STEPS - 1)),
        epsilon=EPSILON,
        total_steps=STEPS,
        mode=method.mode,
        scope=method.scope,
    )


@pytest.mark.parametrize("kind", VALUES)
def test_a_run_equals_the_transcription(ticket: Make, kind: str) -> None:
    config = ticket(**VALUES[kind])
    result = train(config)
    *rounds, last = transcribed(config)
    state = load_model(folder_of(config) / "model.safetensors")
    assert state.keys() == last.end.keys()
    assert all(torch.equal(state[name], last.end[name]) for name in state)
    for name, mask in last.masks.items():
        assert not state[name][~mask].any()
    for number in range(len(rounds)):
        found = load(folder_of(config) / f"round-{number}.safetensors").state["supports"]
        masks = ([*rounds, last])[number + 1].masks
        assert all(torch.equal(Support.from_state(found[name]).mask, masks[name]) for name in masks)
    assert result.steps == total_of(kind)
    assert result.counts["active"] == round(0.2 * result.counts["eligible"])
    assert result.method == "lottery"


def test_rows_tell_the_round_and_count_all_steps(ticket: Make, make: Make) -> None:
    config = ticket(args={"levels": 2, "rewind": EPSILON})
    result = train(config)
    rows = rows_of(config)
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [row["step"] for row in rows] == [8, 16, 20, 23, 31, 35, 38, 46, 50]  # 8, 16, 20 of each training
    assert [row["lr"] for row in rows[:3]] == [row["lr"] for row in rows[3:6]] == [row["lr"] for row in rows[6:]]
    assert [round(row["density"], 2) for row in rows[::3]] == [1.0, 0.45, 0.2]
    lines = (folder_of(config) / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert result.seconds == seconds[-1]
    dense = make("dense", method="dense", warmup=0.2, schedule="cosine", lr=result.config["lr"])
    train(dense)
    assert [{**row, "round": 0} for row in rows_of(dense)] == rows[:3]  # same init, data and schedule
    assert not any("round" in row for row in rows_of(dense))


def test_progress_counts_all_rounds(ticket: Make) -> None:
    seen: list[Update] = []
    train(ticket(args={"levels": 2, "rewind": EPSILON}), progress=seen.append)
    assert [update.step for update in seen] == list(range(1, 51))
    assert {update.steps for update in seen} == {50}
    assert [update.round for update in seen] == [0] * 20 + [1] * 15 + [2] * 15


def test_finished_rounds_leave_what_was_found_only(ticket: Make) -> None:
    config = ticket(args={"levels": 2})
    train(config)
    names = {item.name for item in folder_of(config).iterdir() if item.suffix == ".safetensors"}
    found = {"rewind.safetensors", "round-0.safetensors", "round-1.safetensors"}
    assert names == found | {"training.safetensors", "model.safetensors"}


# -- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VALUES)
def test_interrupted_runs_continue_exactly(ticket: Make, kind: str) -> None:
    steps = (1, EPSILON - 1, EPSILON, 13, STEPS, STEPS + 1, 30)
    _, result = assert_continues_exactly(ticket, VALUES[kind], *steps)
    assert result.steps == total_of(kind)
    assert train(ticket("cut", **VALUES[kind]), resume=True) == result


@pytest.mark.parametrize("crash", [3, EPSILON, EPSILON + 2, STEPS, STEPS + 2, STEPS + 15, STEPS + 16])
def test_crashes_change_nothing(ticket: Make, crash: int) -> None:
    """Nothing is saved at a crash: what the last checkpoint lacks is trained again, w_epsilon included."""

    def fail(update: Update) -> None:
        if update.step == crash:
            raise RuntimeError("power cut")

    whole, parts = ticket("whole", **VALUES["imp"]), ticket("parts", **VALUES["imp"])
    train(whole)
    with pytest.raises(RuntimeError, match="power cut"):
        train(parts, progress=fail)
    train(parts, resume=True)
    assert_alike(parts, whole)


@pytest.mark.slow
def test_sigkill_in_every_round_changes_nothing(ticket: Make) -> None:
    values: dict[str, Any] = {**VALUES["imp"], "steps": 60, "checkpoint_every": 7, "eval_every": 10, "amp": "bf16"}
    whole, parts = ticket("whole", **values), ticket("parts", **values)
    train(whole)
    draw = random.Random(0)
    kills = [draw.randrange(1, 60), draw.randrange(61, 115), draw.randrange(116, 170)]
    assert train_with_kills(parts, [*kills, 0]) == [*[-signal.SIGKILL] * 3, 0]
    assert_alike(parts, whole)


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"args": {"rewind": 1.0}}, "rewind = 1.0 of 20 steps leaves none to train the ticket"),
        ({"args": {"rewind": 21}}, "rewind=21 is a step after the last one, 20"),
        ({"args": {"levels": 2, "keep": 0.8}}, "levels=2 and keep=0.8 both say"),
        ({"args": {"levels": 10**9}}, "levels=1000000000: each level is a whole training"),
        ({"density": 1e-4}, "fewer than one for each of 2 layers"),
    ],
)
def test_runs_that_cannot_be(ticket: Make, values: Any, match: str) -> None:
    config = ticket(**values)
    with pytest.raises(ConfigError, match=match):
        train(config)
    assert not folder_of(config).exists()


def test_another_search_in_the_folder_is_refused(ticket: Make) -> None:
    interrupt(ticket(args={"rewind": 5}), 22)
    with pytest.raises(ConfigError, match=r"cannot resume .* with another config"):
        train(ticket(args={"rewind": 6}), resume=True)


def test_divergence_names_the_checkpoint_of_the_round(ticket: Make) -> None:
    config = ticket(lr=9e3, optimizer="sgd", schedule="constant", warmup=0.0, checkpoint_every=1, steps=200)
    with pytest.raises(DivergedError, match=r"checkpoint is .*round-0\.training\.safetensors"):
        train(config)
