"""Compiles the native kernels: one shared library with a plain C ABI, so that it fits any Python and any torch.

``python -m gossamer.kernels.cpu.build`` compiles it in place, ``--sanitize`` with the address and the
undefined-behaviour sanitizers (to ``--output``, for tests). ``setup.py`` loads this file by its path, before
gossamer or torch can be imported: only the standard library may be used here.

The compiler is ``$CXX``, or else the first of ``c++``, ``g++``, ``clang++`` on the path. ``kernels.cpp`` is compiled
once for each instruction set with flags of its own, everything else once with the compiler's defaults, so that the
library runs on any machine of its architecture and chooses at run time.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE / "native"
LIBRARY = HERE / "_native.so"
PER_ISA = "kernels.cpp"
X86_FLAGS = {
    "portable": ["-march=x86-64"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
OPTIMISE = ["-O3"]
SANITIZE = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


class BuildError(RuntimeError):
    """The library could not be compiled; the message says why."""


def isa_flags() -> tuple[list[str], dict[str, list[str]]]:
    """Return the flags of every unit on this architecture, and its instruction sets with the flags of each."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return ["-DGOSSAMER_X86"], X86_FLAGS
    return [], {"portable": []}


def openmp_flags() -> tuple[list[str], list[str]]:
    """Return the flags for compiling and for linking.

    On macOS the symbols are left to the OpenMP runtime that torch has loaded: a second one would be a second pool.
    """
    if sys.platform == "darwin":
        return ["-Xpreprocessor", "-fopenmp"], ["-undefined", "dynamic_lookup"]
    return ["-fopenmp"], ["-fopenmp"]


def compiler() -> list[str]:
    """Return the compiler's command.

    Raises:
        BuildError: there is none, or this system has no build (Windows).
    """
    if sys.platform == "win32":
        raise BuildError("the native kernels are not built on Windows")
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("no C++ compiler found: install one (GCC 11 or clang 12 at least) or set CXX")


def units(sanitize: bool) -> list[tuple[str, list[str]]]:
    """Return what to compile: the object's name and the command without its ``-o``, in the order of linking.

    The portable code comes first: of an inline function that several units emit the linker keeps the first one, which
    must run everywhere.
    """
    machine, isas = isa_flags()
    start = [*compiler(), *COMMON, *machine, *(SANITIZE if sanitize else OPTIMISE), *openmp_flags()[0], "-c"]
    plain = [path for path in sorted(NATIVE.glob("*.cpp")) if path.name != PER_ISA]
    kernels = [
        (f"kernels-{isa}.o", [*start, *flags, f"-DGOSSAMER_ISA={isa}", str(NATIVE / PER_ISA)])
        for isa, flags in isas.items()
    ]
    return [(f"{path.stem}.o", [*start, str(path)]) for path in plain] + kernels


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\nended with {done.returncode}\n{done.stderr.strip()}")


def build(output: Path = LIBRARY, sanitize: bool = False) -> Path:
    """Compile the library to ``output`` and return that path; an existing one is replaced only when all went well.

    Raises:
        BuildError: without a compiler, or when it fails; with its own words.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build-") as folder:
        objects = {str(Path(folder) / name): line for name, line in units(sanitize)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, [[*line, "-o", to] for to, line in objects.items()]))
        linked = Path(folder) / output.name
        level = SANITIZE if sanitize else OPTIMISE
        _run([*compiler(), "-shared", *level, *objects, *openmp_flags()[1], "-o", str(linked)])
        os.replace(linked, output)
    return output


def main() -> int:
    """Build from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gossamer.kernels.cpu.build", description="Compile the native kernels."
    )
    parser.add_argument("--sanitize", action="store_true", help="with the address and undefined-behaviour sanitizers")
    parser.add_argument("--output", type=Path, default=LIBRARY, help="the library to write (default: beside this file)")
    options = parser.parse_args()
    try:
        path = build(options.output, options.sanitize)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
