"""`convert` with layout "semi_structured": for methods that make 2:4 weights, and for models that have them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer import methods
from gossamer.errors import ConfigError
from gossamer.nn import SemiStructuredConv2d, SemiStructuredLinear, conversion_report
from gossamer.offsets import DCT
from gossamer.topology import NM, Support

METHOD = replace(methods.static(0.5, allocation="uniform"), structure=NM(2, 4))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 12)
    )


def convert(*arguments: Any, **named: Any) -> nn.Module:
    return gossamer.convert(*arguments, layout="semi_structured", **named)


def test_layers_that_can_be_packed_are_swapped_and_the_report_says_why_others_are_not() -> None:
    made = convert(model(), METHOD)
    assert [type(layer) for layer in made] == [  # type: ignore[call-overload]
        *(SemiStructuredConv2d, nn.ReLU, nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
    ]
    report = str(conversion_report(made))
    assert "only 1x1 convolutions without groups and padding are matrix products; this one stays masked" in report
    assert "12 x 32: packing needs multiples of 16" in report
    assert "0.weight  semi_structured" in report


def test_it_goes_back_and_forth_with_the_same_parameters() -> None:
    first = model()
    weights = dict(first.named_parameters())
    made = convert(first, METHOD)
    gossamer.sparsify(made, METHOD).detach()
    with pytest.raises(ConfigError, match="holds sparse layers already"):
        convert(made, METHOD)
    back = gossamer.convert(made, layout="dense")
    assert [type(layer) for layer in back] == [type(layer) for layer in model()]  # type: ignore[call-overload]
    assert all(weights[name] is p for name, p in back.named_parameters())
    again = convert(back)
    assert again[0].is_semi_structured  # type: ignore[index, union-attr]
    assert type(gossamer.convert(again, layout="masked")[0]) is nn.Conv2d  # type: ignore[index]


def test_trained_weights_are_found_without_a_method() -> None:
    trained = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    with pytest.raises(ConfigError, match=r"none of the 2 targeted weights is 2:4 yet; pass a method"):
        convert(copy.deepcopy(trained))
    gossamer.sparsify(trained, METHOD, targets="1.weight").detach()
    x = torch.randn(3, 16)
    expected = trained(x)
    made = convert(trained)
    assert [type(layer) for layer in made] == [nn.Linear, SemiStructuredLinear]  # type: ignore[call-overload]
    made[1].execution = "packed"  # type: ignore[index, union-attr]
    torch.testing.assert_close(made(x), expected)


def test_given_supports_name_layers() -> None:
    mask = torch.tensor([True, False, True, False]).repeat(32, 4)
    made = convert(nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)), {"0.weight": mask})
    assert [type(layer) for layer in made] == [SemiStructuredLinear, nn.Linear]  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"support of 0.weight is not 2:4 along its inputs"):
        convert(nn.Sequential(nn.Linear(16, 32)), {"0.weight": Support.full(torch.Size((32, 16)))})


@pytest.mark.parametrize("structure", [NM(2, 4), NM(2, 4, transposable=True), NM(1, 4), NM(1, 2)])
def test_structures_that_keep_two_of_four_are_taken(structure: NM) -> None:
    density = structure.n / structure.m
    method = replace(methods.ste(density, allocation="uniform"), structure=structure)
    made = convert(nn.Sequential(nn.Linear(16, 32)), method)
    gossamer.sparsify(made, method)
    assert made[0].is_semi_structured  # type: ignore[index, union-attr]


def test_what_cannot_be_is_refused() -> None:
    plain = nn.Sequential(nn.Linear(16, 32))
    with pytest.raises(ConfigError, match=r"'rigl' makes unstructured weights, .* are for 2:4 along inputs; use"):
        convert(plain, methods.rigl(0.5))
    with pytest.raises(ConfigError, match=r"makes 2:4 along outputs weights"):
        convert(plain, replace(METHOD, structure=NM(2, 4, axis="outputs")))
    with pytest.raises(ConfigError, match=r'layout="semi_structured" takes no offset'):
        convert(plain, METHOD, offset=DCT())
    with pytest.raises(ConfigError, match=r"no layer can be swapped: 0.weight: 12 x 16: packing needs multiples of 16"):
        convert(nn.Sequential(nn.Linear(16, 12)), METHOD)
    assert type(plain[0]) is nn.Linear
