"""Kernels for NVIDIA GPUs, in Triton, each with a plain-torch reference that every other device runs.

Modules in `device` hold the kernels and import Triton, which comes with torch for CUDA; all others import it only where
a kernel is about to run.
"""
