"""What the methods cost: to find a support, in training and in the final network, in theory and as executed.

With f_D and f_S the multiplications of one example's forward pass through all weights and through the active ones,
``f = sum(positions * entries)`` over the layers (not density times f_D, unless every layer has the same density), and
f_T those of the offset, an average training step takes per example, in multiplications of which each is 2 FLOPs

====================================  =========================================================
dense                                 3 f_D
static, SET                           3 f_S
RigL                                  3 f_S + (f_D - f_S) / dT as long as it rewires
rewire (a dense weight gradient)      2 f_S + f_D
gradual pruning                       3 f_S(t), averaged
lottery tickets                       the same over all of their trainings
with an offset                        2 f_T more: D x, and D^T g for the input and for alpha
====================================  =========================================================

but for the first layer, whose input needs no gradient. These come out of the entries of `ledger`, which say what is
executed too: "masked" by dense kernels on masked weights; "sparse" by sparse layers, or hybrid ones for methods whose
inactive weights keep a value. Elementwise work is not counted, a rewiring is N FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from ..foresight import Saliency
from ..foresight.objectives import GradientFlow
from ..method import Method
from ..nn.layer_shape import LayerShape, traced
from ..offsets import Offset
from ..sparse_methods import refusal
from ..tickets import Tickets
from ..topology import Constant, as_schedule
from ._cost_bytes import VALUE, Amount, first_bytes, held, stored
from ._offset_work import REAL_FFT, offset_work
from .cost_rows import CostRow
from .ledger import OFFSET, STEP, Ledger, Stretch, at_count, entries
from .work import Execution, Work, what_trains

_HESSIAN = 4  # gradient passes that a scoring of GraSP is worth: g, g again with its graph, and H g, twice that
_STRETCHES = 50  # parts of a training whose density falls
_END = 1 << 60  # a step after the end of every schedule


@dataclass(frozen=True)
class Network:
    """What the table has to know of a model.

    shapes: of the weights of its linear layers and convolutions, on one batch. rest: entries of all other parameters.
    buffers: bytes. classes: of its output.
    """

    name: str
    shapes: Mapping[str, LayerShape]
    rest: int
    buffers: int
    classes: int

    @classmethod
    def of(cls, name: str, model: nn.Module, x: torch.Tensor, classes: int) -> Network:
        """Trace a model on a batch; both may be on the meta device."""
        shapes = traced(model, x)
        every = sum(parameter.numel() for parameter in model.parameters())
        rest = every - sum(shape.numel for shape in shapes.values())
        return cls(name, shapes, rest, sum(buffer.nbytes for buffer in model.buffers()), classes)

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights alone."""
        return {name: shape.weight for name, shape in self.shapes.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Entries of every weight; their sum is N."""
        return {name: shape.numel for name, shape in self.shapes.items()}

    @property
    def batch(self) -> int:
        """Examples in the batch."""
        return next(iter(self.shapes.values())).batch

    def multiplications(self, counts: Mapping[str, float] | None = None) -> float:
        """Of the forward pass of one example: f_S at these counts, without any f_D."""
        counts = self.sizes if counts is None else counts
        return sum(shape.positions * counts[name] for name, shape in self.shapes.items()) / self.batch


@dataclass(frozen=True)
class Setting:
    """A training. steps: of the optimizer. slots: its slots per entry. factor: c_T, see `offset_work`."""

    steps: int
    slots: int = 2
    factor: float = REAL_FFT


@dataclass(frozen=True)
class Cost:
    """One row of the table.

    active: entries of the final supports; of: those of all weights. passes: forward and backward passes of one example
    through the dense network that finding the support takes. init: their FLOPs. step: FLOPs of an average training step
    per example. total: FLOPs of the training with its initialisation. final: FLOPs of one example through the final
    network. init_bytes: held before the first step. training_bytes: of weights, gradients, slots and indices, where a
    training holds most. kernel_bytes, final_bytes: of the final weights and factors alpha, and with all other
    parameters and buffers, as they are stored. activations: bytes of the inputs of all layers, for a batch, which a
    backward pass needs whatever the method.
    """

    network: str
    method: str
    density: float
    active: int
    of: int
    passes: int
    init: Amount
    step: Amount
    total: Amount
    final: Amount
    init_bytes: Amount
    training_bytes: Amount
    kernel_bytes: int
    final_bytes: int
    activations: int


def cost(network: Network, row: CostRow, density: float, setting: Setting) -> Cost:
    """Count what a method costs on a network.

    Raises:
        ConfigError: the density leaves less than one entry per weight.
    """
    method = row.build(density, network.classes, network.batch)
    training, final = _training(method, network, setting.steps)
    most = max((part.counts or network.sizes for part in training), key=lambda counts: sum(counts.values()))
    masked, sparse = (_works(network, row, method, setting, way) for way in ("masked", "sparse"))
    runs = isinstance(method, Method)  # the first training of a ticket is dense
    passes = _passes(method, network.batch)
    init = passes * _step_flops(network)
    forward = [_forward(works, final) for works in (masked, sparse)]
    sums = [Ledger(works, training).totals for works in (masked, sparse)]
    trained = Amount(sums[0].flops, sums[0].flops_executed, sums[1].flops_executed if runs else None)
    kernel = stored(network.sizes, method, final) + (VALUE * len(final) if row.offset else 0)
    return Cost(
        network=network.name,
        method=row.name,
        density=density if method else 1.0,
        active=sum(final.values()),
        of=sum(network.sizes.values()),
        passes=passes,
        init=Amount(init, init, init if runs else None),
        step=_scaled(trained, 1 / (sum(part.steps for part in training) * network.batch)),
        total=_scaled(trained, 1, init),
        final=_scaled(Amount(forward[0][0], forward[0][1], forward[1][1]), 1 / network.batch),
        init_bytes=first_bytes(network.sizes, method, final),
        training_bytes=Amount(*held(masked, most), held(sparse, most)[1] if runs else None),
        kernel_bytes=kernel,
        final_bytes=kernel + VALUE * network.rest + network.buffers,
        activations=VALUE * sum(shape.inputs for shape in network.shapes.values()),
    )


def offset_multiplications(
    network: Network, offset: Offset, *, packed: bool = False, factor: float = REAL_FFT
) -> tuple[float, float]:
    """f_T of one example: by fast transforms (see `offset_work`), and executed."""
    works = [
        (offset_work(offset, shape, packed=packed, factor=factor), shape.positions) for shape in network.shapes.values()
    ]
    theory = sum(work.theory * positions for work, positions in works)
    return theory / network.batch, sum(work.executed * positions for work, positions in works) / network.batch


def _scaled(amount: Amount, factor: float, added: float = 0) -> Amount:
    sparse = None if amount.sparse is None else factor * amount.sparse + added
    return Amount(factor * amount.theory + added, factor * amount.masked + added, sparse)


# -- a training ----------------------------------------------------------------------------------------------------


def _training(
    method: Method | Tickets | None, network: Network, steps: int
) -> tuple[tuple[Stretch, ...], dict[str, int]]:
    """Its parts, and the counts of the final network."""
    if method is None:
        return (Stretch(steps),), network.sizes
    if isinstance(method, Tickets):
        start, stop = method.again(steps)
        levels = method.counts(network.weights)
        return (Stretch(steps), *(Stretch(stop - start, 0, counts) for counts in levels)), levels[-1]
    resolved = method.resolve(steps)
    times = [step for step in range(1, steps) if resolved.clock.due(step)]
    final = resolved.counts(network.weights, _END)
    if isinstance(as_schedule(resolved.density), Constant):
        return (Stretch(steps, len(times), final),), final
    return _falling(resolved, network.weights, times, steps), final


def _falling(
    method: Method, shapes: Mapping[str, Sequence[int]], times: Sequence[int], steps: int
) -> tuple[Stretch, ...]:
    """Some stretches with the mean counts of each: costs are linear in counts."""
    edges = [0, *times, steps]
    parts = [(after - before, method.counts(shapes, before)) for before, after in pairwise(edges)]
    width, made = math.ceil(len(parts) / _STRETCHES), []
    for first in range(0, len(parts), width):
        group = parts[first : first + width]
        length = sum(part[0] for part in group)
        means = {name: round(sum(n * counts[name] for n, counts in group) / length) for name in shapes}
        made.append(Stretch(length, len(group) - (first == 0), means))
    return tuple(made)


def _works(
    network: Network, row: CostRow, method: Method | Tickets | None, setting: Setting, way: str
) -> tuple[Work, ...]:
    """The weights as `ledger` knows them, all entries active, and one for the other parameters."""
    execution: Execution = "masked" if way == "masked" else "sparse"
    if method is None:
        execution = "dense"
    elif way == "sparse" and isinstance(method, Method) and refusal(method):
        execution = "hybrid"
    about = what_trains(method if isinstance(method, Method) else None, network.weights)
    made = []
    for name, shape in network.shapes.items():
        offset = None
        if row.offset:
            offset = offset_work(row.offset, shape, packed=execution == "sparse", factor=setting.factor)
        work = Work(name, shape, shape.numel, shape.numel, execution, slots=setting.slots, offset=offset)
        made.append(replace(work, **about.get(name, {})))
    rest = network.rest + (len(made) if row.offset else 0)  # a factor alpha for each offset
    return (*made, Work("other parameters", None, rest, rest, "dense", slots=setting.slots))


def _step_flops(network: Network) -> float:
    """Of one example, forward and backward through the dense network."""
    works = [Work(name, shape, shape.numel, shape.numel, "dense") for name, shape in network.shapes.items()]
    return sum(entry.flops for work in works for entry in entries(work)) / network.batch


def _forward(works: Sequence[Work], counts: Mapping[str, int]) -> tuple[int, int]:
    """FLOPs of the forward pass of a batch at these counts, in theory and executed."""
    made = [
        entry
        for work in works
        for entry in entries(at_count(work, counts.get(work.name, work.numel)))
        if entry.phase in (STEP[0], OFFSET[0])
    ]
    return sum(entry.flops for entry in made), sum(entry.flops_executed for entry in made)


def _saliency(method: object) -> Saliency | None:
    return method.init if isinstance(method, Method) and isinstance(method.init, Saliency) else None


def _passes(method: object, batch: int) -> int:
    """Gradient passes of one example."""
    saliency = _saliency(method)
    if saliency is None or saliency.objective.data is None:
        return 0
    examples = batch * saliency.batches if saliency.objective.data == "examples" else 1
    return saliency.rounds * examples * (_HESSIAN if isinstance(saliency.objective, GradientFlow) else 1)
