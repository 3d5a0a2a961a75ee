"""Laws of a structure: which counts it can have, and that `select` returns the best set it allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, DivergedError, GossamerError
from ..topology import Structure, select_top
from .conformance_lab import law

_Key = tuple[float, bool, int]


class StructureLaws:
    """What every structure must hold to. Inherit it in a test class and return it from `make`.

    shapes: weights that it applies to, small ones: the laws try every exchange of two entries.

    >>> from gossamer.topology import NM
    >>> class TestTwoOfFour(StructureLaws):
    ...     def make(self):
    ...         return NM(2, 4)
    >>> TestTwoOfFour().test_the_best_allowed_set_is_selected()
    """

    shapes: Sequence[Sequence[int]] = ((3, 8), (4, 4, 2), (1, 8))

    def make(self) -> Structure:
        """Return the structure."""
        raise NotImplementedError("a class of laws needs make(), which returns the structure")

    def _counts(self, shape: Sequence[int]) -> list[int]:
        """All counts that a weight of this shape can have."""
        structure, found = self.make(), set()
        for count in range(1, torch.Size(shape).numel() + 1):
            try:
                found.add(structure.round(count, shape))
            except ConfigError:
                continue
        law(found, f"it takes no count at all of shape {tuple(shape)}; give other shapes")
        return sorted(found)

    def _cases(self) -> list[tuple[Sequence[int], int]]:
        """Shapes with a small, a middle and the largest count each."""
        chosen = []
        for shape in self.shapes:
            counts = self._counts(shape)
            picked = {counts[0], counts[len(counts) // 2], counts[len(counts) // 2 - 1], counts[-1]}
            chosen += [(shape, count) for count in sorted(picked)]
        return chosen

    def test_round_is_possible_and_settles(self) -> None:
        """A rounded count is an int between 1 and the size, and rounds to itself."""
        structure = self.make()
        law(isinstance(structure.name, str) and structure.name, "it has no name")
        law(isinstance(structure.single, bool), "single must be True or False")
        for shape in self.shapes:
            size = torch.Size(shape).numel()
            for count in self._counts(shape):
                told = f"shape {tuple(shape)}: {count!r}"
                law(type(count) is int and 1 <= count <= size, f"{told} is no int from 1 to {size}")
                law(structure.round(count, shape) == count, f"{told} rounds on to {structure.round(count, shape)}")

    def test_exactly_the_count_is_selected_and_valid(self) -> None:
        """A bool mask of the shape with exactly `count` entries, which `is_valid` accepts; inputs stay as they are."""
        structure = self.make()
        for shape, count in self._cases():
            scores, active = _scores(shape), _active(shape)
            (mask,) = structure.select([scores], count, [active])
            told = f"{count} of shape {tuple(shape)}"
            law(mask.dtype == torch.bool and mask.shape == scores.shape, f"{told}: no bool mask of that shape")
            law(int(mask.sum()) == count, f"{told}: {int(mask.sum())} were selected")
            law(structure.is_valid(mask), f"{told}: what it selects it calls invalid")
            law(torch.equal(scores, _scores(shape)) and torch.equal(active, _active(shape)), "it changed its inputs")

    def test_the_best_allowed_set_is_selected(self) -> None:
        """No exchange of a selected for another entry is both allowed and better.

        Better is: a higher score; then active; then a lower index. Most scores here tie.
        """
        structure = self.make()
        for shape, count in self._cases():
            for scores, active in ((_scores(shape), _active(shape)), (torch.zeros(tuple(shape)), _active(shape))):
                (mask,) = structure.select([scores], count, [active])
                flat, rank = mask.reshape(-1), _rank(scores, active)
                for i in flat.nonzero().view(-1).tolist():
                    for j in (~flat).nonzero().view(-1).tolist():
                        swapped = flat.clone()
                        swapped[i], swapped[j] = False, True
                        better = rank(j) > rank(i) and structure.is_valid(swapped.view(mask.shape))
                        law(not better, f"{count} of {tuple(shape)}: entry {j} should be there, not entry {i}")

    def test_selecting_again_changes_nothing(self) -> None:
        """A selected set is selected again: by its own indicator as score, and as the active set among equals."""
        structure = self.make()
        for shape, count in self._cases():
            (mask,) = structure.select([_scores(shape)], count)
            again = structure.select([mask.float()], count)[0]
            law(torch.equal(mask, again), f"{count} of {tuple(shape)}: by its own indicator another set is selected")
            kept = structure.select([torch.ones(tuple(shape))], count, [mask])[0]
            law(torch.equal(mask, kept), f"{count} of {tuple(shape)}: among equals the active set is not kept")

    def test_only_the_order_of_the_scores_counts(self) -> None:
        """Increasing functions of the scores, their dtype, memory layout and the sign of zero change nothing."""
        structure = self.make()
        same: dict[str, Callable[[Tensor], Tensor]] = {
            "2 s + 3": lambda s: 2 * s + 3,
            "s as float64": Tensor.double,
            "s as bfloat16": Tensor.bfloat16,
            "s in another memory layout": lambda s: s.transpose(0, -1).contiguous().transpose(0, -1),
            "s with -0.0 for 0.0": lambda s: torch.where((s == 0) & _active(s.shape), -0.0, s),
        }
        for shape, count in self._cases():
            scores = _scores(shape)
            (mask,) = structure.select([scores], count)
            for name, change in same.items():
                (other,) = structure.select([change(scores)], count)
                law(torch.equal(mask, other), f"{count} of {tuple(shape)}: {name} selects another set than s")

    def test_infinity_forces_and_nan_is_an_error(self) -> None:
        """+inf forces a valid set in, -inf forces the rest out, NaN raises DivergedError."""
        structure = self.make()
        for shape, count in self._cases():
            scores = _scores(shape)
            (mask,) = structure.select([-scores], count)
            told = f"{count} of {tuple(shape)}"
            forced = structure.select([torch.where(mask, torch.inf, scores)], count)[0]
            law(torch.equal(mask, forced), f"{told}: entries at +inf were left out")
            forced = structure.select([torch.where(mask, scores, -torch.inf)], count)[0]
            law(torch.equal(mask, forced), f"{told}: entries at -inf were taken")
            scores.view(-1)[0] = torch.nan
            _refuses(DivergedError, structure, [scores], count, f"{told}: a NaN was accepted")

    def test_impossible_counts_are_refused(self) -> None:
        """A count below 0 or above the size is an error."""
        structure = self.make()
        for shape in self.shapes:
            for count in (-1, torch.Size(shape).numel() + 1):
                told = f"select took a count of {count} from shape {tuple(shape)}"
                _refuses(GossamerError, structure, [_scores(shape)], count, told)

    def test_several_weights_compete_or_are_refused(self) -> None:
        """``single`` structures refuse a sequence of weights, others select `count` over all of them."""
        structure, pair = self.make(), [_scores(self.shapes[0]), _scores(self.shapes[0]) + 1]
        count = self._counts(self.shapes[0])[-1]
        if structure.single:
            _refuses(ConfigError, structure, pair, count, "single = True, but it took two weights")
            return
        masks = structure.select(pair, count)
        law(sum(int(mask.sum()) for mask in masks) == count, f"of two weights {masks} were selected, not {count}")
        law(all(structure.is_valid(mask) for mask in masks), "what it selects of two weights it calls invalid")

    def test_is_valid_tells_allowed_from_other_sets(self) -> None:
        """Either some set of a possible count is invalid, or every set is selected that `select_top` selects."""
        structure, g = self.make(), torch.Generator().manual_seed(7)
        says_no = False
        for shape, count in self._cases():
            for _ in range(50):
                (mask,) = select_top([torch.rand(tuple(shape), generator=g)], count)
                says_no = says_no or not structure.is_valid(mask)
        if says_no:
            return
        for shape, count in self._cases():
            same = torch.equal(structure.select([_scores(shape)], count)[0], select_top([_scores(shape)], count)[0])
            law(same, f"{count} of {tuple(shape)}: is_valid allows every set, but the best is not selected")


def _scores(shape: Sequence[int]) -> Tensor:
    """Few small whole numbers: exact in every dtype, with ties."""
    return torch.randint(-2, 3, tuple(shape), generator=torch.Generator().manual_seed(3)).float()


def _active(shape: Sequence[int]) -> Tensor:
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(4)) < 0.5


def _rank(scores: Tensor, active: Tensor) -> Callable[[int], _Key]:
    values, known = scores.reshape(-1).tolist(), active.reshape(-1).tolist()
    return lambda i: (values[i], known[i], -i)


def _refuses(
    error: type[GossamerError], structure: Structure, scores: Sequence[Tensor], count: int, otherwise: str
) -> None:
    try:
        structure.select(scores, count)
    except error:
        return
    law(False, f"{otherwise}, expected a {error.__name__}")
