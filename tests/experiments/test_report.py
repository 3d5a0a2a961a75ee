"""Reports are whole, self-contained HTML pages that say what the run was."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gossamer.experiments import report
from gossamer.experiments.train import train

from .tiny import Make, rows_of

pytestmark = pytest.mark.curves
VOID = {"meta", "img", "br"}
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Checks nesting and collects what a browser would fetch, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "h1", "h2", "p"):
            self.cells.append(data)


def test_run_report_is_self_contained_and_complete(make: Make) -> None:
    config = make(method="rigl", args={"every": 4})
    result = train(config)
    folder = Path(str(config.out))
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.links) == 2  # loss and metric, topology
    for link in page.links:
        assert link.startswith("data:image/png;base64,")
        assert base64.b64decode(link.partition(",")[2]).startswith(PNG)
    image = page.links[0].partition(",")[2]
    assert (folder / "curves.png").read_bytes() == base64.b64decode(image)
    expected = ["linear1.weight", "head.bias", "metric.value", f"{result.counts['active']:,}", "config.yaml"[:6]]
    assert all(any(text.lower() in cell.lower() for cell in page.cells) for text in expected)
    assert {"Result", "Curves", "Layers", "Topology", "Config", "Origin"} <= set(page.cells)


def test_density_bars_are_as_wide_as_the_density(make: Make) -> None:
    config = make(method="static", args={"allocation": "uniform"})
    train(config)
    text = (Path(str(config.out)) / "report.html").read_text(encoding="utf-8")
    widths = [float(width) for width in re.findall(r'<i style="width:([\d.]+)%">', text)]
    assert widths == [20.02, 100, 100, 20, 100]  # 205 of 1024, norm, norm, 32 of 160, bias


def test_without_matplotlib_the_report_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    config = make()
    train(config)
    folder = Path(str(config.out))
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.links == []
    assert report.NO_CURVES in page.cells
    assert not (folder / "curves.png").exists()


def test_text_is_escaped() -> None:
    page = Page(report.page("<b>a & b</b>", "x < y", [report._table(("<i>",), [("</td>",)])]))
    assert {"<b>a & b</b>", "x < y", "<i>", "</td>"} <= set(page.cells)


def test_topology_is_told_by_weight(make: Make) -> None:
    config = make(method="set", args={"every": 5})
    train(config)
    page = Page((Path(str(config.out)) / "report.html").read_text(encoding="utf-8"))
    start = page.cells.index("ever active")
    line = page.cells[page.cells.index("linear1.weight", start) :][:8]
    last = rows_of(config)[-1]
    assert line[1:3] == ["1,024", str(last["counts"]["linear1.weight"])]
    assert float(line[5]) >= last["counts"]["linear1.weight"] / 1024
    assert "head.weight" in page.cells[start:]


@pytest.mark.parametrize("method", ["static", "dense", "small"])
def test_without_rewirings_there_is_nothing_to_draw(make: Make, method: str) -> None:
    config = make(method=method)
    train(config)
    page = Page((Path(str(config.out)) / "report.html").read_text(encoding="utf-8"))
    assert len(page.links) == 1
    assert (report.NO_REWIRING in page.cells) == ("Topology" in page.cells) == (method == "static")


def test_topology_curves_show_densities_only_where_counts_change(make: Make) -> None:
    config = make()
    train(config)
    rows, sizes = rows_of(config), {"linear1.weight": 1024, "head.weight": 160}
    fixed = report.topology_curves(rows, sizes)
    assert fixed is not None
    assert fixed.startswith(PNG)
    assert fixed == report.topology_curves(rows, sizes)
    moved = json.loads(json.dumps(rows))
    moved[-1]["counts"]["head.weight"] += 1
    assert report.topology_curves(moved, sizes) != fixed


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_curves_are_drawn_with_and_without_validation(make: Make, fraction: float) -> None:
    config = make(valid_fraction=fraction)
    metric = train(config).metric
    rows = rows_of(config)
    one, two = report.curves({"a": rows}, metric), report.curves({"a": rows, "b": rows}, metric)
    assert one is not None
    assert two is not None
    assert one.startswith(PNG)
    assert one != two
    assert one == report.curves({"a": rows}, metric)


def test_comparison_lists_every_run(make: Make, tmp_path: Path) -> None:
    runs = [make(f"s{seed}", seed=seed) for seed in (3, 4)]
    results = [train(run) for run in runs]
    table = (("method", "accuracy"), [("set", "1.00 ± 0.10")])
    series = {"set": rows_of(runs[0])}
    report.write_comparison(tmp_path / "all.html", "title", "lead", table, series, results[0].metric, results)
    page = Page((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert {"title", "lead", "1.00 ± 0.10", "Every run", "3", "4"} <= set(page.cells)
    assert len(page.links) == 1
