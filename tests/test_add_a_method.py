"""docs/add-a-method.md is followed to the letter: its files go into a copy of the library, nothing else is touched."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "add-a-method.md"
FILE = re.compile(r"^\*\*((?:src|tests)/[\w./]+\.py)\*\*[^\n]*\n\n```python\n(.*?)^```$", re.M | re.S)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
DOCSTRING = re.compile(r'^ *""".*?"""\n', re.M | re.S)


def files() -> dict[str, str]:
    """The files that the page gives, by path."""
    return dict(FILE.findall(PAGE.read_text(encoding="utf-8")))


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if kind == language]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the files of the page, all of them new."""
    folder = tmp_path_factory.mktemp("copy")
    package = Path(gossamer.__file__).parent
    shutil.copytree(package, folder / "src" / "gossamer", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files().items():
        assert not (ROOT / name).exists(), f"{name} is there already; let the page add another method"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, command: list[str]) -> str:
    words = {"gossamer": ["-c", "from gossamer.cli import main; main()"], "python": []}
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *words[command[0]], *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_method_is_one_file_of_at_most_30_lines() -> None:
    given = files()
    assert list(given) == ["src/gossamer/methods/mest.py", "tests/laws/test_mest.py"]
    code = DOCSTRING.sub("", given["src/gossamer/methods/mest.py"])
    assert sum(1 for line in code.splitlines() if line.strip()) <= 30


@pytest.mark.slow
def test_the_commands_of_the_page_run(copy: Path) -> None:
    where = "import gossamer; print(gossamer.__file__)"
    assert run(copy, ["python", "-c", where]).startswith(str(copy))
    printed = {}
    for line in "".join(blocks("shell")).splitlines():
        printed[line] = run(copy, shlex.split(line))
    about = next(text for line, text in printed.items() if line == "gossamer methods mest")
    assert about.startswith("mest: MEST: replaces the least important weights")
    assert "  gamma = 0.1\n" in about
    assert any("density 0.1" in text for line, text in printed.items() if line.startswith("gossamer train"))
    assert (copy / "runs/mest/model.safetensors").exists()
    laws = next(text for line, text in printed.items() if "pytest" in line)
    assert re.search(r"\n\d+ passed, 1 skipped|\n=+ \d+ passed, 1 skipped", laws), laws
    assert "skipped" in laws


@pytest.mark.slow
def test_the_row_of_the_page_is_the_generated_one(copy: Path) -> None:
    (row,) = blocks("markdown")
    assert run(copy, ["gossamer", "methods", "mest", "--markdown"]).splitlines()[-1] == row.strip()
    assert row in run(copy, ["gossamer", "methods", "--markdown"])
