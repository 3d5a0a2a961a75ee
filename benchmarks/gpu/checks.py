"""What must be right before anything is timed: kernels against their references, packing, selection inside a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from stage import Stage
from torch import Tensor

from gossamer.kernels.gpu import blocks, threshold, transforms, transposable
from gossamer.kernels.patterns import best_patterns
from gossamer.kernels.transforms import reference
from gossamer.nn import BlockSparseLinear
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
                (wanted,) = select_top([weight.abs().cpu()], count, None if known is None else [known.cpu()])
                _demand(torch.equal(mask.cpu(), wanted), f"{count} of {kind} weights are not those of select_top")
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
        (wanted,) = select_top([weight.abs().cpu()], weight.numel() // 4)
        _demand(torch.equal(mask.cpu(), wanted), "a replayed selection is stale")
    return "three replays"


def block_products(side: int, dtype: torch.dtype, stage: Stage) -> str:
    """Against dense products in float64; in bfloat16 of every configuration that the targets try."""
    if not stage.kernels(stage.random(1)) or (stage.dry and (side > 16 or dtype == torch.bfloat16)):
        return _NOT_RUN
    _block_products(stage, side, dtype)
    tried = 0
    for config in () if dtype == torch.float32 else blocks.CONFIGS:
        tried += _configured(stage, side, config)
    return f"to the edge, both gradients; {tried} configurations" if tried else "to the edge, both gradients"


def fitting(run: Callable[[], object]) -> bool:
    """Whether a configuration fits the chip: some ask for more shared memory than there is."""
    from triton.runtime.errors import OutOfResources

    try:
        run()
    except OutOfResources:
        return False
    return True


def _configured(stage: Stage, side: int, config: blocks.Config) -> bool:
    """Sizes divide as those of the targets do, so that these find their kernels compiled."""
    n, tokens = 8 * side, 512
    dense = stage.random(n, n).view(8, side, 8, side).transpose(1, 2).reshape(-1, side, side)
    index = torch.arange(0, 64, 3, dtype=torch.int32, device=stage.device)
    values, x = dense[index.long()].contiguous(), stage.random(tokens, n)
    found: list[Tensor] = []
    if not fitting(lambda: found.append(blocks.block_matmul(x, values, index, None, n, config))):
        return False
    held = torch.zeros_like(dense)
    held[index.long()] = values
    matrix = held.view(8, 8, side, side).transpose(1, 2).reshape(n, n)
    _near(found[0], x.double() @ matrix.double().t(), f"block {side} with {tuple(config)}")
    return True


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


def fast_transforms(length: int, stage: Stage) -> str:
    """Against float64, both directions, cut and with signs."""
    if not stage.kernels(stage.random(1)) or (stage.dry and length > 256):
        return _NOT_RUN
    for name in ("cosine", "hadamard"):
        for back in (False, True):
            _transform(stage, name, length, back)
    return "cosine and Walsh-Hadamard, both ways"


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


def blocks_on_the_device(stage: Stage) -> str:
    """The layer's operator takes the kernels, and differentiates through them."""
    if not stage.kernels(stage.random(1)) or stage.dry:
        return _NOT_RUN
    torch.manual_seed(0)
    layer = BlockSparseLinear(256, 320, density=0.4, block=32).to(stage.device, torch.bfloat16)
    x = stage.random(64, 256).requires_grad_()
    matrix = layer.to_dense().detach().double()
    y = layer(x)
    _near(y.detach(), x.detach().double() @ matrix.t() + layer.bias.detach().double(), "a block-sparse layer")
    slope = stage.random(64, 320)
    (dx,) = torch.autograd.grad(y, x, slope)
    _near(dx, slope.double() @ matrix, "gradient of a block-sparse layer")
    return "forward and backward of a layer"


Check = Callable[[Stage], str]
_OF_BLOCKS = {"G11", "G12", "G13"}
CHECKS: dict[str, tuple[Check, set[str]]] = {  # and the targets that are not measured where one fails
    "blocks of 128 in float32": (functools.partial(block_products, 128, torch.float32), _OF_BLOCKS),
    "transposable masks": (transposable_masks, {"G1", "G3", "G4", "G5", "G6", "G7"}),
    "selection": (selection, {"G9", "G10"}),
    "selection in a graph": (selection_in_a_graph, {"G9", "G10"}),
    "packing": (packing, {"G1", "G2", "G3", "G4", "G6", "G7", "G8"}),
    **{
        f"blocks of {side}": (functools.partial(block_products, side, torch.bfloat16), _OF_BLOCKS)
        for side in blocks.SIDES
    },
    **{
        f"blocks of {side} in float32": (functools.partial(block_products, side, torch.float32), _OF_BLOCKS)
        for side in (16, 32, 64)
    },
    "block-sparse layer": (blocks_on_the_device, _OF_BLOCKS),
    **{
        f"transforms of {1 << bits}": (functools.partial(fast_transforms, 1 << bits), {"G14"})
        for bits in range(14, 7, -1)
    },
}
