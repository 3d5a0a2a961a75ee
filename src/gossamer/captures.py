"""What backward passes leave behind in a layer, sorted by whether they count."""

from __future__ import annotations

from typing import Any

import torch


class Captures:
    """Takes what a layer appends in backward passes, and holds what led to the gradient that its values have.

    A pass that delivers no gradient to the values, such as ``torch.autograd.grad(loss, inputs)``, does not count.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []
        self._pending: list[tuple[int, Any]] = []

    def append(self, item: Any) -> None:
        """Take what the pass that runs now leaves; what an earlier one left and nobody confirmed is dropped."""
        now = _running()
        self._pending = [(task, each) for task, each in self._pending if task == now]
        self._pending.append((now, item))

    def confirm(self, *, begins: bool) -> None:
        """The pass that runs now delivers a gradient to the values; `begins`: they have none yet to be added to."""
        now = _running()
        new = [each for task, each in self._pending if task == now]
        self.held = new if begins else self.held + new
        self._pending = []


def _running() -> int:
    """A number for the backward pass that runs now."""
    return int(torch._C._current_graph_task_id())
