"""2:4 products on CUDA devices, by the cuSPARSELt operators of torch. Not yet run on hardware."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ... import _user_cache
from ..._timing import faster_half, interleave
from ..gpu.groups import triton_overfull
from ..gpu.runtime import on_gpu
from .layout import fits, overfull
from .packs import Pack, Side, held, pack_of
from .tuning import Problem, Shape, Table

DTYPES = (torch.float16, torch.bfloat16)
_STEP = 8  # samples come in multiples of it
_ALIGNMENT = 16  # bytes, of addresses
_CALLS = 10  # that are timed together
_SMALL = 128


class Device:
    """The `Backend` of one CUDA device."""

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)

    def identity(self) -> str:
        """The chip, torch, CUDA and cuSPARSELt."""
        name = torch.cuda.get_device_name(self.device)
        version = torch.backends.cusparselt.version()
        return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuSPARSELt {version}"

    def pack(self, matrix: Tensor) -> Pack:
        """Two of every four; whether that is all of them the device notes in the pack's `fault`."""
        matrix = aligned(matrix)
        rows = matrix.shape[0]
        found = (triton_overfull if on_gpu(matrix) else overfull)(matrix)
        fault = torch.where(found, torch.nan, 0.0).to(matrix.dtype).expand(rows).contiguous()
        return Pack(torch._cslt_compress(matrix).view(rows, -1), fault=fault)

    def multiply(self, packed: Pack, x: Tensor, bias: Tensor | None, algorithm: int) -> Tensor:
        """x W^T + b, both row-major, without a transposed copy: the result is written transposed.

        A fault of the pack arrives as a bias of NaN. No scale is passed: of one number torch would wait for its value.
        """
        assert packed.fault is not None
        samples = x.shape[0]
        if samples % _STEP:
            x = functional.pad(x, (0, 0, 0, -samples % _STEP))
        added = packed.fault if bias is None else bias + packed.fault
        turned = aligned(x).t()
        y = torch._cslt_sparse_mm(packed.values, turned, bias=added, transpose_result=True, alg_id=algorithm)
        return y[:samples]

    def seconds(self, runs: Mapping[str, Callable[[], object]], rounds: int, *, graph: bool) -> dict[str, float]:
        """Per call, of the faster half of rounds."""
        ready = {name: self._waiting(_captured(run) if graph else _repeated(run)) for name, run in runs.items()}
        return {name: faster_half(each) / _CALLS for name, each in interleave(ready, rounds).items()}

    def _waiting(self, run: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            run()
            torch.cuda.synchronize(self.device)

        return call


def aligned(x: Tensor) -> Tensor:
    """The same, contiguous and at an address that cuSPARSELt takes: views can begin anywhere."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % _ALIGNMENT else x


def _repeated(run: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        for _ in range(_CALLS):
            run()

    return call


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may be at work
        _repeated(run)()
    return graph.replay


@functools.cache
def _table(index: int) -> Table:
    return Table(Device(index), _user_cache.path_of("semi-structured.json"))


@functools.cache
def usable(index: int) -> bool:
    """Whether cuSPARSELt multiplies on that device: it can be there and not know the chip."""
    if not torch.backends.cusparselt.is_available():
        return False
    try:
        device = Device(index)
        problem = Problem(Shape(_SMALL, _SMALL, _SMALL, torch.float16), device.device)
        return problem.is_right(device.multiply(device.pack(problem.matrix), problem.x, problem.bias, 0))
    except RuntimeError:
        return False


_thread = threading.local()


def _is_ready(index: int, *, capturing: bool) -> bool:
    """Whether this thread may multiply on that device.

    torch keeps one handle of cuSPARSELt for each thread, and a handle is of the device that was the current one when it
    was made. So a thread keeps to its first device; autograd has a thread for each. None is made during a capture.
    """
    first = getattr(_thread, "index", None)
    if first is None and not capturing and usable(index):
        _make_handle(index)
        _thread.index = first = index
    return first == index


def _make_handle(index: int) -> None:
    torch._cslt_compress(torch.zeros(_SMALL, _SMALL, dtype=DTYPES[0], device=f"cuda:{index}"))


def _side(dtype: torch.dtype, transposed: bool) -> Side:
    """Packs stay on the stream that made them: others would have to wait for it, and it for them before it ends one."""
    return dtype, transposed, torch.cuda.current_stream().cuda_stream


def choice(samples: int, dtype: torch.dtype, weight: Tensor, transposed: bool, *, always: bool) -> int | None:
    """The algorithm of a product, None if it is to be dense. What is not known is measured, once for each machine."""
    rows, columns = weight.shape[:2]
    if dtype not in DTYPES or not fits(rows, columns) or not samples:
        return None
    index = weight.device.index
    sizes = (columns, rows) if transposed else (rows, columns)
    shape = Shape(*sizes, samples=samples, dtype=dtype)
    with torch.cuda.device(index), torch.no_grad(), torch.autocast("cuda", enabled=False):
        capturing = torch.cuda.is_current_stream_capturing()
        if not _is_ready(index, capturing=capturing):
            return None
        side = _side(dtype, transposed)
        return _table(index).choice(shape, held(weight), side, capturing=capturing, always=always)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, algorithm: int) -> Tensor:
    """x W^T + b, or x W, by an algorithm of `choice`; the device of x is the current one."""
    device = Device(x.device.index)

    def make() -> Pack:
        matrix = weight.flatten(1).to(x.dtype)
        return device.pack(matrix.t() if transposed else matrix)

    capturing = torch.cuda.is_current_stream_capturing()
    packed = pack_of(weight, _side(x.dtype, transposed), make, capturing=capturing)
    return device.multiply(packed, x, bias, algorithm)
