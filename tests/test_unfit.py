"""Weights that cannot have a structure: all are named at once, and what the message says to write works."""

from __future__ import annotations

import ast
import re

import pytest
import torch
from torch import nn

import gossamer
from gossamer import methods
from gossamer.errors import ConfigError
from gossamer.experiments.config import parse_targets
from gossamer.topology import NM, Block, FanIn, Structure, Unstructured

TWO_D = NM(2, 4, transposable=True)


class Conv1D(nn.Module):
    """As Hugging Face's GPT-2 has it: weight (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.weight = nf, nn.Parameter(torch.randn(nx, nf))


def misfits() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "first": nn.Conv2d(1, 16, 3),
            "body": nn.Linear(16, 16),
            "up": nn.ConvTranspose2d(16, 8, 2),
            "gpt": Conv1D(8, 16),
            "grouped": nn.Conv2d(32, 16, 3, groups=8),
            "head": nn.Linear(16, 10),
        }
    )


TURNED = "its first dimension holds inputs"


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        (TWO_D, {"first": "input dimension 1", "grouped": "2 outputs of each group", "head": "output dimension 10"}),
        (NM(2, 4), {"first": "4 does not divide its input dimension 1", "up": TURNED, "gpt": TURNED}),
        (FanIn(), {"up": TURNED, "gpt": TURNED}),
        (Block(8, 1), {"up": TURNED, "gpt": TURNED}),
        (Block(3), {}),
        (Unstructured(), {}),
    ],
    ids=lambda each: each.name if hasattr(each, "name") else "",
)
@pytest.mark.parametrize("targets", [None, "dctps", ["*.weight", "!body.*"]])
def test_all_weights_that_do_not_fit_are_named_with_what_to_write(
    structure: Structure, names: dict[str, str], targets: str | list[str] | None
) -> None:
    """What the message says to write works, in Python and on the command line; and `first_supports` says the same."""
    method = methods.static(0.5, allocation="uniform", structure=structure)
    if names:
        with pytest.raises(ConfigError, match=f"does not fit {len(names)} of") as error:
            gossamer.sparsify(misfits(), method, targets=targets)
        with pytest.raises(ConfigError, match=re.escape(str(error.value))):
            gossamer.convert(misfits(), method, targets=targets)
        told = str(error.value)
        assert all(f"{name}.weight" in told and why in told for name, why in names.items())
        python = re.search(r"out with targets=(\[.*?\]), on", told)
        command = re.search(r"--targets '(.*)'$", told)
        assert python is not None
        assert command is not None
        wanted = [targets] if isinstance(targets, str) else targets or []
        wanted = [*wanted, *(f"!{name}.weight" for name in misfits() if name in names)]
        assert ast.literal_eval(python[1]) == wanted
        targets = parse_targets(command[1])
        assert targets == (wanted[0] if len(wanted) == 1 else wanted)
    sites = gossamer.sparsify(misfits(), method, targets=targets).sites
    assert not any(f"{name}.weight" in sites for name in names)
    assert "up.weight" in sites or "up" in names


def test_when_nothing_fits() -> None:
    method = methods.rewire(0.5, allocation="uniform", structure=NM(2, 4))
    with pytest.raises(ConfigError, match=r"no other weight is left: use another structure"):
        gossamer.sparsify(nn.Linear(6, 8), method)
    with pytest.raises(ConfigError, match=r"leave it out with targets=\[Linear, '!0.weight'\]$"):
        gossamer.sparsify(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8)), method, targets=[nn.Linear])
    gossamer.sparsify(nn.Linear(6, 8), methods.static(1.0, structure=NM(2, 4)))  # dense: nothing has to fit
