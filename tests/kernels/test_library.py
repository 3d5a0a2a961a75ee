"""Which kernels are used, what is said when there are none, and the threads that they share with torch."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gossamer.errors import ConfigError
from gossamer.kernels import sparse
from gossamer.kernels.cpu import build, library

from .forcing import NATIVE, PATHS, forced, numbers, some_positions

needs_native = pytest.mark.skipif(not NATIVE, reason="the native library is not built")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not looked for the library yet."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library.native.cache_clear()


def test_build_and_binding_mean_the_same_file() -> None:
    assert build.LIBRARY == library.LIBRARY


@needs_native
def test_the_best_path_is_chosen(fresh: None) -> None:
    found = library.native()
    assert found is not None
    assert found.isa == NATIVE[0]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_forced(path: str) -> None:
    with forced(path):
        found = library.native()
        assert (found.isa if found else "reference") == path


def test_an_unknown_path_is_refused() -> None:
    wanted = "GOSSAMER_CPU='sse': choose avx512, avx2, portable, reference, or leave it"
    with pytest.raises(ConfigError, match=wanted), forced("sse"):
        pass


def test_without_the_library_one_notice_and_the_reference(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "absent.so")
    flat = some_positions(8, 9, 0.4, seed=0)
    with caplog.at_level(logging.WARNING, "gossamer"):
        for _ in range(3):
            index, _ = sparse.build(flat, (8, 9))
            sparse.linear(sparse.pack(numbers(2, 9, seed=0).float()), torch.ones(len(flat)), index, None, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "the native kernels were not built, so sparse layers use the slower plain-torch reference; with a C++ compiler "
        "at hand, run: python -m gossamer.kernels.cpu.build"
    ]
    library.native.cache_clear()


def test_a_library_that_does_not_load_is_said(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library")
    monkeypatch.setattr(library, "LIBRARY", damaged)
    with caplog.at_level(logging.WARNING, "gossamer"):
        assert library.native() is None
    assert "the native kernels cannot be loaded (" in caplog.text
    wanted = r"GOSSAMER_CPU=portable: the native kernels cannot be loaded \("
    with pytest.raises(ConfigError, match=wanted), forced("portable"):
        pass
    library.native.cache_clear()


@needs_native
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime() -> None:
    """The kernels run on torch's threads: a second pool would compete with them."""
    code = (
        "from gossamer.kernels.cpu import library\n"
        "assert library.native() is not None\n"
        "lines = open('/proc/self/maps').read().split()\n"
        "print(*sorted({x.rsplit('/')[-1] for x in lines if 'libgomp' in x or 'libomp' in x or 'libiomp' in x}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert len(done.stdout.split()) == 1


@needs_native
def test_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that the kernels get, not how fast they are."""
    found = library.native()
    assert found is not None
    used = []
    monkeypatch.setattr(found, "pack", lambda *given: used.append(given[-1]))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sparse.pack(torch.zeros(3, 4))
    finally:
        torch.set_num_threads(before)
    assert used == [1, 2]


@pytest.mark.parametrize("compiler", ["false", "/no/such/compiler"])
def test_a_failing_compiler_leaves_nothing(compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(build.BuildError, match=compiler):
        build.build(tmp_path / "library.so")
    assert not list(tmp_path.iterdir())


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler found: install one .* or set CXX"):
        build.compiler()


def test_no_flag_of_this_machine() -> None:
    """A library must run on every machine of its architecture: an instruction set is a choice at run time."""
    try:
        lines = [part for _, line in build.units(sanitize=False) for part in line]
    except build.BuildError:
        pytest.skip("no compiler here")
    assert not {"-march=native", "-mtune=native", "-ffast-math"} & set(lines)


def test_the_environment_is_left_alone() -> None:
    before = dict(os.environ)
    with forced(PATHS[0]):
        pass
    assert dict(os.environ) == before
