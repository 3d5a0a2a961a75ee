"""Singular values of per-example Jacobians: all of them from the explicit matrix, or estimates from its products."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ConfigError, DivergedError

TINY = 1e-14  # relative length below which a Lanczos vector is rounding error


class JacobianMap:
    """The Jacobian of one recorded computation, as products.

    x: (examples, ...), y: (examples, ...), float64 and joined by an autograd graph. Vectors are (examples, inputs) and
    (examples, outputs), with the other dimensions flattened. Example b of y must depend on example b of x only: then
    one backward pass serves all examples.

    Raises:
        ConfigError: y does not depend on x, has another number of examples, or mixes examples.
    """

    def __init__(self, name: str, x: Tensor, y: Tensor) -> None:
        self.name, self.x, self.y = name, x, y
        if y.ndim == 0 or x.shape[0] != y.shape[0]:
            raise ConfigError(
                f"{name} turns {tuple(x.shape)} into {tuple(y.shape)}: Jacobians are taken per example, so dimension 0 "
                "must hold the same examples in both; leave it out with modules="
            )
        self.examples = x.shape[0]
        self.inputs, self.outputs = math.prod(x.shape[1:]), math.prod(y.shape[1:])
        if not min(self.examples, self.inputs, self.outputs):
            raise ConfigError(
                f"{name} turns {tuple(x.shape)} into {tuple(y.shape)}, which is empty; pass some examples"
            )
        for place in {0, self.examples - 1}:
            self._check_example(place)

    def _check_example(self, place: int) -> None:
        """The output of one example must react to the same example, and to no other."""
        probe = torch.zeros_like(self.y)
        probe[place] = torch.cos(torch.arange(self.outputs, device=probe.device)).view_as(probe[place])
        reaction = None
        if self.y.requires_grad:
            (reaction,) = torch.autograd.grad(self.y, self.x, probe, retain_graph=True, allow_unused=True)
        if reaction is None:
            raise ConfigError(
                f"the output of {self.name} does not depend on its input by a differentiable path; a detach() or "
                "no_grad() inside it cuts the path"
            )
        self.check(reaction)
        reaction[place] = 0
        if reaction.count_nonzero():
            raise ConfigError(
                f"{self.name} mixes the examples of a batch (dimension 0 is not the batch, or it computes statistics "
                "over it): a Jacobian per example does not exist; pass one example, or leave it out with modules="
            )

    @property
    def count(self) -> int:
        """Singular values of all examples together."""
        return self.examples * min(self.inputs, self.outputs)

    @property
    def entries(self) -> int:
        """Entries of all explicit Jacobians together."""
        return self.examples * self.inputs * self.outputs

    def adjoint(self, u: Tensor) -> Tensor:
        """J^T u: (examples, outputs) to (examples, inputs)."""
        (pulled,) = torch.autograd.grad(self.y, self.x, u.view_as(self.y), retain_graph=True)
        return pulled.reshape(self.examples, -1)

    @cached_property
    def _pulled(self) -> tuple[Tensor, Tensor]:
        """A variable u and J^T u, which is linear in u: its derivative along v is J v."""
        u = torch.zeros_like(self.y, requires_grad=True)
        return u, torch.autograd.grad(self.y, self.x, u, create_graph=True)[0]

    def apply(self, v: Tensor) -> Tensor:
        """J v: (examples, inputs) to (examples, outputs), by differentiating J^T u with respect to u."""
        u, pulled = self._pulled
        return torch.autograd.grad(pulled, u, v.view_as(self.x), retain_graph=True)[0].reshape(self.examples, -1)

    def check(self, *products: Tensor) -> None:
        """Raise DivergedError if a product is not finite."""
        if not all(bool(product.isfinite().all()) for product in products):
            raise DivergedError(
                f"the Jacobian of {self.name} is not finite; look for inf or nan in its weights, its statistics and "
                "the inputs"
            )

    def explicit(self) -> Tensor:
        """The Jacobians, (examples, outputs, inputs), row by row or column by column, whichever are fewer."""
        wide = self.outputs <= self.inputs
        product, size = (self.adjoint, self.outputs) if wide else (self.apply, self.inputs)
        lines = []
        for place in range(size):
            one = self.x.new_zeros(self.examples, size)
            one[:, place] = 1
            lines.append(product(one))
        self.check(*lines)
        return torch.stack(lines, dim=1 if wide else 2)


def exact(jacobian: JacobianMap) -> Tensor:
    """Every singular value, (examples, min(inputs, outputs)), in falling order per example."""
    return torch.linalg.svdvals(jacobian.explicit())


def quadrature(jacobian: JacobianMap, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nodes and weights (examples, steps) with ``sum(weights * f(nodes))`` ~ mean of f over the singular values.

    Golub-Kahan bidiagonalisation with full reorthogonalisation, from one random unit vector per example on the smaller
    side of the Jacobian. The nodes lie between the smallest and the largest singular value; for f(s) = s^2 the
    estimate is the random vector's own (Hutchinson), without quadrature error, and its expectation is exact.

    Source: Golub and Kahan 1965, SIAM J. Numer. Anal. B 2; Ubaru, Chen and Saad 2017, SIAM J. Matrix Anal. Appl. 38.
    """
    narrow = jacobian.inputs <= jacobian.outputs
    push, pull = (jacobian.apply, jacobian.adjoint) if narrow else (jacobian.adjoint, jacobian.apply)
    size = min(jacobian.inputs, jacobian.outputs)
    start = torch.randn(jacobian.examples, size, generator=generator, dtype=torch.float64).to(jacobian.x.device)
    left: list[Tensor] = [start / start.norm(dim=1, keepdim=True)]
    right: list[Tensor] = []
    diagonal: list[Tensor] = []
    above: list[Tensor] = []
    scale = start.new_zeros(jacobian.examples)
    for step in range(min(steps, size)):
        if step:
            vector, length = _unit(pull(right[-1]), left, scale)
            left.append(vector)
            above.append(length)
        vector, length = _unit(push(left[-1]), right, scale)
        right.append(vector)
        diagonal.append(length)
        scale = torch.maximum(scale, length)
    jacobian.check(*diagonal, *above)
    band = torch.diag_embed(torch.stack(diagonal, 1))
    if above:
        band += torch.diag_embed(torch.stack(above, 1), offset=1)
    _, nodes, vectors = torch.linalg.svd(band)
    return nodes, vectors[:, :, 0].square()


def _unit(vector: Tensor, basis: list[Tensor], scale: Tensor) -> tuple[Tensor, Tensor]:
    """What of `vector` is orthogonal to the basis, as direction and length; zero where nothing but rounding is left."""
    if basis:
        known = torch.stack(basis)
        for _ in range(2):  # once more for what cancellation left
            vector = vector - torch.einsum("jbn,jb->bn", known, torch.einsum("jbn,bn->jb", known, vector))
    length = vector.norm(dim=1)
    length = torch.where(length > TINY * scale, length, 0.0)
    return vector / torch.where(length > 0, length, 1.0)[:, None], length
