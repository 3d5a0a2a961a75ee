"""The public names of the vocabulary: sorted, importable, documented."""

from __future__ import annotations

import inspect

from gossamer import topology


def test_names_are_sorted_and_exist() -> None:
    assert topology.__all__ == sorted(topology.__all__)
    assert len(set(topology.__all__)) == len(topology.__all__)
    assert all(hasattr(topology, name) for name in topology.__all__)


def test_everything_public_is_documented() -> None:
    for name in topology.__all__:
        value = getattr(topology, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
            methods = inspect.getmembers(value, lambda m: inspect.isfunction(m) or isinstance(m, property))
            assert all(m.__doc__ for n, m in methods if not n.startswith("_")), name
