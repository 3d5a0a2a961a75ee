"""Put the measured results of the studies into the pages of the methods, between their `result` marks.

python tools/method_results.py           rewrites docs/methods/*.md
Read are the tables in docs/results that `gossamer study ... --tables docs/results` makes, so nothing is typed by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
STUDIES = {"m1d-methods": "MNIST-1D, MLP", "fashion-methods": "Fashion-MNIST, CNN"}
CONTROLS = ("dense", "small", "static")
BLOCK = re.compile(r"<!-- result:([\w-]+) -->\n(?:.*?<!-- /result -->\n)?", re.S)

Values = dict[str, list[str]]  # label of a row -> the metric at each density of the study


def table_of(study: str) -> Path:
    """Where the study's table is, if it has been run."""
    return ROOT / "docs" / "results" / f"{study}.md"


def measured(study: str) -> tuple[dict[str, str], list[float], Values]:
    """Labels with their methods, densities, and what the study's table shows."""
    plan = yaml.safe_load((ROOT / "studies" / f"{study}.yaml").read_text(encoding="utf-8"))
    methods = {row["label"]: row["method"] for row in plan["rows"]}
    values: Values = {}
    for line in table_of(study).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] in methods and "±" in cells[2]:
            values.setdefault(cells[0], []).append(cells[2])
        elif line.startswith("Tuning:"):
            break
    return methods, plan["densities"], values


def block(method: str) -> str:
    """What stands between the marks of a method's page."""
    header, rows = ["row"], dict[str, list[str]]()
    run = {study: where for study, where in STUDIES.items() if table_of(study).exists()}
    for study, where in run.items():
        methods, densities, values = measured(study)
        shown = [label for label in values if methods[label] in (method, *CONTROLS)]
        width = len(header) - 1
        header += [f"{where}, d = {density:g}" for density in densities]
        for label in shown:
            cells = values[label] * len(densities) if methods[label] == "dense" else values[label]
            rows.setdefault(label, [""] * width).extend(cells)
        for cells in rows.values():
            cells.extend([""] * (len(header) - 1 - len(cells)))
    lead = (
        "Here, test accuracy in %, mean ± standard deviation over 3 paired seeds, every row tuned with the same budget "
        "on a validation split"
    )
    pages = ", ".join(f"[{study}](../results/{study}.md)" for study in run)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *([label, *cells] for label, cells in rows.items())]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"<!-- result:{method} -->\n{lead} ({pages}; the commands are there):\n\n{table}<!-- /result -->\n"


def filled(page: str) -> str:
    """The text of a page with its block as measured."""
    return BLOCK.sub(lambda found: block(found[1]), page)


if __name__ == "__main__":
    for path in sorted((ROOT / "docs" / "methods").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text), encoding="utf-8")
