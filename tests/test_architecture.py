"""Imports point down, public names are sorted and complete, importing is quiet and cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import gossamer
from gossamer import foresight, methods

ROOT = Path(gossamer.__file__).parent
# From the bottom up; a module may import its own layer and those above it in this list.
LAYERS = [
    ["errors"],
    ["_gpu_timing", "_timing", "_user_cache", "kernels"],
    ["topology"],
    ["distributed", "seeding", "sparse_layer", "targets"],
    ["foresight"],
    ["inactive"],
    ["choices", "method"],
    ["reparametrise", "tickets"],
    ["methods"],
    ["offsets"],
    ["nn"],
    [
        "candidates",
        "captures",
        "exchange",
        "hooks",
        "masking",
        "optimizer_state",
        "ownership",
        "sparse_methods",
        "timetable",
        "unfit",
    ],
    ["gate", "informed", "latent", "traits"],
    ["block_site", "capturing_site", "live_site", "site", "sites", "sparse_site"],
    ["site_kinds"],
    ["gated", "soft", "cutting", "rewiring", "rewinding", "coverage"],
    ["state", "learned_state"],
    ["sparsifier"],
    ["learned"],
    ["entry", "lottery_cs", "subspace"],
    ["analysis", "_safetensors", "_sparse_values"],
    [
        "_compression",
        "_files",
        "_fitting",
        "_packing",
        "_sparse_state",
        "_two_four",
        "checkpoint",
        "conversion",
        "lottery",
        "starting",
        "testing",
    ],
    ["experiments"],
    ["_bench", "_bench_gpu", "_terminal"],
    ["_bench_command", "_catalogue", "_costs_command"],
    ["cli"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imported(path: Path) -> set[str]:
    """Top-level gossamer modules that a file imports, at run time."""
    package = ["gossamer", *path.relative_to(ROOT).with_suffix("").parts][:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module or "").split(".")] if node.module else base
            names = [[*full, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "gossamer" and len(name) > 1 and name[1] in RANK}
    return found


def test_imports_point_down() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        layer = path.relative_to(ROOT).with_suffix("").parts[0]
        if layer == "__init__":
            continue
        assert layer in RANK, f"{layer} has no place in the layers"
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imported(path) if RANK[name] > RANK[layer]]
    assert not wrong


def test_public_names_are_sorted_and_exist() -> None:
    for module in (gossamer, gossamer.topology, foresight):
        assert list(module.__all__) == sorted(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)
    assert {"rigl", "set_", "static", "rewire"} <= set(methods.__all__)


def test_every_method_has_a_row() -> None:
    for name, info in methods.REGISTRY.items():
        assert info.name == name
        assert info.summary.endswith(".")
        assert len(info.summary) < 110
        assert info.needs
        assert any(digit.isdigit() for digit in info.source), "a source has a year"
        assert info.build(0.5).name == name


def test_import_loads_nothing_heavy_and_starts_no_cuda() -> None:
    code = (
        "import sys, gossamer, torch; "
        "heavy = {'matplotlib', 'rich', 'typer', 'yaml', 'gossamer.experiments'} & set(sys.modules); "
        "assert not heavy, heavy; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
