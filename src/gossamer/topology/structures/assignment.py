"""The best N:M patterns of M x M tiles for any N and M: exact, many tiles at a time, with a proof of it.

A pattern has N entries in every row and N in every column. The best one is the optimum of an assignment problem: start
from any pattern and cancel positive cycles (Klein 1967). An arc from column a to column b moves an entry of some row
from a to b and gains s_b - s_a, of the row where that is most; a cycle of arcs keeps all counts. A pattern is the best
if no cycle gains. Then the longest walks to each column are prices u that prove it: for any prices

    N sum_j u_j + sum_i (the N largest of s_ij - u_j over j)

bounds every pattern from above, and with these it equals what is kept.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 17  # entries at a time

Array = np.ndarray


def best_assignments(tiles: Tensor, n: int, active: Tensor | None = None) -> Tensor:
    """Return the bool masks (tiles, M, M) of the best patterns of ``tiles`` (tiles, M, M), scores without NaN.

    active: what is active now, (tiles, M, M) bool: tiles in which it is one of the best patterns keep it. Infinities
    force: first as many of +inf as a pattern can hold, then as few of -inf, then the largest sum of the rest.

    Computed on the CPU, in whole numbers: scores are rounded to 2^-40 of the largest of their tile (coarser in tiles
    with infinities or with M > 64), so that every machine finds the same.
    """
    values = tiles.detach().cpu().double().numpy()
    start = _start(values.shape, n, None if active is None else active.cpu().numpy())
    return torch.from_numpy(_optimal(values, start)[0]).to(tiles.device)


def upper_bounds(tiles: Tensor, mask: Tensor, n: int) -> Tensor:
    """Return, for each tile, a sum that no pattern of it exceeds, float64; proven by prices, see the module.

    mask: patterns to start from. Scores must be finite.
    """
    values = tiles.detach().cpu().double().numpy()
    _, prices = _optimal(values, mask.cpu().numpy().copy())
    reduced = np.sort(values - prices[:, None, :], axis=2)[:, :, -n:]
    return torch.from_numpy(n * prices.sum(1) + reduced.sum((1, 2)))


def _start(shape: tuple[int, ...], n: int, active: Array | None) -> Array:
    m = shape[1]
    shifts = (np.arange(m)[None, :] - np.arange(m)[:, None]) % m < n
    start = np.broadcast_to(shifts, shape).copy()
    if active is not None:
        fits = (active.sum(1) == n).all(1) & (active.sum(2) == n).all(1)
        start[fits] = active[fits]
    return start


def _optimal(values: Array, mask: Array) -> tuple[Array, Array]:
    """The best patterns, from those of ``mask`` on, and prices (tiles, M) that prove them."""
    prices, by = np.zeros(mask.shape[:2]), max(1, CHUNK // mask.shape[1] ** 2)
    for at in range(0, len(mask), by):
        whole, unit = _whole(values[at : at + by])
        left = np.arange(at, at + len(whole))
        while len(left):
            part = mask[left]
            gained, walks = _cancelled(whole[left - at], part)
            mask[left] = part
            done = left[~gained]
            prices[done] = walks * unit[done - at, None]
            left = left[gained]
    return mask, prices


def _whole(values: Array) -> tuple[Array, Array]:
    """Scores as whole numbers, in float64 that adds them exactly, and what one of them stands for."""
    entries = values.shape[1] * values.shape[2]
    infinite = np.isinf(values)
    bits = min(40, 52 - (3 if infinite.any() else 1) * math.ceil(math.log2(max(2, entries))))
    finite = np.where(infinite, 0.0, values)
    largest = np.abs(finite).max((1, 2))
    unit = np.where(largest > 0, largest, 1.0) / 2.0**bits
    whole = np.rint(finite / unit[:, None, None])
    whole[np.isneginf(values)] = -(2.0**bits) * 2 ** math.ceil(math.log2(max(2, entries)))
    whole[np.isposinf(values)] = 2.0**bits * 4 ** math.ceil(math.log2(max(2, entries)))
    return whole, unit


def _cancelled(scores: Array, mask: Array) -> tuple[Array, Array]:
    """Cancel a positive cycle in each tile, in place; whether there was one, and the longest walks where not.

    The tiles are the last dimension here, so that all of them are worked on at once.
    """
    leave = np.ascontiguousarray(np.where(mask, -scores, -np.inf).transpose(1, 2, 0))  # (row, column, tiles)
    enter = np.ascontiguousarray(np.where(mask, -np.inf, scores).transpose(1, 2, 0))
    m, left = len(leave), np.arange(len(mask))
    arcs = np.stack([(leave[:, column, None] + enter).max(0) for column in range(m)])  # (from, to, tiles)
    gained, longest = np.zeros(len(mask), dtype=bool), np.maximum(arcs.max(0), 0.0)
    walks = [arcs]  # the longest of 1, 2, ... arcs
    for length in range(2, m + 1):
        walk = walks[-1][:, 0, None] + walks[0][0]
        for way in range(1, m):
            np.maximum(walk, walks[-1][:, way, None] + walks[0][way], out=walk)
        closed = walk[np.arange(m), np.arange(m)]
        positive, rest = (closed > 0).any(0), (closed <= 0).all(0)
        found, gained[left[positive]] = left[positive], True
        columns = _cycle([each[..., positive] for each in walks], closed[:, positive].argmax(0))
        _move(mask, found, columns, leave[..., found], enter[..., found])
        left, walks = left[rest], [each[..., rest] for each in (*walks, walk)]
        if not len(left):
            break
        if length < m:
            longest[:, left] = np.maximum(longest[:, left], walks[-1].max(0))
    return gained, longest.T[left]


def _cycle(walks: list[Array], first: Array) -> list[Array]:
    """The columns that the longest walks from ``first`` back to it visit, last to first: one array over tiles each.

    A shortest positive one visits no column twice.
    """
    visited, tiles = [first], np.arange(len(first))
    for walk in reversed(walks):
        visited.append((walk[first, :, tiles] + walks[0][:, visited[-1], tiles].T).argmax(1))
    return [*visited, first]


def _move(mask: Array, tiles: Array, columns: list[Array], leave: Array, enter: Array) -> None:
    """Move one entry along each arc of the cycles, in the row where that gains most."""
    number = np.arange(len(tiles))
    for target, source in itertools.pairwise(columns):
        row = (leave[:, source, number] + enter[:, target, number]).argmax(0)
        mask[tiles, row, source] = False
        mask[tiles, row, target] = True
