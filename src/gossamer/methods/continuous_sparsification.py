"""Continuous Sparsification: a soft gate per weight, sharpened until it is a support."""

from __future__ import annotations

from ..reparametrise import Learned, SoftGate
from ._registry import named


@named("cs", needs="dense weights, a gate per weight, dense gradient", source="Savarese et al. 2020 (1912.04427)")
def cs(
    density: float | None,
    s_init: float = 0.0,
    penalty: float = 1e-8,
    temperature: float = 200.0,
    gate_lr: float = 0.1,
    gate_momentum: float = 0.9,
    finalize: int | float = 0.75,
) -> Learned:
    """Continuous Sparsification: soft gates that train with the weights and sharpen to 0 or 1.

    theta = w sigmoid(beta s) / sigmoid(s0), loss + lambda sum sigmoid(beta s), beta = B^(t/(F-1)) in step t; after
    step F the gates with s > 0 stay, theta becomes the weight, and a static run goes on without rewinding.

    density: our addition: keep exactly round(d N) entries, those of the largest s of all weights; None: those with
        s > 0, an outcome of s0 and lambda. Every weight keeps one entry at least.
    s_init: s0, lower is sparser. penalty: lambda. temperature: B.
    gate_lr, gate_momentum: of the gates' own SGD (Nesterov, no weight decay); its rate follows that of the weights.
    finalize: F, a step or a fraction of training.

    Deviations: beta grows per step, in the paper per epoch. The paper's ticket search is
    `gossamer.lottery_cs.find_ticket_cs`.
    """
    gate = SoftGate(s_init, penalty, temperature, gate_lr, gate_momentum)
    return Learned(name="cs", density=density, gate=gate, finalize=finalize)
