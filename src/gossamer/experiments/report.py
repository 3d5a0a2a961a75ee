"""Reports as one self-contained HTML file: tables, inlined curves, per-layer densities; no link leads outside."""

from __future__ import annotations

import base64
import io
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import __version__
from ..analysis import WeightTopology
from ..analysis.ledger import Ledger
from ..coverage import Coverage
from .runs import Result, RunFolder, write_atomically
from .structured import HEADER, Checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

EXECUTION = ("weight", "executed", "why")
FIRST = ("weight", "entries", "kept", "on a path from input to output")
NO_REWIRING = "There was no rewiring: every weight kept its first support."
NO_CURVES = "matplotlib is not installed, so there are no curves; pip install 'gossamer[report]' brings it"

_LEGEND = 10  # lines that a legend names
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; } .lead { color: #57606a; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #d8dee4; vertical-align: top; }
td.n, th.n { text-align: right; } img { max-width: 100%; } code { font-size: .9em; }
.bar { background: #eaeef2; width: 10rem; height: .8rem; margin-top: .35rem; } .bar i { display: block;
height: 100%; background: #2f6f9f; } .dense i { background: #b0b8c1; }
"""


def write_run_report(
    folder: RunFolder,
    result: Result,
    table: Coverage,
    data_source: str,
    weights: Sequence[WeightTopology] = (),
    first: Sequence[tuple[str, int, int, int | None]] = (),
    costs: Ledger | None = None,
    checked: Sequence[Checked] = (),
) -> None:
    """Write curves.png (if matplotlib is installed) and report.html of one run.

    weights: those it made sparse. checked: their structure. first: (weight, entries, kept, kept on a path) of a first
    support that was found.
    """
    rows = folder.metrics()
    figure = curves({"validation": rows}, result.metric)
    if figure is not None:
        write_atomically(folder.path / "curves.png", figure)
    value, asked = result.metric["value"], result.density["asked"]
    title = f"{result.title} on {result.data} / {result.model}"
    lead = f"test {result.metric['name']} {value:.4g} at density {result.density['achieved']:.4g} (asked {asked:g})"
    apart = ("config", "execution", "ledger")
    flat = _flatten(
        {key: item for key, item in result.to_dict().items() if key not in apart and item not in (None, [])}
    )
    sections = [
        _section("Result", _table(("", ""), flat)),
        _section("Curves", _image(figure)),
        _section("Layers", _coverage_table(table)),
        *(
            [_section("Execution", _table(EXECUTION, [tuple(choice.values()) for choice in result.execution]))]
            if result.execution
            else []
        ),
        *([_section("Structure", _table(HEADER, [astuple(weight) for weight in checked]))] if checked else []),
        *([_section("Costs", _costs(costs))] if costs else []),
        *([_section("First support", _table(FIRST, first))] if first else []),
        *([_section("Topology", _topology(rows, weights))] if weights else []),
        _section("Config", _table(("", ""), _flatten(result.config))),
        _section("Origin", _table(("", ""), [("data", data_source), *_versions()])),
    ]
    write_atomically(folder.path / "report.html", page(title, lead, sections))


def write_comparison(
    path: Path,
    title: str,
    lead: str,
    table: tuple[Sequence[str], Iterable[Sequence[object]]],
    series: Mapping[str, Rows],
    metric: Mapping[str, Any],
    results: Sequence[Result],
) -> None:
    """Write one report over many runs: a summary table (header, rows), curves by label, and every run's result."""
    each = [
        (r.method, r.density["achieved"], r.seed, r.metric["value"], r.final_loss, r.counts["active"], r.seconds)
        for r in results
    ]
    header = ("method", "density", "seed", f"test {metric['name']}", "train loss", "non-zeros", "seconds")
    sections = [
        _section("Summary", _table(*table)),
        _section("Curves", _image(curves(series, metric))),
        _section("Every run", _table(header, each)),
    ]
    write_atomically(path, page(title, lead, sections))


def has_curves() -> bool:
    """Whether matplotlib is installed, which draws the curves."""
    return find_spec("matplotlib") is not None


def curves(series: Mapping[str, Rows], metric: Mapping[str, Any]) -> bytes | None:
    """Draw training loss and metric over steps as a PNG; None without matplotlib.

    series: label -> rows of metrics.jsonl. The metric is that of the validation split where there is one.
    """
    if not has_curves():
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    validated = any(row["valid_metric"] is not None for rows in series.values() for row in rows)
    key = "valid_metric" if validated else "train_metric"
    for label, rows in series.items():
        steps = [row["step"] for row in rows]
        left.plot(steps, [row["loss"] for row in rows], label=label)
        right.plot(steps, [row[key] for row in rows], label=label)
        if len(series) == 1 and validated:
            right.plot(steps, [row["train_metric"] for row in rows], label="training", alpha=0.5)
    left.set(xlabel="step", ylabel="training loss (nats)")
    right.set(xlabel="step", ylabel=f"{'validation' if validated else 'training'} {metric['name']}")
    if validated or len(series) > 1:
        right.legend(fontsize="small")
    return _png(figure)


def topology_curves(rows: Rows, sizes: Mapping[str, int]) -> bytes | None:
    """Draw how the supports moved over steps as a PNG; None without matplotlib.

    rows: of metrics.jsonl. sizes: weight name -> its entries; densities are drawn where a count changed.
    """
    if not has_curves():
        return None
    from matplotlib.figure import Figure

    moved = any(row["counts"] != rows[0]["counts"] for row in rows)
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    flips, places, survival, densities = figure.subplots(2, 2, sharex=True).flat
    _lines(flips, rows, {"flips per rewiring": "flip_rate"})
    _lines(survival, rows, {"newborns that survive": "survival"})
    shares = {"ever active": "explored", "distance to the first": "distance_first", "to the last row": "distance_last"}
    _lines(places, rows, shares)
    flips.set_ylabel("flips per rewiring / eligible")
    survival.set(ylabel="survival of newborns", ylim=(-0.03, 1.03))
    places.set_ylabel("fraction of eligible")
    places.legend(fontsize="small")
    if moved:
        _densities(densities, rows, sizes)
    else:
        densities.set_visible(False)
    return _png(figure)


def _densities(axes: Axes, rows: Rows, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        axes.plot([row["step"] for row in rows], [row["counts"][name] / size for row in rows], label=name, marker=".")
    axes.set(xlabel="step", ylabel="density by weight")
    if len(sizes) <= _LEGEND:
        axes.legend(fontsize="x-small")


def _lines(axes: Axes, rows: Rows, keys: Mapping[str, str]) -> None:
    """One line per label; rows that have no value leave a gap."""
    for label, key in keys.items():
        values = [math.nan if row[key] is None else row[key] for row in rows]
        axes.plot([row["step"] for row in rows], values, label=label, marker=".")
    axes.set_xlabel("step")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """A whole HTML document."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1><p class=lead>{escape(lead)}</p>\n"
        f"{body}\n</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}"


def _image(png: bytes | None) -> str:
    if png is None:
        return f"<p>{escape(NO_CURVES)}</p>"
    return f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return f"<td>{json.dumps(value)}</td>"
    if isinstance(value, int):
        return f"<td class=n>{value:,}</td>"
    if isinstance(value, float):
        return f"<td class=n>{value:.4g}</td>"
    return f"<td>{escape(str(value))}</td>"


def _coverage_table(table: Coverage) -> str:
    rows = []
    for row in table.rows:
        bar = f'<div class="bar {"" if row.sparse else "dense"}"><i style="width:{100 * row.density:.2f}%"></i></div>'
        why = row.reason if row.sparse else f"dense: {row.reason}"
        shape = " x ".join(map(str, row.shape)) or "scalar"
        cells = (row.name, shape, row.count, row.numel, row.density)
        rows.append("<tr>" + "".join(map(_cell, cells)) + f"<td>{bar}</td>" + _cell(why) + "</tr>")
    names = ("parameter", "shape", "non-zeros", "of", "density", "", "why")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table>"


def _topology(rows: Rows, weights: Sequence[WeightTopology]) -> str:
    if not any(row["rewirings"] for row in rows):
        return f"<p>{escape(NO_REWIRING)}</p>"
    header = ("weight", "of", "active", "flips", "survival", "ever active", "distance to the first", "active zeros")
    cells = [
        (w.name, w.numel, w.count, w.flips, w.survival, w.explored, w.distance_first, w.active_zeros) for w in weights
    ]
    return _image(topology_curves(rows, {w.name: w.numel for w in weights})) + _table(header, cells)


def _costs(ledger: Ledger) -> str:
    """The totals beside those of dense training, then every layer and phase."""
    t = ledger.totals
    rows: list[tuple[object, ...]] = []
    for name, theory, executed, dense in (
        ("FLOPs of the training", t.flops, t.flops_executed, t.flops_dense),
        ("bytes held", t.bytes, t.bytes_executed, t.bytes_dense),
    ):
        rows.append((name, theory, executed, dense, executed / dense))
    header = ("", "in theory", "executed", "dense", "executed / dense")
    phases = ("layer", "execution", "phase", "FLOPs in theory", "executed", "bytes in theory", "executed")
    about = (
        "Of one step or one rewiring; of weights, gradients, slots, indices and activations the bytes that are held."
    )
    return _table(header, rows) + f"<p>{about}</p>" + _table(phases, ledger.rows())


def _versions() -> list[tuple[str, object]]:
    modules = ("Python", platform.python_version()), ("torch", torch.__version__), ("numpy", np.__version__)
    return [("gossamer", __version__), *modules]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value) if isinstance(value, list | Mapping) else value))
    return rows
