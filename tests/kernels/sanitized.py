"""Random shapes through every kernel; run by test_sanitizers.py with a library that watches its memory accesses."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

from gossamer.errors import ConfigError
from gossamer.kernels import blocks, n_m, rewire, screen, select, sparse
from gossamer.kernels.cpu import library
from gossamer.kernels.taps import Taps
from gossamer.kernels.transforms import BlockCosine, Cosine, Hadamard

from .forcing import available, forced, index_bytes, products, some_positions


def linear(draw: random.Random) -> None:
    rows, columns, batch = (draw.choice([1, draw.randint(1, 50), draw.randint(1, top)]) for top in (1500, 700, 150))
    flat = some_positions(rows, columns, draw.choice([0.0, 0.01, 0.2, 1.0]), draw.randrange(1000))
    bias = torch.randn(rows) if draw.random() < 0.5 else None
    products(torch.randn(batch, columns), torch.randn(rows, columns), bias, torch.randn(batch, rows), flat)


def conv(draw: random.Random) -> None:
    groups = draw.choice([1, 1, 2, 3])
    kernel = (draw.randint(1, 4), draw.randint(1, 4))
    stride, padding, dilation = ([draw.randint(low, low + 2) for _ in "yx"] for low in (1, 0, 1))
    size = [draw.randint(1, 12) + d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    shape = (groups * draw.randint(1, 12), draw.randint(1, 12), *kernel)
    columns = shape[1] * kernel[0] * kernel[1]
    flat = some_positions(shape[0], columns, draw.choice([0.0, 0.05, 0.4, 1.0]), draw.randrange(1000))
    index, _ = sparse.build(flat, (shape[0], columns), kernel[0] * kernel[1])
    values = torch.randn(len(flat), requires_grad=True)
    x = torch.randn(draw.randint(1, 40), shape[1] * groups, *size, requires_grad=True)
    bias = torch.randn(shape[0]) if draw.random() < 0.5 else None
    packed = sparse.conv(sparse.pack(x), values, index, bias, shape, stride, padding, dilation, groups)
    sparse.unpack(packed, len(x)).square().sum().backward()


def taps(draw: random.Random) -> None:
    groups, parts, rank = draw.choice([1, 1, 2, 5]), draw.choice([1, 2, 2, 4]), draw.randint(1, 9)
    kernel = (draw.randint(1, 4), draw.randint(1, 4))
    stride, padding, dilation = ((draw.randint(low, low + 2), draw.randint(low, low + 2)) for low in (1, 0, 1))
    size = [draw.randint(1, 12) + d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    outputs = groups * draw.randint(1, 40)
    mix, filters = torch.randn(outputs, parts, rank), torch.randn(outputs, parts, *kernel)
    made = Taps(mix, filters, groups, stride, padding, dilation)
    made.transpose(made.apply(torch.randn(draw.randint(1, 3), made.channels, *size, 16)), size)


def block_products(draw: random.Random) -> None:
    rows, columns, batch = (draw.choice([1, draw.randint(1, 50), draw.randint(1, top)]) for top in (400, 300, 100))
    side = draw.choice([4, 8, 12, 16, 32, 64])
    high, wide = blocks.grid((rows, columns), side)
    index = (torch.rand(high * wide) < draw.choice([0.0, 0.2, 1.0])).nonzero().view(-1).int()
    values, bias = torch.randn(len(index), side, side, requires_grad=True), draw.choice([None, torch.randn(rows)])
    x = torch.randn(batch, columns, requires_grad=True)
    blocks.packed_linear(sparse.pack(x), values, index, bias, rows).square().sum().backward()


def damaged(draw: random.Random) -> None:
    rows, columns = draw.randint(1, 1200), draw.randint(1, 300)
    flat = some_positions(rows, columns, draw.choice([0.01, 0.3]), draw.randrange(1000))
    index, _ = sparse.build(flat, (rows, columns))
    for _ in range(100):
        bytes_ = index.clone()
        for _ in range(draw.choice([1, 3])):
            bytes_[draw.randrange(draw.choice([96, len(index)]))] = draw.randrange(256)
        try:
            sparse.check(bytes_, (rows, columns), len(flat))
        except ConfigError:
            continue
        x = sparse.pack(torch.randn(20, columns))
        sparse.linear(x, torch.randn(len(flat)), bytes_, None, rows)
        sparse.positions(bytes_, len(flat))


def split(draw: random.Random) -> None:
    weights = [torch.randn(draw.randint(1, 80), draw.randint(1, 80)) for _ in range(draw.randint(1, 3))]
    active = [torch.rand(w.shape) < 0.3 for w in weights]
    count = draw.randint(0, sum(w.numel() for w in weights))
    select.split(weights, active, [torch.empty_like(w) for w in weights], count)


def patterns(draw: random.Random) -> None:
    kernel, along = draw.choice([(), (1,), (3, 3), (5,)]), draw.choice(["inputs", "outputs", "both"])
    shape = (*(draw.randint(1, 9) * (1 if along == free else 4) for free in ("inputs", "outputs")), *kernel)
    weight, active = torch.randn(shape), torch.rand(shape) < 0.5
    view = draw.choice([None, torch.empty(shape)])
    n = 2 if along == "both" else draw.randint(1, 4)
    n_m.best_patterns(weight, n, along, draw.choice([None, active]), magnitudes=draw.random() < 0.5, view=view)


def lists(draw: random.Random) -> None:
    shape = (draw.randint(1, 1200), draw.randint(1, 300))
    before, after = (some_positions(*shape, draw.choice([0.0, 0.01, 0.3, 1.0]), draw.randrange(1000)) for _ in range(2))
    known = rewire.ascending(sparse.build(before, shape)[0], len(before))
    source = rewire.sources(known, after, sparse.build(after, shape)[1])
    rewire.carried(torch.randn(len(before)), source, 1.0)
    rewire.above(torch.randn(shape[0] * shape[1]), draw.uniform(-1, 2), before)
    samples = draw.randint(1, 70)
    product = screen.Product(torch.randn(shape[0], samples), torch.randn(shape[1], samples))
    index, kept = sparse.build(before, shape)[0], torch.rand(len(before)) < draw.choice([0.0, 0.5, 1.0])
    found = product.beyond(draw.uniform(0.5, 2) * samples**0.5, index, product.size)
    born = before[:0] if found is None else found
    product.at(born)
    count = int(kept.sum()) + len(born)
    rewire.exchange(index, kept, born, count, index_bytes(index, shape, count))
    if len(before):
        rewire.row_of(index, len(before), draw.randrange(len(before)), shape[1])


def transforms(draw: random.Random) -> None:
    length = draw.choice([draw.randint(1, 40), draw.randint(1, 700), 2 ** draw.randint(0, 9)])
    cut = draw.choice([length, draw.randint(1, length)])
    rows, columns = draw.choice([(cut, length), (length, cut)])
    signs = draw.choice([None, torch.ones(columns)])
    block = BlockCosine(rows, columns, draw.randint(1, 2 * length), signs)
    for fast in (Cosine(rows, columns, signs), Hadamard(rows, columns, signs), block):
        size = [draw.randint(1, 40), columns, *draw.choice([[], [draw.randint(1, 50)], [draw.randint(1, 3), 16]])]
        fast.transpose(fast.apply(torch.randn(size), 1), 1)


def main() -> None:
    library.LIBRARY = Path(sys.argv[1])
    torch.set_num_threads(2)
    paths = [path for path in available() if path != "reference"]
    assert paths, "the library does not load"
    for path in paths:
        draw = random.Random(0)
        torch.manual_seed(0)
        with forced(path):
            for _ in range(int(sys.argv[2])):
                for check in (linear, conv, taps, block_products, damaged, split, patterns, lists, transforms):
                    check(draw)
    sys.stdout.write(f"clean: {' '.join(paths)}\n")


if __name__ == "__main__":
    main()
