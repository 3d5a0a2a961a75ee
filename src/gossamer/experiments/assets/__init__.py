"""Data sets that ship with the package, read through importlib.resources; sources and licences are in LICENSES.md."""
