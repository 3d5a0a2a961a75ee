"""Live progress on a terminal: step, loss, metric, density and remaining time, in less than 80 columns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .train import Update

Show = Callable[[str, Update], None]
_REFRESH = 0.1  # seconds between two updates of the bar


@contextmanager
def live_progress(console: Console, runs: int) -> Iterator[Show]:
    """Yield show(label, update); one bar serves `runs` runs one after the other.

    Nothing is drawn if `console` is no terminal.
    """
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, figures="")
        finished, current, drawn = 0, "", 0.0

        def show(label: str, update: Update) -> None:
            nonlocal finished, current, drawn
            if label != current:
                finished, current = finished + bool(current), label
            now = time.perf_counter()
            if now - drawn < _REFRESH and update.step < update.steps:
                return
            drawn = now
            bar.update(
                task,
                description=label,
                total=runs * update.steps,
                completed=finished * update.steps + update.step,
                figures=figures(update),
            )

        yield show


def figures(update: Update) -> str:
    """Round of a ticket, loss, metric and density as text; validation where there is some, else training."""
    text = "" if update.round is None else f"round {update.round}  "
    text += f"loss {update.loss:.3f}"
    if update.row:
        value = update.row["valid_metric"]
        split = "train" if value is None else "valid"
        value = update.row["train_metric"] if value is None else value
        text += f"  {split} {value:.4g}  density {update.row['density']:.4g}"
    return text
