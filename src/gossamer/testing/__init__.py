"""Checks that ship with the library: literal transcriptions of the published procedures."""

from .oracles import Step, Trace, rewire_oracle, rigl_oracle, set_oracle, static_oracle

__all__ = ["Step", "Trace", "rewire_oracle", "rigl_oracle", "set_oracle", "static_oracle"]
