"""k-winners: of the units of a layer only the k strongest keep their value, and units that win often are held back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ..errors import ConfigError, check_flag, check_number
from ..topology import check_density
from ..topology.structures import top_of_rows
from ._checks import check_sizes, check_tensor
from ._saved_winners import keep

_HALF = (torch.float16, torch.bfloat16)
_MOST_BOOST = 80.0  # exp(-beta d) is a float32 of full precision up to there


class Entropy(NamedTuple):
    """Of the duty cycles of a layer, in bits: what it is, and what it would be if all units won equally often."""

    bits: float
    maximum: float

    @property
    def ratio(self) -> float:
        """From 0 (the same units always win) to 1."""
        return self.bits / self.maximum if self.maximum else 1.0


class _KWinners(nn.Module):
    """What both forms share. Units are ranked by activation times exp(-beta duty), see `KWinners`."""

    duty_cycle: Tensor
    boost_strength: Tensor
    learning_iterations: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        density: float,
        k_inference_factor: float,
        boost_strength: float,
        boost_strength_factor: float,
        duty_cycle_period: int,
        relu: bool,
        reference: bool,
    ) -> None:
        super().__init__()
        self.density = check_density(density)
        check_number("k_inference_factor", k_inference_factor, "how many times more units win in evaluation mode")
        if not 0 < density * k_inference_factor <= 1:
            raise ConfigError(
                f"k_inference_factor={k_inference_factor!r} at density {density:g}: {density * k_inference_factor:g} "
                f"of the units would win in evaluation mode; use a factor above 0 and up to {1 / density:g}"
            )
        check_number("boost_strength", boost_strength, "beta, how much frequent winners are held back", 0, _MOST_BOOST)
        check_number("boost_strength_factor", boost_strength_factor, "what an epoch multiplies beta by", high=1.0)
        check_sizes(duty_cycle_period=duty_cycle_period)
        check_flag("relu", relu)
        check_flag("reference", reference)
        self.k_inference_factor, self.boost_strength_factor = k_inference_factor, boost_strength_factor
        self.duty_cycle_period, self.relu, self.reference = duty_cycle_period, relu, reference
        self.register_buffer("duty_cycle", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("boost_strength", torch.tensor(float(boost_strength), dtype=torch.float32))
        self.register_buffer("learning_iterations", torch.tensor(0))

    def update_boost(self) -> None:
        """An epoch begins: beta <- beta * boost_strength_factor."""
        self.boost_strength.mul_(self.boost_strength_factor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """In a model of half precision duty cycles stay float32, as they grow by less than it can hold."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in _HALF and (old := before[name]) is not None:
                self._buffers[name] = (buffer if old.is_meta else old.to(buffer.device)).float()
        return self

    def _check(self, x: Tensor, fits: Callable[[Tensor], bool], wanted: str) -> None:
        check_tensor(x)
        if not fits(x):
            raise ConfigError(f"k-winners got an input of shape {tuple(x.shape)}; expected {wanted}")
        if not x.is_floating_point():
            raise ConfigError(f"k-winners got {x.dtype} activations; expected real floating point, e.g. x.float()")
        if self.training and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            why = "run again for the backward pass, where other units would win"
            raise ConfigError(f"k-winners are {why}; leave them out of activation checkpointing")

    def _compete(self, rows: Tensor, k: int) -> Tensor:
        """Mask in the shape of `rows`, (competitions, units) of ranks: k winners each."""
        mask = rows >= rows.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
        if self.reference or rows.is_meta:  # the latter has shapes only
            return mask
        if not torch.compiler.is_compiling() and bool((mask.count_nonzero(1) == k).all()):
            return mask
        return top_of_rows(rows, k, torch.zeros_like(mask)) | rows.isnan()  # of equals the first; NaN is no secret

    def _ranks(self, x: Tensor) -> Tensor:
        x = x.detach().float() if x.dtype in _HALF else x.detach()
        held = torch.exp(-self.boost_strength * self.duty_cycle)
        return x * held if self.reference else torch.where(x < 0, x / held, x * held)

    def _finish(self, x: Tensor, mask: Tensor) -> Tensor:
        return keep(x, mask & ~(x.detach() <= 0) if self.relu else mask)

    @torch.no_grad()
    def _learn(self, wins: Tensor, batch: int) -> None:
        """Take over a batch; wins: samples in which a unit was above 0."""
        if batch == 0:
            return
        self.learning_iterations.add_(batch)
        window = self.learning_iterations.clamp(max=self.duty_cycle_period)
        if not self.reference:
            window = window.clamp(min=batch)  # a batch longer than the period stands for all of it
        self.duty_cycle.mul_(window - batch).add_(wins).div_(window)

    def _told(self) -> str:
        options = {
            "density": self.density,
            "k_inference_factor": self.k_inference_factor,
            "boost_strength_factor": self.boost_strength_factor,
            "duty_cycle_period": self.duty_cycle_period,
        }
        flags = [f"{name}=True" for name in ("relu", "reference") if getattr(self, name)]
        return ", ".join([*(f"{name}={value:g}" for name, value in options.items()), *flags])


class KWinners(_KWinners):
    """The k = round(density * features) strongest units of every sample keep their value, the others give 0.

    Takes and gives (..., features); it stands where an activation function would. With d the duty cycles, beta the
    boost strength, units are ranked by x exp(-beta d) if x >= 0 and by x exp(beta d) if x < 0; of equal ranks the first
    win. Values are handed on as they are, and the gradient passes through the winners. After a batch of B samples in
    training mode, with t samples seen and T = max(B, min(period, t)),

        d <- (d (T - B) + samples in which the unit gave more than 0) / T

    In evaluation mode floor(k * k_inference_factor) units win (at least one), beta still counts, and nothing is
    learned. `update_boost(model)` multiplies beta once per epoch; it, d and t are buffers, so a resumed training is
    exact; d and beta stay float32 in a model of half precision.

    Args:
        features: units of a sample.
        density: share of the units that win in training mode, in (0, 1] (`percent_on`).
        k_inference_factor: how many times more win in evaluation mode.
        boost_strength: beta at first, up to 80; 0 ranks by the activation alone.
        boost_strength_factor: what `update_boost` multiplies beta by, from 0 to 1.
        duty_cycle_period: samples that duty cycles look back on.
        relu: winners below 0 give 0, too.
        reference: do as the published code: rank x exp(-beta d) for negative x too, so that units that win often rank
            higher there; keep every unit that ties with the last winner; T = min(period, t), which makes no sense for a
            batch larger than the period.

    Raises:
        ConfigError: an argument cannot be; an input has another last dimension or is not floating point; or a forward
            pass in training mode is run again for the backward pass (activation checkpointing), where winners would
            differ.

    Source: Ahmad and Scheinkman 2019 (1903.11257), and its authors' code. Deviations: those that `reference` takes
    back, and that t is part of the state dict.

    >>> layer = KWinners(4, density=0.5)
    >>> layer(torch.tensor([[1.0, 4.0, -2.0, 3.0]]))
    tensor([[0., 4., 0., 3.]])
    """

    def __init__(
        self,
        features: int,
        density: float = 0.1,
        k_inference_factor: float = 1.5,
        boost_strength: float = 1.0,
        boost_strength_factor: float = 0.9,
        duty_cycle_period: int = 1000,
        *,
        relu: bool = False,
        reference: bool = False,
    ) -> None:
        check_sizes(features=features)
        own = (k_inference_factor, boost_strength, boost_strength_factor, duty_cycle_period, relu, reference)
        super().__init__((features,), density, *own)
        self.features = features

    @property
    def k(self) -> int:
        """Winners of a sample, in the present mode."""
        k = max(1, round(self.features * self.density))
        return k if self.training else min(self.features, max(1, int(k * self.k_inference_factor)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., features) -> (..., features)."""
        self._check(x, lambda x: x.ndim > 0 and x.shape[-1] == self.features, f"(..., {self.features})")
        rows = self._ranks(x).reshape(-1, self.features)
        out = self._finish(x, self._compete(rows, self.k).view(x.shape))
        if self.training:
            self._learn((out.detach() > 0).reshape(rows.shape).sum(0), len(rows))
        return out

    def entropy(self) -> Entropy:
        """Entropy of the duty cycles: the sum over the units of that of winning or not, and the most for this k."""
        k = max(1, round(self.features * self.density))
        return Entropy(_binary(self.duty_cycle), self.features * _binary(torch.tensor(k / self.features)))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.features}, {self._told()}"


class KWinners2d(_KWinners):
    """The strongest units of every image keep their value, the others give 0; a duty cycle belongs to a channel.

    Takes and gives (batch, channels, height, width) of any size. As `KWinners`, with n = channels * height * width
    units of an image, of which round(density * n) win, in evaluation mode round(density * k_inference_factor * n); with
    ``local`` the n = channels units at each position compete among themselves. A channel's duty cycle counts its units
    above 0 divided by height * width.

    Args:
        channels: of an image.
        local: whether each position has its own winners.
        density, k_inference_factor, boost_strength, boost_strength_factor, duty_cycle_period, relu, reference: as in
            `KWinners`.

    Raises:
        ConfigError: an argument cannot be, an input has other axes, or as `KWinners`.

    Source: as of `KWinners`. Deviation: the published code takes n from the first image it meets.
    """

    def __init__(
        self,
        channels: int,
        density: float = 0.1,
        k_inference_factor: float = 1.5,
        boost_strength: float = 1.0,
        boost_strength_factor: float = 0.9,
        duty_cycle_period: int = 1000,
        *,
        local: bool = False,
        relu: bool = False,
        reference: bool = False,
    ) -> None:
        check_sizes(channels=channels)
        check_flag("local", local)
        own = (k_inference_factor, boost_strength, boost_strength_factor, duty_cycle_period, relu, reference)
        super().__init__((1, channels, 1, 1), density, *own)
        self.channels, self.local = channels, local

    def k(self, height: int, width: int) -> int:
        """Winners of an image of this size (``local``: of each of its positions), in the present mode."""
        n = self.channels if self.local else self.channels * height * width
        winners = n * self.density if self.training else n * self.density * self.k_inference_factor
        return min(n, max(1, round(winners)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same."""
        self._check(
            x,
            lambda x: x.ndim == 4 and x.shape[1] == self.channels and 0 not in x.shape[2:],
            f"(batch, {self.channels}, height, width)",
        )
        ranks, k = self._ranks(x), self.k(x.shape[2], x.shape[3])
        if self.local:
            last = ranks.movedim(1, -1)
            mask = self._compete(last.reshape(-1, self.channels), k).view(last.shape).movedim(-1, 1)
        else:
            mask = self._compete(ranks.flatten(1), k).view(x.shape)
        out = self._finish(x, mask)
        if self.training:
            positions = x.shape[2] * x.shape[3]
            self._learn((out.detach() > 0).sum((0, 2, 3)).view(1, -1, 1, 1) / positions, len(x))
        return out

    def entropy(self) -> Entropy:
        """As `KWinners.entropy`, per position of an image; times height * width it is that of all units."""
        return Entropy(_binary(self.duty_cycle), self.channels * _binary(torch.tensor(self.density)))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.channels}, {self._told()}{', local=True' if self.local else ''}"


def _binary(p: Tensor) -> float:
    """Sum of the entropies, in bits, of events of probability p."""
    p = p.double()
    return float(-(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum()) / math.log(2)


def update_boost(model: nn.Module) -> None:
    """An epoch begins: multiply beta of every `KWinners` and `KWinners2d` in `model` by its factor.

    Call it before each epoch, the first included, in a training loop of your own; `gossamer train` does.
    """
    for module in model.modules():
        if isinstance(module, _KWinners):
            module.update_boost()
