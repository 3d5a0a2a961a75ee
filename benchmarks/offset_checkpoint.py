"""The file of a MobileNetV2 that trains a thousandth of its weights on top of DCT offsets: which bytes are what.

    python benchmarks/offset_checkpoint.py [--density 0.001] [--json FILE]

Predicted: the values of S (4 bytes each), one alpha per layer, four vectors per batch norm, the biases of S. What the
file holds beside: where the values lie (or the seed that they were drawn from), batch norm's counters, and its header.
All tensors have numbers as after training, so that none is stored sparse for its zeros.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import torch
from comparison import Report
from torch import nn

import gossamer
from gossamer import checkpoint
from gossamer.experiments import models
from gossamer.nn import OffsetConv2d, OffsetLinear
from gossamer.offsets import DCT

INPUT, CLASSES = (3, 32, 32), 10
KINDS = ("values of S", "where they lie", "alpha", "batch norm", "biases", "other")


def kind_of(entry: str, norms: set[str], sparse: set[str], positions: set[str]) -> str:
    """What an entry of the file is."""
    owner, _, last = entry.rpartition(".")
    if entry in positions:
        return "where they lie"
    if entry in sparse:
        return "values of S"
    if last == "alpha":
        return "alpha"
    if owner in norms:
        return "batch norm" if last != "num_batches_tracked" else "other"
    return "biases" if last == "bias" else "other"


def held(path: Path, model: nn.Module) -> dict[str, int]:
    """Bytes of each kind in a file."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    info = json.loads(header.pop("__metadata__")["gossamer"])
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    sparse = {part["values"] for part in info["sparse"].values()}
    positions = {support["tensor"] for support in info["supports"].values() if "tensor" in support}
    sizes: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    for entry, about in header.items():
        begin, end = about["data_offsets"]
        sizes[kind_of(entry, norms, sparse, positions)] += end - begin
    return {**sizes, "header": start, "file": len(raw)}


def predicted(model: nn.Module, count: int) -> dict[str, int]:
    """Bytes by formula; the file is their sum at least."""
    layers = [module for module in model.modules() if isinstance(module, OffsetConv2d | OffsetLinear)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    biases = [layer.sparse.bias for layer in layers if layer.sparse.bias is not None]
    sizes = {
        "values of S": 4 * count,
        "alpha": 4 * len(layers),
        "batch norm": sum(4 * 4 * module.num_features for module in norms),
        "biases": sum(4 * bias.numel() for bias in biases),
    }
    return {**sizes, "file": sum(sizes.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    arguments = parser.parse_args()
    report = Report("The file of a network with offsets", arguments)
    model = models.build("mobilenetv2", (INPUT, CLASSES))
    dense = sum(4 * p.numel() for p in model.parameters() if p.ndim > 1)
    method = gossamer.methods.static(arguments.density, allocation="equal_per_layer")
    model = gossamer.convert(model, method, offset=DCT())
    sparsifier = gossamer.sparsify(model, method)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
    count = sum(support.count for support in sparsifier.supports.values())
    print(f"\nMobileNetV2, {dense // 4:,} weights in {len(sparsifier.supports)} layers, {count:,} of them active")
    with tempfile.TemporaryDirectory() as folder:
        by_index, by_seed = Path(folder) / "index", Path(folder) / "seed"
        checkpoint.save_model(by_index, model)
        checkpoint.save_model(by_seed, model, sparsifier)
        columns = [predicted(model, count), held(by_index, model), held(by_seed, model)]
    report.table(
        ("KB of", "predicted", "file", "file, positions as seeds"),
        [(kind, *(column.get(kind, 0) / 1e3 for column in columns)) for kind in (*KINDS, "header", "file")],
    )
    formula, indexed, _ = columns
    for kind, expected in formula.items():
        if kind != "file" and indexed[kind] != expected:
            raise SystemExit(f"{kind}: the file has {indexed[kind]} bytes, predicted were {expected}")
    norm = formula["batch norm"] / formula["values of S"]
    report.note(
        f"Batch norm takes {norm:.0f} times the bytes of S; the weights would take {dense / 1e3:,.0f} KB dense."
    )
    report.write()


if __name__ == "__main__":
    main()
