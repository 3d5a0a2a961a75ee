"""A model whose weights move in a random subspace: w = d + U theta."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import AttachError, CheckpointError, ConfigError, check_choice, check_kept_seed, did_you_mean
from ..ownership import owned
from ..targets import check_initialised
from .projections import Disjoint, Fastfood, Projection

_DRAWN_AS = 1  # of how U is drawn; a state dict of another one would train other directions


class SubspaceModel(nn.Module):
    """A model that trains k numbers, ``theta``, in place of its N weights: w = d + U theta.

    U is never stored: it is drawn from the seed, of which a state dict keeps a copy. ``theta`` starts at zero, so
    training starts at d; weight decay of ``theta`` pulls towards d. Its columns have unit norm, so one step moves the
    weights by about k / N of a step of all of them: tune the learning rate for every k.

    Source: Li et al. 2018, arXiv:1804.08838.

    Args:
        model: any module; its Parameters hold d from now on, and are frozen.
        dimension: k.
        projection: how U is drawn.
        offset: "init": d is the model as it is. "zero": d = 0 and theta starts with the weights that it stands for,
            which is a sparse network; with `Disjoint` only. Leave scales of normalisation layers out by ``only``: at
            zero no signal passes them.
        only: name globs of the Parameters to put in the subspace; the others train as ever. None: all of them, biases
            and norms included.
        seed: of U.

    Attributes:
        theta: the trained numbers, (k,). projection, dimension, names: as given; names of what moves.

    Raises:
        ConfigError: an argument cannot be. AttachError: the model is sparsified.

    >>> model = SubspaceModel(nn.Linear(3, 2), 4)
    >>> model(torch.ones(1, 3)).shape, [name for name, p in model.named_parameters() if p.requires_grad]
    (torch.Size([1, 2]), ['theta'])
    """

    theta: nn.Parameter
    drawn: Tensor

    def __init__(
        self,
        model: nn.Module,
        dimension: int,
        projection: Projection | None = None,
        *,
        offset: Literal["init", "zero"] = "init",
        only: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        projection = Fastfood() if projection is None else projection
        _check(model, projection, offset)
        check_kept_seed(seed)
        moving = _moving(model, only)
        total = sum(p.numel() for p in moving.values())
        if isinstance(dimension, bool) or not isinstance(dimension, int) or not 1 <= dimension <= total:
            raise ConfigError(
                f"dimension is {dimension!r}; expected a whole number from 1 to {total}, the weights that move"
            )
        self.projection, self.dimension, self.names = projection, dimension, tuple(moving)
        self._shapes = {name: tuple(p.shape) for name, p in moving.items()}
        first = next(iter(moving.values()))
        self.register_buffer("drawn", torch.tensor([seed, _DRAWN_AS]))
        self.theta = nn.Parameter(torch.zeros(dimension, dtype=first.dtype))
        self._draw()
        if offset == "zero":
            self._start_at_zero(moving)
        for parameter in moving.values():
            parameter.requires_grad_(False)
        self.model = model
        self.to(first.device)

    def _draw(self) -> None:
        self.embedding = self.projection.embed(self._shapes, self.dimension, int(self.drawn[0])).to(self.theta)

    @torch.no_grad()
    def _start_at_zero(self, moving: dict[str, nn.Parameter]) -> None:
        flat = torch.cat([p.detach().reshape(-1).cpu() for p in moving.values()])
        self.theta.copy_(flat[self.embedding.get_buffer("row")])
        for parameter in moving.values():
            parameter.zero_()

    def weights(self) -> dict[str, Tensor]:
        """The weights w by name; differentiable with respect to ``theta``."""
        with torch.autocast(self.theta.device.type, enabled=False):  # weights keep the precision they are trained in
            parts = self.embedding(self.theta).split(self._sizes())
        held = {name: self.model.get_parameter(name) for name in self.names}
        return {name: p + part.view_as(p).to(p.dtype) for (name, p), part in zip(held.items(), parts, strict=True)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model computes with the weights d + U theta."""
        return functional_call(self.model, self.weights(), args, kwargs)

    @torch.no_grad()
    def finalize(self) -> nn.Module:
        """Put the weights into the model and return it: an ordinary one that trains all of them again."""
        for name, value in self.weights().items():
            self.model.get_parameter(name).copy_(value).requires_grad_(True)
        return self.model

    def extra_repr(self) -> str:
        """Dimension and projection, for ``repr``."""
        return f"dimension={self.dimension}, projection={self.projection}, weights={sum(self._sizes())}"

    def _sizes(self) -> list[int]:
        return [self.model.get_parameter(name).numel() for name in self.names]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Metadata tell what moves along which directions."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] |= {"projection": repr(self.projection), "names": self.names}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        """Draw the loaded seed's directions."""
        saved = metadata.get("projection", repr(self.projection))
        if saved != repr(self.projection):
            raise CheckpointError(
                f"the state is of a subspace with {saved}, this one has {self.projection}; make it with the same"
            )
        other = set(metadata.get("names", self.names)) ^ set(self.names)
        if other:
            raise CheckpointError(
                f"{min(other)} moves in only one of the subspaces, that of the state and this one; make it with the "
                "same only="
            )
        drawn = state_dict.get(f"{prefix}drawn")
        if drawn is not None and drawn.shape == self.drawn.shape and int(drawn[1]) != _DRAWN_AS:
            raise CheckpointError(
                f"the directions of this subspace were drawn by version {int(drawn[1])}, here is version {_DRAWN_AS}; "
                "load it with the release that saved it, and save what finalize() returns"
            )
        before = int(self.drawn[0])
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)
        if int(self.drawn[0]) != before:
            self._draw()


def _check(model: object, projection: object, offset: str) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(projection, Projection):
        raise ConfigError(f"projection is {projection!r}; expected one of gossamer.subspace, e.g. Fastfood()")
    check_choice("offset", offset, ("init", "zero"))
    if offset == "zero" and not isinstance(projection, Disjoint):
        raise ConfigError(
            f'offset="zero" with {projection} starts with all weights at zero, which nothing trains; use Disjoint() or '
            'offset="init"'
        )
    check_initialised(model)
    for name, parameter in model.named_parameters():
        if parameter in owned:
            raise AttachError(f"{name} is sparsified already; detach() first, or put the model in a subspace instead")


def _moving(model: nn.Module, only: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The Parameters of the subspace by name, each once."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    globs = ["*"] if only is None else [only] if isinstance(only, str) else list(only)
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in named):
            raise ConfigError(f"only={glob!r} matches no trainable parameter{did_you_mean(glob, named)}")
    return {name: p for name, p in named.items() if any(fnmatch.fnmatchcase(name, glob) for glob in globs)}
