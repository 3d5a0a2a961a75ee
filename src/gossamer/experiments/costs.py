"""The ledger of a run: from its model, its data and the rows it wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.ledger import Ledger, stretches
from ..analysis.work import works
from ..nn.measure import traced
from .setup import Parts, Plan


def ledger_of(plan: Plan, parts: Parts, rows: Sequence[Mapping[str, Any]]) -> Ledger:
    """What the training of `rows` cost; every optimizer step counts with all its micro-batches."""
    cfg, coverage = plan.config, parts.coverage()
    x, _ = plan.dataset.train.batch(0, cfg.batch_size, seed=cfg.seed)
    sizes = {row.name: row.numel for row in coverage.rows}
    about = works(parts.model, traced(parts.model, x), coverage, plan.method, parts.optimizers)
    return Ledger(about, stretches(rows, sizes), cfg.accumulate)
