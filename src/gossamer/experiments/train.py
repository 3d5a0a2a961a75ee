"""The training loop: one function, from config to result, readable from top to bottom."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..analysis import UNWATCHED
from ..checkpoint import save_model
from ..errors import ConfigError, DivergedError
from ..nn.k_winners import update_boost
from ..tickets import Tickets
from . import execution, first_support, fixed, structured
from .computing import autocast, pinned
from .config import RunConfig
from .costs import ledger_of
from .data.batches import begins_epoch
from .first_support import First
from .memory import PeakMemory
from .report import write_run_report
from .runs import Result, RunFolder
from .setup import Parts, Plan, build_parts, make_plan
from .stop_request import StopRequest
from .tasks import Totals, evaluate
from .tickets import search

_GLANCE = 20_000  # predictions on the validation split for a row; the last row looks at the whole split


@dataclass(frozen=True)
class Update:
    """What a progress callback sees after every optimizer step.

    step: optimizer steps so far, of all `steps`. loss: of the last one. row: the latest row of metrics.jsonl, empty
    before the first. round: number of the training, where a run has several.
    """

    step: int
    steps: int
    loss: float
    metric: str
    row: Mapping[str, Any]
    round: int | None = None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped a run, after its checkpoint in `folder` was written."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, Path]]:
        return type(self), (str(self), self.folder)


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: Callable[[Update], None] | None = None,
    test: bool = True,
) -> Result:
    """Train one run, write its folder and return its result.

    Everything follows from `config.seed`: two runs are bit-equal on one machine, and all methods at a seed share
    init and data order. The test split is used once, after the last step. `resume` continues a killed run exactly
    as if it had not been killed; a finished run is not run again. With `test=False` the test split is never used: the
    metric is that of the validation split, as a choice between settings needs it, and no report is written.

    Raises:
        ConfigError: something cannot work; raised before any training and before anything is written.
        DivergedError: the loss or a weight is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C, after a checkpoint was written.
        KeyboardInterrupt: Ctrl-C while the run was made, its weights scored for instance; nothing is written.
    """
    plan = make_plan(config)
    cfg, folder = plan.config, RunFolder(Path(plan.config.out))
    folder.check(cfg, resume=resume)
    if not test and not len(plan.dataset.valid):
        raise ConfigError(
            f"valid_fraction = {cfg.valid_fraction}: without the test split a run needs a validation split"
        )
    if folder.finished:
        return _finished(folder, "test" if test else "valid")
    with pinned(cfg), StopRequest() as stop:
        notes, memory = list[str](), PeakMemory(cfg.device)
        with first_support.noting(notes):
            parts = build_parts(plan)
        stop.at_once = False
        folder.create(cfg)
        with folder.locked():
            folder.check(cfg, resume=True)  # another process may have come first
            if isinstance(plan.method, Tickets):
                plan = search(plan, parts, folder, partial(_run, stop=stop), progress)
                parts = build_parts(plan)
            execution.keep(cfg, parts.choices)
            first = First(notes=notes)
            if parts.sparsifier:
                first = first_support.keep(cfg, plan.method, parts.sparsifier.supports, notes)
            rows = _run(plan, parts, folder, progress, stop)
            machine = {"step_seconds": _median(parts.step_seconds), "peak_bytes": memory.bytes}
            return _finish(plan, parts, folder, rows, first, machine, test)


def _finished(folder: RunFolder, split: str) -> Result:
    result = folder.result()
    if result.metric.get("split", "test") != split:
        raise ConfigError(f"the run in {folder.path} was not measured on the {split} split; give another --out")
    return result


def _run(
    plan: Plan, parts: Parts, folder: RunFolder, progress: Callable[[Update], None] | None, stop: StopRequest
) -> list[dict[str, Any]]:
    """From the folder's checkpoint, or the first step, to the last of this round; returns the rows of metrics.jsonl."""
    cfg, this = plan.config, plan.round
    step, rows, spent = parts.restore(folder.training_file) or this.beginning
    folder.write_metrics(rows)  # rows after the checkpoint are forgotten, and written again
    clock = _Clock(spent)
    while step < this.stop:
        if begins_epoch(step, cfg.accumulate, cfg.batch_size, plan.dataset.examples):
            update_boost(parts.model)
        started = time.perf_counter()
        loss = _step(plan, parts, step)
        parts.step_seconds.append(time.perf_counter() - started)
        step += 1
        if not math.isfinite(loss):
            raise _diverged(folder, f"the training loss became {loss} at step {this.made(step)}")
        if step % cfg.eval_every == 0 or step == this.stop:
            rows.append(_row(plan, parts, step, clock.seconds))
            folder.write_metrics(rows)
        if progress:
            row = rows[-1] if rows else {}
            progress(Update(this.made(step), this.total, loss, plan.task.metric, row, this.number))
        stopping = stop.requested  # asked once: a signal may arrive at any line
        if step % cfg.checkpoint_every == 0 or step == this.stop or stopping:
            if not _finite(parts.model):
                raise _diverged(folder, f"a weight became infinite or NaN by step {this.made(step)}")
            parts.save(folder.training_file, step, rows, clock.seconds)
        if stopping and this.made(step) < this.total:
            done = f"{this.made(step)} of {this.total}"
            raise Interrupted(f"stopped after step {done}, checkpoint written", folder.path)
    return rows


def _step(plan: Plan, parts: Parts, step: int) -> float:
    """One optimizer step on `accumulate` micro-batches; returns their mean loss in nats."""
    cfg, mean_loss = plan.config, 0.0
    for micro in range(cfg.accumulate):
        x, y = plan.dataset.train.batch(step * cfg.accumulate + micro, cfg.batch_size, seed=cfg.seed)
        with autocast(cfg):
            loss = parts.totals.add(parts.model(x), y) / cfg.accumulate
        parts.scaler.scale(loss).backward()
        mean_loss += float(loss.detach())
    if cfg.clip:
        for optimizer in parts.optimizers:
            parts.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parts.model.parameters(), cfg.clip)
    scale = parts.scaler.get_scale()
    for optimizer in parts.optimizers:
        parts.scaler.step(optimizer)
        optimizer.zero_grad()
    parts.scaler.update()
    if parts.scaler.get_scale() >= scale:  # a step that fp16 overflow skipped does not advance the schedule
        for scheduler in parts.schedulers:
            scheduler.step()
    return mean_loss


def _row(plan: Plan, parts: Parts, step: int, seconds: float) -> dict[str, Any]:
    """A row of metrics.jsonl; training figures are means over the steps since the last row."""
    cfg, valid, this = plan.config, plan.dataset.valid, plan.round
    totals, parts.totals = parts.totals, Totals()
    row = {
        "step": this.made(step),
        "loss": totals.loss,
        "lr": cfg.lr * plan.rate(step - 1),
        "density": parts.density,
        "train_metric": plan.task.value(totals),
        "valid_metric": None,
        "seconds": round(seconds, 3),
        **(parts.exploration.row() if parts.exploration else UNWATCHED),
        **({} if this.number is None else {"round": this.number}),
    }
    if len(valid):
        x, y = valid.whole()
        stride = 1 if step == this.stop else -(-y.numel() // _GLANCE)
        measured = evaluate(parts.model, x[::stride], y[::stride], autocast=partial(autocast, cfg))
        row["valid_metric"] = plan.task.value(measured)
    return row


def _median(seconds: list[float]) -> float | None:
    return statistics.median(seconds) if seconds else None


def _finish(
    plan: Plan,
    parts: Parts,
    folder: RunFolder,
    rows: list[dict[str, Any]],
    first: First,
    machine: Mapping[str, float | None],
    test: bool,
) -> Result:
    """Measure on the test split if asked, and write model, result and (with a test) report."""
    cfg, task, table = plan.config, plan.task, parts.coverage()
    about = {"data": cfg.data, "name": cfg.model, "method": cfg.method, "density": cfg.density, "seed": cfg.seed}
    if name := structured.name_of(plan.method):
        about["structure"] = name
    trained = fixed.trained_counts(parts.model, table)
    parts.leave_subspace()
    save_model(folder.model_file, parts.model, parts.sparsifier, about)
    value = rows[-1]["valid_metric"]
    if test:
        value = task.value(evaluate(parts.model, *plan.dataset.test.whole(), autocast=partial(autocast, cfg)))
    checked = structured.of_run(plan.method, parts.sparsifier.supports if parts.sparsifier else {}, folder.model_file)
    described = first_support.described(first, plan.dataset, parts.model)
    costs = ledger_of(plan, parts, rows) if test and cfg.subspace is None else None
    result = Result(
        task=task.name,
        data=cfg.data,
        model=cfg.model,
        method=cfg.method,
        seed=cfg.seed,
        density={"asked": cfg.density, "achieved": table.active / parts.reference.eligible},
        counts={
            "active": table.active,
            "eligible": parts.reference.eligible,
            "total": parts.reference.total,
        },
        metric={
            "name": task.metric,
            "value": value,
            "higher_is_better": task.higher_is_better,
            "split": "test" if test else "valid",
        },
        final_loss=rows[-1]["loss"],
        steps=plan.round.total,
        seconds=rows[-1]["seconds"],
        checkpoint_bytes=folder.model_file.stat().st_size,
        config=cfg.to_dict() | ({"small": parts.small} if parts.small else {}),
        first_support=first_support.figures(described),
        notes=list(first.notes),
        execution=[asdict(choice) for choice in parts.choices],
        machine=machine,
        ledger=costs.to_dict() if costs else None,
        trained=trained,
        structure=structured.described(checked),
    )
    if test:
        source = f"{plan.dataset.source}; sha256 {plan.dataset.digest}..."
        watched = parts.exploration.by_weight() if parts.exploration else ()
        write_run_report(folder, result, table, source, watched, described, costs, checked)
    folder.write_result(result)
    return result


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def _diverged(folder: RunFolder, what: str) -> DivergedError:
    kept = f"the last good checkpoint is {folder.training_file}" if folder.training_file.exists() else "none was saved"
    return DivergedError(f"{what}; {kept}; try a smaller --lr, more --warmup or a --clip norm")


class _Clock:
    """Seconds of training, those before a resume included."""

    def __init__(self, spent: float) -> None:
        self._start = time.perf_counter() - spent

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start
