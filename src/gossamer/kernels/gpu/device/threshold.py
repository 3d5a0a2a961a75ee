"""Kernels of the exact selection by magnitude: see `..threshold` for the steps and what passes between them."""

from __future__ import annotations

import triton
import triton.language as tl

DIGIT: tl.constexpr = tl.constexpr(10)  # bits of a key that one pass settles
BINS: tl.constexpr = tl.constexpr(1024)
LARGEST: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def magnitude_bits(values):
    """Bits of ``|values|`` in float32: whole numbers in the order of the magnitudes."""
    return values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def keys_of(bits, active, index, size, width: tl.constexpr):
    """Keys, all different, in the order of magnitude, then active, then lower index."""
    first = (bits.to(tl.int64) << 1) | active.to(tl.int64)
    return (first << width) + (size - 1 - index.to(tl.int64))


@triton.jit(do_not_specialize=["low_rank", "high_rank"])
def bracket(weight, state, size, low_rank, high_rank, SAMPLE: tl.constexpr):
    """Two magnitudes around the wanted one, read off a sample; one program."""
    i = tl.arange(0, SAMPLE)
    stride = size // SAMPLE
    jitter = ((i.to(tl.uint32) * 2654435761) >> 8).to(tl.int32) % stride  # out of step with rows
    bits = magnitude_bits(tl.load(weight + i.to(tl.int64) * stride + jitter))
    low = tl.zeros([], tl.int32)
    high = tl.zeros([], tl.int32)
    for step in range(31):
        bit = tl.full([], 1, tl.int32) << (30 - step)
        both = (bits >= (low | bit)).to(tl.int32) + ((bits >= (high | bit)).to(tl.int32) << 16)  # one sum for two
        found = tl.sum(both, 0)
        low = tl.where((found & 0xFFFF) >= low_rank, low | bit, low)
        high = tl.where((found >> 16) >= high_rank, high | bit, high)
    tl.store(state, low.to(tl.int64))
    tl.store(state + 1, high.to(tl.int64))


@triton.jit(do_not_specialize=["count"])  # compiled once, whatever the count
def gather(weight, state, counters, inside, size, count, AGAIN: tl.constexpr, BLOCK: tl.constexpr):
    """Note the positions of the magnitudes in the bracket, and count those above it.

    AGAIN: if the bracket missed, take everything instead. Then state holds: bits of the least candidate, number of
    candidates, how many of them are wanted, bits in which their magnitudes may differ.
    """
    program = tl.program_id(0)
    low = tl.load(state).to(tl.int32)
    high = tl.load(state + 1).to(tl.int32)
    wanted = True
    if AGAIN:
        above = tl.load(counters).to(tl.int64)
        within = tl.load(counters + 1).to(tl.int64)
        missed = (above >= count) | (above + within < count)
        wanted = missed
        if program == 0:
            span = tl.where(missed, LARGEST, high - low).to(tl.int64)
            width = tl.zeros([], tl.int64)
            for bit in range(31):
                width += ((span >> bit) > 0).to(tl.int64)
            tl.store(state + 2, tl.where(missed, 0, low).to(tl.int64))
            tl.store(state + 3, tl.where(missed, size, within))
            tl.store(state + 4, tl.where(missed, count, count - above))
            tl.store(state + 5, width)
        low = low * 0
        high = low + 0x7FFFFFFF
        counters += 2
    if wanted:
        index = program * BLOCK + tl.arange(0, BLOCK)
        held = index < size
        bits = magnitude_bits(tl.load(weight + index, mask=held, other=0.0))
        chosen = (held & (bits >= low) & (bits <= high)).to(tl.int32)
        beyond = tl.sum((held & (bits > high)).to(tl.int32), 0)
        if beyond > 0:
            tl.atomic_add(counters, beyond, sem="relaxed")
        first = tl.atomic_add(counters + 1, tl.sum(chosen, 0), sem="relaxed")
        place = first + tl.cumsum(chosen, 0) - 1
        tl.store(inside + place, index, mask=chosen > 0)


@triton.jit
def settled(state, digits, counts, PASS: tl.constexpr, width: tl.constexpr):
    """What is known after a number of passes: leading bits of the wanted key, how many bits follow, what is left.

    Keys are relative to that of the least candidate. Done: all keys with these leading bits are wanted.
    """
    if PASS == 0:
        prefix = tl.zeros([], tl.int64)
        rest = tl.load(state + 5) + width + 1
        left = tl.load(state + 4)
        done = left == tl.load(state + 3)
    else:
        known = digits + (PASS - 1) * 4
        prefix = tl.load(known)
        rest = tl.load(known + 1)
        left = tl.load(known + 2)
        done = tl.load(known + 3) > 0
        if not done:
            bins = tl.arange(0, BINS)
            found = tl.load(counts + (PASS - 1) * BINS + bins)
            higher = (tl.sum(found, 0) - tl.cumsum(found, 0)).to(tl.int64)
            hit = (higher < left) & (higher + found >= left)
            digit = tl.sum(tl.where(hit, bins, 0), 0).to(tl.int64)
            size = tl.sum(tl.where(hit, found, 0), 0).to(tl.int64)
            taken = tl.minimum(rest, DIGIT)
            rest -= taken
            prefix = (prefix << taken) + digit
            left -= tl.sum(tl.where(hit, higher, 0), 0)
            done = size == left
    return prefix, rest, left, done


@triton.jit
def narrow(
    weight, active, state, inside, digits, counts, size, width: tl.constexpr, PASS: tl.constexpr, BLOCK: tl.constexpr
):
    """One more digit: count the candidates with the leading bits known so far by their next digit."""
    program = tl.program_id(0)
    prefix, rest, left, done = settled(state, digits, counts, PASS, width)
    if program == 0:
        known = digits + PASS * 4
        tl.store(known, prefix)
        tl.store(known + 1, rest)
        tl.store(known + 2, left)
        tl.store(known + 3, done.to(tl.int64))
    if not done:
        least = tl.load(state + 2)
        candidates = tl.load(state + 3).to(tl.int32)
        taken = tl.minimum(rest, DIGIT)
        found = tl.zeros([BINS], tl.int32)
        for start in range(program * BLOCK, candidates, tl.num_programs(0) * BLOCK):
            at = start + tl.arange(0, BLOCK)
            held = at < candidates
            index = tl.load(inside + at, mask=held, other=0)
            bits = magnitude_bits(tl.load(weight + index, mask=held, other=0.0)) - least.to(tl.int32)
            live = index * 0
            if active is not None:
                live = tl.load(active + index, mask=held, other=0).to(tl.int32)
            key = keys_of(bits, live, index, size, width)
            matches = held & ((key >> rest) == prefix)
            digit = ((key >> (rest - taken)) - (prefix << taken)).to(tl.int32)
            found += tl.histogram(tl.where(matches, digit, 0), BINS, mask=matches)
        bins = tl.arange(0, BINS)
        tl.atomic_add(counts + PASS * BINS + bins, found, mask=found > 0, sem="relaxed")


@triton.jit
def finish(state, digits, counts, key, width: tl.constexpr, PASSES: tl.constexpr):
    """The key of the last chosen entry; one program."""
    prefix, rest, _left, _done = settled(state, digits, counts, PASSES, width)
    tl.store(key, (tl.load(state + 2) << (width + 1)) + (prefix << rest))


@triton.jit
def keep(weight, active, key, out, mask, size, width: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """Copy what is chosen, cast; +0 elsewhere. And the mask, if one is asked for."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    held = index < size
    value = tl.load(weight + index, mask=held, other=0.0)
    live = index * 0
    if active is not None:
        live = tl.load(active + index, mask=held, other=0).to(tl.int32)
    chosen = keys_of(magnitude_bits(value), live, index, size, width) >= tl.load(key)
    tl.store(out + index, tl.where(chosen, value, 0.0).to(out.dtype.element_ty), mask=held)
    if MASKED:
        tl.store(mask + index, chosen.to(tl.int8), mask=held)
