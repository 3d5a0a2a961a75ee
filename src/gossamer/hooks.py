"""Optimizer steps as events: before an update, after it, and whether every attached optimizer has stepped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

from . import optimizer_state
from .errors import AttachError


class StepHooks:
    """Calls `before(optimizer)` between backward pass and update, and `after(optimizer, complete)` behind the update.

    A closure is wrapped, so that `before` follows its backward pass. A step that a GradScaler skips is no event.
    `complete` is True when every optimizer has stepped in this round. A round in which a GradScaler skipped one of them
    never completes: it is `abandon`ed when the next one begins. `new_backward` says (once) whether a gradient arrived
    since it was last asked, which tells a new round from optimizers that step in another order than they were given.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer, bool], None],
        *,
        new_backward: Callable[[], bool],
        abandon: Callable[[], None],
        one_evaluation: bool,
    ) -> None:
        self.optimizers = list(optimizers)
        self._order = [id(o) for o in self.optimizers]
        self._before, self._after, self._one_evaluation = before, after, one_evaluation
        self._new_backward, self._abandon = new_backward, abandon
        self._stepped: set[int] = set()
        self._skipped: set[int] = set()
        self._open: dict[int, int] = {}  # id of an optimizer inside its step -> how many steps deep
        # disabled here and not by decorator: the decorator would load the whole compiler on import
        pre, post = torch.compiler.disable(self._pre_hook), torch.compiler.disable(self._post_hook)
        self._handles = [o.register_step_pre_hook(pre) for o in self.optimizers]
        self._handles += [o.register_step_post_hook(post) for o in self.optimizers]

    def remove(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()

    def reset(self) -> None:
        """Forget a step that did not complete."""
        self._stepped.clear()
        self._skipped.clear()
        self._open.clear()

    def _pre_hook(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if id(optimizer) in self._open and _step_frames(optimizer) > 1:  # a subclass called super().step()
            self._open[id(optimizer)] += 1
            return None
        self._open[id(optimizer)] = 1
        # torch passes the optimizer itself as args[0]
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare(optimizer)
            return None
        wrapped = self._wrap(closure, optimizer)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _wrap(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        evaluations = 0

        def evaluate() -> Any:
            nonlocal evaluations
            evaluations += 1
            if evaluations > 1 and self._one_evaluation:
                raise AttachError(
                    f"{type(optimizer).__name__} evaluates its closure more than once per step, but a live method "
                    "has already handed over its dense weights; use an optimizer that evaluates it once"
                )
            loss = closure()
            if evaluations == 1:
                self._prepare(optimizer)
            return loss

        return evaluate

    def _prepare(self, optimizer: Optimizer) -> None:
        if optimizer_state.found_inf(optimizer):
            self._skipped.add(id(optimizer))
            return
        with torch.no_grad():
            self._begin_or_go_on(id(optimizer))
            self._before(optimizer)

    def _begin_or_go_on(self, optimizer: int) -> None:
        """Notice that a round began although the last one is incomplete."""
        fresh = self._new_backward()
        overtaken = any(self._order.index(other) > self._order.index(optimizer) for other in self._stepped)
        if optimizer in self._stepped or (overtaken and fresh):
            self._stepped.clear()
            self._abandon()
        elif overtaken:  # same round, another order than given
            self._order.remove(optimizer)
            self._order.append(optimizer)

    @torch.no_grad()
    def _post_hook(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._open[id(optimizer)] -= 1
        if self._open[id(optimizer)]:
            return
        del self._open[id(optimizer)]
        if id(optimizer) in self._skipped:
            self._skipped.discard(id(optimizer))
            return
        self._stepped.add(id(optimizer))
        complete = len(self._stepped) == len(self.optimizers)
        if complete:
            self._stepped.clear()
        self._after(optimizer, complete)


def _step_frames(optimizer: Optimizer) -> int:
    """How many hooked steps of `optimizer` are on the call stack: tells a nested step from one that once raised."""
    frame: FrameType | None = sys._getframe()
    found = 0
    while frame is not None:
        hooked = frame.f_code.co_name == "wrapper" and frame.f_code.co_filename.endswith("optimizer.py")
        found += hooked and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return found
