"""The native library for CPUs and its binding."""
