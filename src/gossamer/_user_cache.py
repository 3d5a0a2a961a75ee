"""What earlier processes of a user found out about this machine: JSON files in the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def path_of(name: str) -> Path | None:
    """``$XDG_CACHE_HOME/gossamer/<name>``, by default below ``~/.cache``; None for a user without a home."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(root) / "gossamer" / name


def read(path: Path | None) -> dict[str, Any]:
    """What the file holds; nothing if there is none, or it is damaged."""
    if path is None:
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def write(path: Path | None, held: Mapping[str, Any]) -> None:
    """Put a whole new file in the place of the old one; without a folder to write to, nothing is kept."""
    if path is None:
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(held, indent=1), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
