"""The intrinsic dimension d_int90 of every network of a study of random subspaces.

    gossamer study studies/intrinsic-dimension.yaml --workers 2
    python benchmarks/intrinsic_dimension.py runs/studies/intrinsic-dimension [--out FILE]

d_int90 is the smallest dimension of the sweep whose mean accuracy over seeds reaches 90 % of a baseline: of the mean
accuracy of the same network trained in full ("own"), or of 1.0; "-" if none does. Source: Li et al. 2018
(1804.08838).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import results_of

from gossamer.analysis import intrinsic_dimension
from gossamer.experiments.summary import markdown, mean_and_deviation, spread

ALL = 100.0  # of the accuracies in %, which is a baseline of 1.0
Sweep = dict[int, list[float]]  # dimension -> accuracies over seeds
Network = tuple[str, str]  # model and its options


def network_of(config: Mapping[str, Any]) -> Network:
    return config["model"], ", ".join(f"{key}={value}" for key, value in config["model_options"].items())


def measured(study: Path) -> tuple[dict[Network, list[float]], dict[tuple[Network, str], Sweep]]:
    """Accuracies of networks trained in full, and of (network, projection) the sweep; from the initial weights only."""
    content = results_of(study)
    full: dict[Network, list[float]] = {}
    sweeps: dict[tuple[Network, str], Sweep] = {}
    for run in content["runs"]:
        config, accuracy = run["result"]["config"], run["result"]["metric"]["value"]
        network, dimension = network_of(config), config.get("subspace")
        if dimension is not None and config["origin"] == "init":
            sweeps.setdefault((network, config["projection"]), {}).setdefault(dimension, []).append(accuracy)
        elif dimension is None and config["method"] == "dense":
            full.setdefault(network, []).append(accuracy)
    return full, sweeps


def told(dimension: int | None) -> str:
    return "-" if dimension is None else f"{dimension:,}"


def tables(full: Mapping[Network, Sequence[float]], sweeps: Mapping[tuple[Network, str], Sweep]) -> str:
    """Every sweep, then what is read off it."""
    shown, found = [], []
    for (network, projection), sweep in sweeps.items():
        name, (own, deviation) = " ".join(part for part in network if part), mean_and_deviation(full[network])
        shown.append((name, projection, "all", spread(own, deviation)))
        means = {}
        for dimension, accuracies in sorted(sweep.items()):
            means[dimension], deviation = mean_and_deviation(accuracies)
            shown.append((name, projection, f"{dimension:,}", spread(means[dimension], deviation)))
        read = [told(intrinsic_dimension(means, baseline)) for baseline in (own, ALL)]
        found.append((name, projection, f"{own:.2f}", *read))
    first = markdown(("network", "U", "k", "accuracy"), shown)
    return first + "\n" + markdown(("network", "U", "own baseline", "d_int90, own", "d_int90, 1.0"), found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the tables there")
    arguments = parser.parse_args()
    full, sweeps = measured(arguments.study)
    missing = {network for network, _ in sweeps} - full.keys()
    if missing or not sweeps:
        what = f"no run of {sorted(missing)[0][0]} in full" if missing else "no run in a subspace"
        raise SystemExit(f"{arguments.study} has {what}; add such a row to the study")
    text = tables(full, sweeps)
    print(text, end="")
    if arguments.out:
        command = f"python benchmarks/intrinsic_dimension.py {arguments.study}"
        about = " ".join((__doc__ or "").split("[--out FILE]\n")[1].split())
        arguments.out.write_text(
            f"# Intrinsic dimension\n\n{about}\n\nCommand: `{command}`\n\n{text}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
