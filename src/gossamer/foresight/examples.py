"""What objectives look at: labelled examples, or inputs of ones where no data is wanted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, check_flag

Forward = Callable[[Any, Any], tuple[Any, Any]]  # (model, batch) -> (output, target)
Loss = Callable[[Any, Any], Tensor]


def pair(model: Callable[[Any], Any], batch: Any) -> tuple[Any, Any]:
    """Return (output, target) of a batch that is a pair (inputs, target).

    Raises:
        ConfigError: it is no pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ConfigError(
            f"a batch of the examples is {type(batch).__name__}, not a pair (inputs, target); give "
            "forward=lambda model, batch: (output, target)"
        )
    inputs, target = batch
    return model(inputs), target


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, classes) or (n, positions, classes), in nats.

    Raises:
        ConfigError: outputs or targets are of another kind.
    """
    if not isinstance(output, Tensor):
        raise ConfigError(
            f"the output is {type(output).__name__}, no tensor of logits; give forward=lambda model, batch: (logits, "
            "target), or loss="
        )
    if not isinstance(target, Tensor):
        raise ConfigError(f"targets are {type(target).__name__}, no tensor of classes; give loss= or forward=")
    try:
        return F.cross_entropy(output.flatten(0, -2), target.flatten())
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(
            f"cross-entropy does not take logits of shape {tuple(output.shape)} with targets of shape "
            f"{tuple(target.shape)}, {target.dtype} ({first_line(error)}); give classes as whole numbers, or loss="
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples that a loss is computed on.

    loader: iterable of batches; iterated again when it ends. It draws from generators that are put back after, except
    for one of its own (``DataLoader(generator=...)``). forward: (model, batch) -> (output, target), which must
    call the model it is given, as a whole. loss: (output, target) -> scalar, a mean over the batch.
    """

    loader: Iterable[Any]
    forward: Forward = pair
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.loader, Iterable) or isinstance(self.loader, str | bytes | Mapping | Tensor):
            raise ConfigError(
                f"data is {type(self.loader).__name__}; expected an iterable of batches such as a DataLoader"
            )
        for name in ("forward", "loss"):
            if not callable(getattr(self, name)):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is no function")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Examples) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __deepcopy__(self, memo: object) -> Examples:
        """Itself: a copy of a method looks at the same data."""
        return self

    @property
    def _key(self) -> tuple[Any, ...]:
        return id(self.loader), self.forward, self.loss

    def endless(self) -> Iterator[Any]:
        """Batch after batch, from the first.

        Raises:
            ConfigError: the loader is empty.
        """
        for turn in itertools.count():
            found = False
            for batch in self.loader:
                found = True
                yield batch
            if not found:
                when = (
                    "has no batches" if turn == 0 else "ended and cannot be iterated again; pass a list or a DataLoader"
                )
                raise ConfigError(f"the loader of examples {when}")


@dataclass(frozen=True)
class Ones:
    """One example of all ones, which serves in the place of data.

    shape: of one example, without the batch dimension. tokens: whole numbers, for models that look them up.
    passed: module types that return their input while the flow is measured, beside the norms and elementwise
        activations of torch: norm classes of your own.
    """

    shape: tuple[int, ...]
    tokens: bool = False
    passed: tuple[type[nn.Module], ...] = ()

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_flag("tokens", self.tokens)
        types = isinstance(self.passed, tuple | list)
        if not (types and all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in self.passed)):
            raise ConfigError(f"passed = {self.passed!r}: expected module types, e.g. (MyNorm,)")
        object.__setattr__(self, "passed", tuple(self.passed))
        shape = (self.shape,) if isinstance(self.shape, int) else self.shape
        if not isinstance(shape, Iterable) or isinstance(shape, str):
            raise ConfigError(f"inputs = {self.shape!r}: expected the shape of one example, e.g. (3, 32, 32)")
        sizes = tuple(shape)
        if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
            raise ConfigError(f"inputs = {self.shape!r}: expected whole sizes of one example, e.g. (3, 32, 32)")
        object.__setattr__(self, "shape", sizes)

    def tensor(self, device: torch.device) -> Tensor:
        """Return it as a batch of one, in float64 or int64."""
        return torch.ones((1, *self.shape), dtype=torch.int64 if self.tokens else torch.float64, device=device)


def as_ones(inputs: Any, tokens: bool = False) -> Ones | None:
    """Return the `Ones` of a shape; None, for a shape that is not known, and `Ones` stay as they are."""
    return inputs if inputs is None or isinstance(inputs, Ones) else Ones(inputs, tokens)


def moved(batch: Any, place: Callable[[Tensor], Tensor]) -> Any:
    """Return the batch with `place` applied to each tensor in its tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return place(batch)
    if isinstance(batch, Mapping):
        return {key: moved(value, place) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [moved(value, place) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
