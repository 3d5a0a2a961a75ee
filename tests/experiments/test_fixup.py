"""Fixup nets: what they compute, how they start, and the scale of their offsets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.experiments.models import build
from gossamer.experiments.models.fixup import FixupBlock, fixup_offset_alphas
from gossamer.nn.offset import OffsetConv2d, OffsetLinear
from gossamer.offsets import DCT, Offset, SignedDCT

CIFAR = ((3, 32, 32), 10)


def converted(name: str, offset: Offset) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, CIFAR)
    for path, module in list(model.named_modules()):
        parent, _, attribute = path.rpartition(".")
        if isinstance(module, nn.Conv2d):
            setattr(model.get_submodule(parent), attribute, OffsetConv2d.from_dense(module, offset))
        elif isinstance(module, nn.Linear):
            setattr(model.get_submodule(parent), attribute, OffsetLinear.from_dense(module, offset))
    return model


def alphas(model: nn.Module) -> dict[str, float]:
    kinds = (OffsetConv2d, OffsetLinear)
    return {path: float(module.alpha.detach()) for path, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_a_block_by_hand(inputs: int, outputs: int, stride: int) -> None:
    torch.manual_seed(0)
    block, x = FixupBlock(inputs, outputs, stride).double(), torch.randn(2, inputs, 6, 6).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    b1, b2, b3, b4 = (shift.bias for shift in (block.shift1, block.shift2, block.shift3, block.shift4))
    conv = nn.functional.conv2d
    hidden = torch.relu(conv(x + b1, block.conv1.weight, stride=stride, padding=1) + b2)
    branch = conv(hidden + b3, block.conv2.weight, padding=1) * block.scale + b4
    shortcut: Tensor = x
    if stride > 1:
        shortcut = torch.cat([(x + b1)[:, :, ::2, ::2], torch.zeros(2, outputs - inputs, 3, 3).double()], 1)
    torch.testing.assert_close(block(x), torch.relu(branch + shortcut))


def test_it_starts_as_fixup_says() -> None:
    torch.manual_seed(0)
    model = build("fixup20", CIFAR)
    blocks = [module for module in model.modules() if isinstance(module, FixupBlock)]
    assert len(blocks) == 9
    for block in blocks:
        weight = block.conv1.weight
        assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * len(weight)) / 9), rel=0.1)
        assert float(weight.detach().mean().abs()) < 0.01
        assert not block.conv2.weight.any()
        assert float(block.scale.detach()) == 1
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    assert not model(torch.randn(2, 3, 32, 32)).any()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_he_leaves_no_zeros() -> None:
    torch.manual_seed(0)
    model = build("fixup8", CIFAR, he=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)


@pytest.mark.parametrize(("published", "equal", "entry"), [(True, 0.438, 0.369), (False, 0.192, 0.136)])
def test_factors_of_the_offsets_of_fixup_resnet_110(published: bool, equal: float, entry: float) -> None:
    model = converted("fixup110", DCT())
    found = alphas(fixup_offset_alphas(model, published=published))
    entries = {"stage2_1.conv1", "stage3_1.conv1"}
    assert len(found) == 110
    for name, value in found.items():
        if name == "stem":
            assert value == 1
        elif name.endswith("conv1"):
            assert value == pytest.approx(entry if name in entries else equal, abs=6e-4), name
        else:
            assert value == 0


def test_with_r_the_offset_has_the_norm_of_fixups_filters() -> None:
    """A statement about both: mean norm of alpha K_D and of the Gaussian filters that it stands for."""
    model, plain = converted("fixup8", SignedDCT()), build("fixup8", CIFAR)
    fixup_offset_alphas(model, published=False)
    for path, module in model.named_modules():
        if path.endswith("conv1"):
            own = module.effective_weight().detach().flatten(1).norm(dim=1).mean()
            drawn = plain.get_submodule(path).weight.detach().flatten(1).norm(dim=1).mean()
            assert float(own) == pytest.approx(float(drawn), rel=0.05)


def test_all_of_it_must_be_offsets() -> None:
    for model in (build("fixup8", CIFAR), build("resnet8", CIFAR), nn.Linear(3, 3)):
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(ConfigError, match="no Fixup net with an offset in every layer"):
            fixup_offset_alphas(model)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_it_trains_from_offsets_alone() -> None:
    """Everything at zero but the offsets of the first convolutions: still the loss falls."""
    torch.manual_seed(0)
    model = fixup_offset_alphas(converted("fixup8", SignedDCT()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y, losses = torch.randn(16, 3, 32, 32), torch.randint(10, (16,)), []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(10), rel=1e-3)
    assert losses[-1] < 0.9 * losses[0]
