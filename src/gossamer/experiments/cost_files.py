"""The models of the cost table: as the slides of DCTpS have them, and their checkpoints written to measure them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import methods
from ..analysis.cost_rows import CostRow
from ..analysis.cost_table import Network
from ..checkpoint import save_model
from ..conversion import convert
from ..entry import sparsify
from ..method import Method
from ..topology import scores
from .models import build


@dataclass(frozen=True)
class CostModel:
    """A reference model and its data. classes, options: of the model."""

    name: str
    image: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    options: Mapping[str, Any] = field(default_factory=dict)

    def made(self) -> nn.Module:
        """The model, in the random state of seed 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(self.name, (self.image, self.classes), **self.options)

    def network(self, batch: int) -> Network:
        """What the cost table knows of it; nothing is computed."""
        with torch.device("meta"):
            return Network.of(self.name, self.made(), torch.zeros(batch, *self.image), self.classes)


SLIDES = {
    model.name: model
    for model in (
        CostModel("mobilenetv2", options={"projections": True}),
        CostModel("resnet50", classes=100),
        CostModel("fixup110"),
        CostModel("vgg19"),
        CostModel("lenet5-dctps"),
    )
}
"""Those of the slides, on CIFAR-10, and CIFAR-100 where they have that."""


def file_bytes(model: CostModel, row: CostRow, density: float) -> int:
    """Size of the checkpoint that `save_model` writes of the final model.

    Supports are those that the method starts with if it draws them, else as many of the largest initial weights:
    positions that no seed gives, as those that a score or training finds.
    """
    made, method = model.made(), row.build(density, model.classes, 128)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        if method is None:
            save_model(path, made)
            return path.stat().st_size
        if not isinstance(method, Method) or method.init is not scores.random:
            method = methods.static(density, allocation=method.allocation, init=scores.magnitude)
        if row.offset is not None:
            made = convert(made, offset=row.offset, targets="dctps")
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        sparsifier = sparsify(made, method, optimizer, total_steps=1000, targets="dctps")
        save_model(path, made, sparsifier)
        return path.stat().st_size
