"""Laws of the parts of a method that are functions: scores, quotas, allocations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from ..errors import ConfigError
from ..topology import Allocation, Entries, Quota, Score, resolve_allocation, spread
from .conformance_lab import global_seed, global_state, law

_FIELDS = ("grad", "momentum", "sign", "age")


def sample_entries(
    needs: frozenset[str] | None = None,
    shape: Sequence[int] = (6, 8),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    draws: int = 0,
) -> Entries:
    """Entries of random values, with ties and zeros, that hold the fields `needs` names; None: all fields.

    seed: of the values. draws: seed of the entries' own generator.
    """
    g = torch.Generator().manual_seed(seed)
    normal = [torch.randn(shape, generator=g).to(dtype) for _ in range(4)]
    normal[0].view(-1)[::7] = 0.0
    normal[0].view(-1)[1::9] = 0.5
    given: dict[str, Any] = {
        "grad": normal[1],
        "momentum": normal[2],
        "sign": torch.where(normal[3] < 0, -1, 1).to(torch.int8),
        "age": torch.randint(0, 50, tuple(shape), generator=g),
    }
    active = torch.rand(shape, generator=g) < 0.5
    kept = {name: value for name, value in given.items() if needs is None or name in needs}
    slots = {name: normal[3].abs() for name in (needs or ()) if name not in (*_FIELDS, "generator")}
    generator = torch.Generator().manual_seed(draws) if needs is None or "generator" in needs else None
    return Entries(normal[0], active, slots=slots, generator=generator, **kept)


class ScoreLaws:
    """What every score must hold to. Inherit it in a test class and return the score from `make`.

    >>> from gossamer.topology import scores
    >>> class TestMagnitude(ScoreLaws):
    ...     def make(self):
    ...         return scores.magnitude
    >>> TestMagnitude().test_it_is_elementwise()
    """

    def make(self) -> Score:
        """Return the score."""
        raise NotImplementedError("a class of laws needs make(), which returns the score")

    def test_one_finite_floating_point_value_per_entry(self) -> None:
        """The shape of the weight, floating point, finite, for matrices, kernels, vectors and half precision."""
        score = self.make()
        for shape in ((6, 8), (4, 3, 2, 2), (9,), (1, 1)):
            for dtype in (torch.float32, torch.bfloat16):
                value = score(sample_entries(score.needs, shape, dtype))
                told = f"shape {shape}, {dtype}: the score"
                law(value.shape == torch.Size(shape), f"{told} has shape {tuple(value.shape)}")
                law(value.is_floating_point(), f"{told} is {value.dtype}, expected floating point")
                law(torch.isfinite(value).all(), f"{told} is not finite")

    def test_needs_are_declared(self) -> None:
        """It reads nothing but weight, active and what `needs` names."""
        score = self.make()
        try:
            value = score(sample_entries(score.needs))
        except (ConfigError, TypeError, AttributeError) as error:
            raise AssertionError(f"it reads a field that needs={sorted(score.needs)} does not name: {error}") from error
        extra = frozenset((*_FIELDS, "generator")) | score.needs
        told = f"it reads more than needs={sorted(score.needs)}: its value changes when other fields are there"
        law(torch.equal(value, score(sample_entries(extra))), told)

    def test_it_is_elementwise(self) -> None:
        """Permuting the entries permutes the score, and a tile's score is that tile of the whole's."""
        score = self.make()
        if "generator" in score.needs:
            raise SkipTest("it draws random numbers in order of position")
        whole = sample_entries(score.needs)
        value = score(whole)
        order = torch.randperm(whole.weight.numel(), generator=torch.Generator().manual_seed(5))
        permuted = score(_changed(whole, lambda t: t.reshape(-1)[order]))
        law(torch.equal(value.reshape(-1)[order], permuted), "permuting the entries does not permute the score")
        law(torch.equal(value[2:4], score(_changed(whole, lambda t: t[2:4]))), "a tile scores differently by itself")

    def test_it_depends_on_its_entries_alone(self) -> None:
        """Twice the same on the same entries and random numbers; it changes no entry and no global generator."""
        score = self.make()
        entries, untouched = sample_entries(score.needs), sample_entries(score.needs)
        with global_seed(0):
            state = global_state()
            first = score(entries)
            law(global_state() == state, "it uses a global random generator: draw from entries.require_generator()")
        law(torch.equal(first, score(sample_entries(score.needs))), "it differs on equal entries")
        for name in ("weight", "active", *_FIELDS):
            old, new = getattr(untouched, name), getattr(entries, name)
            law(old is None or torch.equal(old, new), f"it changed {name} in place")
        if "generator" in score.needs:
            other = score(sample_entries(score.needs, draws=1))
            law(not torch.equal(first, other), "it needs a generator and does not draw from it")

    def test_groups_of_a_split_are_disjoint(self) -> None:
        """A `split` returns bool masks of the weight's shape, no entry in two of them."""
        score = self.make()
        if score.split is None:
            raise SkipTest("it has no split")
        entries = sample_entries(score.needs)
        parts = list(score.split(entries))
        fits = all(part.dtype == torch.bool and part.shape == entries.weight.shape for part in parts)
        law(parts and fits, "split must return bool masks of the weight's shape")
        law(torch.stack(parts).sum(0).max() <= 1, "an entry is in two groups of the split")


class QuotaLaws:
    """What every quota must hold to. Inherit it in a test class and return the quota from `make`."""

    def make(self) -> Quota:
        """Return the quota."""
        raise NotImplementedError("a class of laws needs make(), which returns the quota")

    def _shares(self, needs: frozenset[str]) -> list[float]:
        group = [sample_entries(needs, shape, seed=i) for i, shape in enumerate(((6, 8), (4, 3, 2, 2), (1, 1)))]
        kept = [entries.active & (entries.weight.abs() > 0.5) for entries in group]
        dropped = [int((e.active & ~k).sum()) for e, k in zip(group, kept, strict=True)]
        return list(self.make()(group, dropped, kept))

    def test_one_share_per_weight(self) -> None:
        """One finite share of at least 0 for each weight, which `spread` can divide a growth by."""
        shares = self._shares(self.make().needs)
        law(len(shares) == 3, f"3 weights got {len(shares)} shares")
        law(all(math.isfinite(s) and s >= 0 for s in shares), f"shares must be finite and not negative: {shares}")
        law(sum(spread(shares, [20, 20, 1], 15)) == 15, "the shares cannot be spread")

    def test_needs_are_declared(self) -> None:
        """It reads nothing but weight, active and what `needs` names, and is the same every time."""
        needs = self.make().needs
        try:
            shares = self._shares(needs)
        except (ConfigError, TypeError, AttributeError) as error:
            raise AssertionError(f"it reads a field that needs={sorted(needs)} does not name: {error}") from error
        law(shares == self._shares(needs | frozenset(_FIELDS)), f"it reads more than needs={sorted(needs)}")


class AllocationLaws:
    """What every allocation must hold to. Inherit it in a test class and return it, or its name, from `make`.

    networks: shapes by weight name. densities: tried on each; choose others where the allocation names densities.
    """

    networks: Sequence[Mapping[str, Sequence[int]]] = (
        {"a.weight": (300, 784), "b.weight": (100, 300), "head.weight": (10, 100)},
        {"conv.0": (16, 3, 3, 3), "conv.1": (16, 1, 3, 3), "a*[0]?": (8, 16, 1, 1), "fc": (10, 8)},
        {"only": (7, 5)},
        {"one": (1, 1), "vector": (9,), "wide": (2, 500), "none": (0, 4)},
    )
    densities: Sequence[float] = (0.02, 0.05, 0.1, 1 / 3, 0.5, 0.9, 0.999, 1.0)

    def make(self) -> Allocation | str | Any:
        """Return the allocation."""
        raise NotImplementedError("a class of laws needs make(), which returns the allocation")

    def _counts(self, shapes: Mapping[str, Sequence[int]], density: float) -> Mapping[str, int]:
        made = self.make()
        allocate = made if callable(made) else resolve_allocation(made)
        return allocate(shapes, density)

    def _cases(self) -> list[tuple[Mapping[str, Sequence[int]], float]]:
        sizes = [sum(map(math.prod, shapes.values())) for shapes in self.networks]
        layers = [sum(1 for shape in shapes.values() if math.prod(shape)) for shapes in self.networks]
        return [
            (shapes, density)
            for shapes, size, least in zip(self.networks, sizes, layers, strict=True)
            for density in self.densities
            if round(density * size) >= least
        ]

    def test_whole_numbers_that_add_up(self) -> None:
        """Ints for exactly the weights given, each from 1 to its size, in all round(density N)."""
        for shapes, density in self._cases():
            counts, total = self._counts(shapes, density), sum(map(math.prod, shapes.values()))
            told = f"density {density:g} of {dict(shapes)}: {dict(counts)}"
            law(counts.keys() == shapes.keys(), f"{told} are not the weights that were given")
            law(all(type(count) is int for count in counts.values()), f"{told} are no ints")
            law(sum(counts.values()) == round(density * total), f"{told} do not add up to {round(density * total)}")
            sizes = {name: math.prod(shape) for name, shape in shapes.items()}
            fits = all(min(1, sizes[n]) <= counts[n] <= sizes[n] for n in counts)
            law(fits, f"{told}: each must be from 1 to its size")

    def test_more_density_takes_from_no_weight(self) -> None:
        """As the density grows no count falls, but for one entry that rounding moves."""
        for shapes in self.networks:
            cases = sorted((density, self._counts(s, density)) for s, density in self._cases() if s is shapes)
            for (low, fewer), (high, more) in pairwise(cases):
                fallen = [name for name in shapes if more[name] < fewer[name] - 1]
                law(not fallen, f"from density {low:g} to {high:g} the counts of {fallen} fall")

    def test_it_depends_on_its_arguments_alone(self) -> None:
        """Equal when asked twice; the shapes it was given stay as they were."""
        for shapes, density in self._cases():
            given = {name: list(shape) for name, shape in shapes.items()}
            first = dict(self._counts(given, density))
            law(first == dict(self._counts(shapes, density)), f"density {density:g}: asked twice, it differs")
            law(given == {name: list(shape) for name, shape in shapes.items()}, "it changed the shapes it was given")

    def test_what_is_infeasible_is_refused(self) -> None:
        """A density outside (0, 1], or with less than one entry per weight, is a ConfigError."""
        allocate = resolve_allocation(self.make())
        for density in (0.0, -0.1, 1.5, math.nan, 1e-9):
            try:
                counts = allocate(self.networks[0], density)
            except ConfigError:
                continue
            law(False, f"density {density} was not refused but gave {dict(counts)}")


def _changed(entries: Entries, change: Any) -> Entries:
    """`change` applied to every tensor of the entries."""
    fields = {field.name: getattr(entries, field.name) for field in dataclasses.fields(entries)}
    changed = {name: change(value) if isinstance(value, Tensor) else value for name, value in fields.items()}
    return Entries(**changed | {"slots": {name: change(value) for name, value in entries.slots.items()}})
