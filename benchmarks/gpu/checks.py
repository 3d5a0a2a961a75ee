"""What must be right before anything is timed: kernels against their references, packing, selection inside a graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from stage import Stage
from torch import Tensor

from gossamer.kernels.gpu import blocks, threshold, transforms, transposable
from gossamer.kernels.patterns import best_patterns
from gossamer.kernels.transforms import reference
from gossamer.topology import select_top

CLOSE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}

_NOT_RUN = "not run: there is no Triton here"


class WrongError(Exception):
    """A kernel does not compute what it should."""


def _demand(fine: bool, what: str) -> None:
    if not fine:
        raise WrongError(what)


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Relative; NaN, which a kernel that leaves something unwritten may show, is never close."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _near(found: Tensor, wanted: Tensor, what: str) -> None:
    off = _distance(found, wanted)
    _demand(off < CLOSE[found.dtype], f"{what} in {found.dtype} is off by {off:.2g}")


def _weights(stage: Stage, side: int) -> dict[str, Tensor]:
    normal = stage.random(side, side, dtype=torch.float32)
    ties = torch.randint(-2, 3, (side, side), device=stage.device, generator=stage.generator).float()
    half = normal.half() if stage.dry else normal.bfloat16()  # the interpreter rounds bfloat16 towards zero
    return {"normal": normal, "ties": ties, "zeros": torch.zeros_like(normal), "16 bits": half}


def transposable_masks(stage: Stage) -> str:
    """Bit for bit those of the CPU's definition."""
    side = stage.size(4096, 16)
    for kind, weight in _weights(stage, side).items():
        run = transposable.triton_prune if stage.kernels(weight) else transposable.reference_prune
        pruned, mask = run(weight, None, weight.dtype, True)
        tiles = weight.cpu().float().abs().view(side // 4, 4, side // 4, 4).transpose(1, 2).reshape(-1, 4, 4)
        wanted = best_patterns(tiles).view(side // 4, side // 4, 4, 4).transpose(1, 2).reshape(side, side)
        _demand(torch.equal(mask.cpu(), wanted), f"transposable masks of {kind} weights differ from the CPU's")
        _demand(torch.equal(pruned, torch.where(mask, weight, 0.0)), f"pruned weights of {kind} differ")
    return f"all {side * side // 16:,} tiles of {len(_weights(stage, 4))} kinds of weights"


def selection(stage: Stage) -> str:
    """Exactly count, as `select_top`; also where the sample misleads, and repeated."""
    side = stage.size(2048, 16)
    sample = threshold.SAMPLE if not stage.dry else 64
    for kind, weight in _weights(stage, side).items():
        active = stage.random(side, side, dtype=torch.float32) > 0
        for count in (1, weight.numel() // 3, weight.numel() // 2, weight.numel() - 1):
            for known in (None, active):
                if stage.kernels(weight):
                    key = threshold.triton_key(weight, known, count, sample)
                    _, mask = threshold.triton_masked(weight, known, key, weight.dtype, True)
                else:
                    key = threshold.reference_key(weight, known, count)
                    _, mask = threshold.reference_masked(weight, known, key, weight.dtype, True)
                (wanted,) = select_top([weight.abs()], count, None if known is None else [known])
                _demand(torch.equal(mask, wanted), f"{count} of {kind} weights are not those of select_top")
    return "counts 1 to all but one, ties, zeros"


def selection_in_a_graph(stage: Stage) -> str:
    """A replay follows the weights that it finds."""
    if stage.dry:
        return "not captured: dry run"
    weight = stage.random(1024, 1024, dtype=torch.float32)

    def select() -> Tensor:
        key = threshold.magnitude_key(weight, None, weight.numel() // 4)
        return threshold.masked(weight, key)[1]

    select()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask = select()
    for _ in range(3):
        weight.copy_(stage.random(1024, 1024, dtype=torch.float32))
        graph.replay()
        _demand(torch.equal(mask, select_top([weight.abs()], weight.numel() // 4)[0]), "a replayed selection is stale")
    return "three replays"


def block_products(stage: Stage) -> str:
    """Against dense products in float64."""
    if not stage.kernels(stage.random(1)):
        return _NOT_RUN
    sides = (16,) if stage.dry else blocks.SIDES
    dtypes = (torch.float32,) if stage.dry else (torch.float32, torch.bfloat16)
    for side in sides:
        for dtype in dtypes:
            _block_products(stage, side, dtype)
    return f"sides {', '.join(map(str, sides))}"


def _block_products(stage: Stage, side: int, dtype: torch.dtype) -> None:
    high, wide, batch = (3, 2, 17) if stage.dry else (24, 17, 500)
    rows, columns = high * side - 5, wide * side - 3
    held = torch.rand(high, wide, device=stage.device, generator=stage.generator) < 0.4
    dense = torch.zeros(high * side, wide * side, dtype=dtype, device=stage.device)
    dense[:rows, :columns] = stage.random(rows, columns, dtype=dtype)
    dense *= held.repeat_interleave(side, 0).repeat_interleave(side, 1)
    index = held.view(-1).nonzero().view(-1).int()
    values = dense.view(high, side, wide, side).transpose(1, 2).reshape(-1, side, side)[index.long()].contiguous()
    x, dy = stage.random(batch, columns, dtype=dtype), stage.random(batch, rows, dtype=dtype)
    matrix = dense[:rows, :columns].double()
    _near(blocks.forward(x, values, index, None, rows), x.double() @ matrix.t(), f"block {side} forward")
    dx, dvalues = blocks.backward(x, values, index, dy, True, True)
    _near(dx, dy.double() @ matrix, f"block {side} gradient of the input")
    whole = torch.zeros(high * side, wide * side, dtype=torch.float64, device=stage.device)
    whole[:rows, :columns] = dy.double().t() @ x.double()
    wanted = whole.view(high, side, wide, side).transpose(1, 2).reshape(-1, side, side)[index.long()]
    _near(dvalues, wanted, f"block {side} gradient of the values")


def fast_transforms(stage: Stage) -> str:
    """Against float64, both directions, cut and with signs."""
    if not stage.kernels(stage.random(1)):
        return _NOT_RUN
    lengths = (256,) if stage.dry else (256, 512, 1024, 2048, 4096, 8192, 16384)
    for length in lengths:
        for name in ("cosine", "hadamard"):
            for back in (False, True):
                _transform(stage, name, length, back)
    return f"lengths {lengths[0]} to {lengths[-1]}"


def _transform(stage: Stage, name: str, length: int, back: bool) -> None:
    rows, columns = length - 56, length
    signs = stage.random(columns, dtype=torch.float32).sign()
    function = reference.cosine_transposed if back else reference.cosine
    function = reference.hadamard if name == "hadamard" else function
    x = stage.random(stage.size(64, 3), rows if back else columns, dtype=torch.float32)
    wanted = reference.along(-1, x.double(), function, signs.double(), (rows, columns, length), back)
    for dtype, longest in transforms.LONGEST.items():
        if length <= longest and not (stage.dry and dtype == torch.bfloat16):
            found = transforms.transform(name, x.to(dtype), signs, (rows, columns, length), -1, back)
            _near(found, wanted, f"{name} of {length}{' back' if back else ''}")


def packing(stage: Stage) -> str:
    """What cuSPARSELt multiplies is the pruned weight, along both of its axes."""
    if stage.dry:
        return "no cuSPARSELt: dry run"
    if not torch.backends.cusparselt.is_available():
        return "no cuSPARSELt here"
    for side in (256, 4096):
        weight, _ = transposable.transposable_prune(stage.random(side, side))
        x = stage.random(512, side)
        for matrix in (weight, weight.t().contiguous()):
            packed = torch._cslt_compress(matrix)
            for _ in range(3):
                y = torch._cslt_sparse_mm(packed, x.t(), transpose_result=True)
                _near(y, x.double() @ matrix.double().t(), f"2:4 product of {side}")
    return "256 and 4096, three times each"


CHECKS: dict[Callable[[Stage], str], set[str]] = {  # and the targets that are not measured where one fails
    transposable_masks: {"G1", "G3", "G4", "G5", "G6"},
    selection: {"G9", "G10"},
    selection_in_a_graph: {"G9", "G10"},
    block_products: {"G11", "G12", "G13"},
    fast_transforms: {"G14"},
    packing: {"G1", "G3", "G4", "G6"},
}
