"""At which steps a method moves entries, and what of the gradient has to be there by then."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .inactive import Live
from .method import Method


@dataclass(frozen=True)
class Timetable:
    """The steps of a resolved method. total_steps: T, or None."""

    method: Method
    total_steps: int | None

    def due(self, step: int) -> bool:
        """Whether supports may change after `step` completed steps, or in the place of step `step`."""
        if not self.method.clock.due(step):
            return False
        inactive = self.method.inactive
        if isinstance(inactive, Live):
            return inactive.exploit is None or not inactive.exploit.frozen(step - 1)
        return step != self.total_steps or self.method.rule.final is not None

    def growing(self, step: int) -> bool:
        """Whether the gradient of `step` decides where to grow."""
        if "grad" not in self.method.rule.needs:
            return False
        return self.due(step if self.method.at == "replace" else step + 1)

    def method_at(self, step: int) -> Method:
        """After the last update a rule that grows does only what still makes sense."""
        last = self.method.rule.final if step == self.total_steps and self.method.at == "after" else None
        return self.method if last is None else replace(self.method, rule=last)
