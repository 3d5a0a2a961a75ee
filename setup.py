"""Builds the native kernels with the package; everything else is in pyproject.toml."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CPU = Path("src/gossamer/kernels/cpu")
spec = importlib.util.spec_from_file_location("gossamer_native_build", CPU / "build.py")
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


class BuildNative(build_ext):
    """Runs the package's own recipe; without a compiler the package installs without the library."""

    def build_extension(self, ext):
        try:
            native.build(Path(self.get_ext_fullpath(ext.name)).resolve())
        except native.BuildError as error:
            sys.stderr.write(
                f"\n*** gossamer: the native CPU kernels were NOT built:\n{error}\n"
                "*** Sparse layers will use the slower plain-torch reference. With a C++ compiler at hand, run\n"
                "***     python -m gossamer.kernels.cpu.build\n\n"
            )

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class PlatformWheel(bdist_wheel):
    """The library knows no Python ABI: one wheel serves every Python 3 of a platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        # optional: setuptools then goes on when there is no library to copy or to pack.
        Extension("gossamer.kernels.cpu._native", [str(p) for p in sorted(CPU.glob("native/*.cpp"))], optional=True)
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
