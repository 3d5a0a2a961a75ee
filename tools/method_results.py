"""Put the measured results of the studies into the pages of the methods, between their `result` marks.

python tools/method_results.py           rewrites docs/methods/*.md
Read are the tables in docs/results that `gossamer study ... --tables docs/results` makes, so nothing is typed by hand.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
STUDIES = {"m1d-methods": "MNIST-1D, MLP", "fashion-methods": "Fashion-MNIST, CNN"}
AT_INITIALISATION = {"foresight": "Fashion-MNIST, CNN"}
DEEP = {"rebalance-plain": "MNIST-1D, deep MLP without norm", "rebalance-norm": "MNIST-1D, deep MLP, batch norm"}
OWN_STUDIES = dict.fromkeys(("force", "grasp", "iter-snip", "magnitude", "snip", "synflow"), AT_INITIALISATION)
OWN_STUDIES["rebalance"] = DEEP
CONTROLS = ("dense", "small", "static")
BESIDE = {"rebalance": ("rigl",)}  # methods whose rows are shown, too
BLOCK = re.compile(r"<!-- result:([\w-]+) -->\n(?:.*?<!-- /result -->\n)?", re.S)

Values = dict[str, list[str]]  # label of a row -> the metric at each density of the study, empty where there is none


def table_of(study: str) -> Path:
    """Where the study's table is, if it has been run."""
    return ROOT / "docs" / "results" / f"{study}.md"


def measured(study: str) -> tuple[dict[str, Any], Values]:
    """The plan of a study, and what its table shows."""
    plan = yaml.safe_load((ROOT / "studies" / f"{study}.yaml").read_text(encoding="utf-8"))
    methods, densities = methods_of(plan), plan["densities"]
    values: Values = {}
    for line in table_of(study).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] in methods and "±" in cells[2]:
            row = values.setdefault(cells[0], [""] * len(densities))
            if methods[cells[0]] == "dense":
                row[:] = [cells[2]] * len(densities)
            else:
                row[nearest(float(cells[1]), densities)] = cells[2]
        elif line.startswith("Tuning:"):
            break
    return plan, values


def methods_of(plan: dict[str, Any]) -> dict[str, str]:
    """Label of a row -> its method; a static row whose first support was found has one of its own."""
    found = {row["label"] for row in plan["rows"] if row["method"] == "static" and "init" in row.get("args", {})}
    return {row["label"]: row["label"] if row["label"] in found else row["method"] for row in plan["rows"]}


def nearest(held: float, densities: list[float]) -> int:
    """Which of the densities a row was asked for: what it holds may be rounded."""
    return min(range(len(densities)), key=lambda i: abs(math.log(held / densities[i])))


def block(method: str) -> str:
    """What stands between the marks of a method's page."""
    studies = OWN_STUDIES.get(method, STUDIES)
    run = {study: where for study, where in studies.items() if table_of(study).exists()}
    if not run:
        names = " and ".join(f"studies/{study}.yaml" for study in studies)
        return (
            f"<!-- result:{method} -->\nThe table here comes from {names}, once that has been run.\n<!-- /result -->\n"
        )
    header, rows, tuned = ["row"], dict[str, list[str]](), True
    for study, where in run.items():
        plan, values = measured(study)
        methods, tuned = methods_of(plan), tuned and "tune" in plan
        width = len(header) - 1
        header += [f"{where}, d = {density:g}" for density in plan["densities"]]
        for label in values:
            if methods[label] in (method, *CONTROLS, *BESIDE.get(method, ())):
                rows.setdefault(label, [""] * width).extend(values[label])
        for cells in rows.values():
            cells.extend([""] * (len(header) - 1 - len(cells)))
    budget = ", every row tuned with the same budget on a validation split" if tuned else ", nothing tuned"
    lead = f"Here, test accuracy in %, mean ± standard deviation over 3 paired seeds{budget}"
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
