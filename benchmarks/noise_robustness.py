"""Accuracy of the models of a study when pixels of the test images are replaced by noise.

    gossamer study studies/kwinners.yaml --workers 2
    python benchmarks/noise_robustness.py runs/studies/kwinners [--out FILE]

Of each test image a share of the pixels, drawn at random, becomes the mean of all training pixels plus two standard
deviations. The noise score is the number of right answers over the levels 0, 0.05, ... 0.5, here in % of the most it
can be. Mean and sample standard deviation over seeds; differences are paired by seed. Source: Ahmad and Scheinkman
2019 (1903.11257).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from comparison import results_of

from gossamer.experiments.robustness import Robustness, of_run
from gossamer.experiments.summary import markdown, mean_and_deviation, spread

SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5)
Rows = dict[tuple[str, float], dict[int, Robustness]]


def measured(study: Path) -> tuple[Rows, dict[tuple[str, float], int], list[str]]:
    """(label, density) -> seed -> what was measured; the non-zeros of each; labels to compare with."""
    content = results_of(study)
    rows: Rows = {}
    counts = {}
    for run in content["runs"]:
        cell = run["label"], run["density"]
        rows.setdefault(cell, {})[run["seed"]] = of_run(Path(run["result"]["config"]["out"]))
        counts[cell] = run["result"]["counts"]["active"]
    return rows, counts, content["study"]["compare"] or []


def table(rows: Rows, counts: dict[tuple[str, float], int], against: list[str]) -> str:
    header = ("row", "density", "non-zeros", "clean", *(f"noise {level:g}" for level in SHOWN), "noise score")
    lines = []
    for (label, density), seeds in rows.items():
        one = next(iter(seeds.values()))
        shown = [one.levels.index(level) for level in (0.0, *SHOWN)]
        cells = [spread(*mean_and_deviation(r.accuracies[at] for r in seeds.values())) for at in shown]
        score = spread(*mean_and_deviation(r.mean for r in seeds.values()))
        compared = [difference(rows, label, density, other) for other in against]
        lines.append((label, f"{density:g}", f"{counts[label, density]:,}", *cells, score, *compared))
    return markdown((*header, *(f"score vs {other}" for other in against)), lines)


def difference(rows: Rows, label: str, density: float, other: str) -> str:
    """Paired difference of the noise score to a row at the same density, or to one that is dense."""
    own = rows[label, density]
    theirs = rows.get((other, density)) or rows.get((other, 1.0)) or {}
    pairs = [own[seed].mean - theirs[seed].mean for seed in own if seed in theirs]
    return spread(*mean_and_deviation(pairs), sign=True) if pairs and label != other else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+", help="folder of a finished study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the tables there")
    arguments = parser.parse_args()
    parts = []
    for study in arguments.study:
        parts.append(f"## {study.name}\n\n{table(*measured(study))}")
        print(parts[-1], flush=True)
    if arguments.out:
        command = f"python benchmarks/noise_robustness.py {' '.join(map(str, arguments.study))}"
        about = " ".join((__doc__ or "").split("[--out FILE]\n")[1].split())
        arguments.out.write_text(f"# Noise robustness\n\n{about}\n\nCommand: `{command}`\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
