"""Where data sets that are not in the package are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError

VARIABLE = "GOSSAMER_DATA"


def search_path(root: Path | None = None) -> list[Path]:
    """Return the folders to look in: `root` alone if given, else $GOSSAMER_DATA, the user's cache, the system's."""
    if root is not None:
        return [root]
    given = os.environ.get(VARIABLE)
    return [*([Path(given).expanduser()] if given else []), cache(), Path("/usr/share/datasets")]


def cache() -> Path:
    """Return the user's folder for data, ~/.cache/gossamer."""
    return Path.home() / ".cache" / "gossamer"


def find(
    root: Path | None, folders: Sequence[str], files: Sequence[str], suffixes: Sequence[str] = ("",)
) -> list[Path] | None:
    """Return the files of the first folder that has them all, or None.

    folders: names to try below every folder of the search path; "." is that folder itself. suffixes: what may follow
    a file's name, the first that exists counts.
    """
    for base in search_path(root):
        for folder in folders:
            choices = [[base / folder / f"{file}{suffix}" for suffix in suffixes] for file in files]
            found = [path for options in choices for path in [p for p in options if p.is_file()][:1]]
            if len(found) == len(files):
                return found
    return None


def missing(name: str, root: Path | None, layouts: str, mend: str) -> DataError:
    """Return the error for a data set that is absent: where it was looked for, and what to do."""
    looked = ", ".join(str(folder) for folder in search_path(root))
    return DataError(f"{name} is not here (looked in {looked} for {layouts}); {mend}")
