"""The documentation runs: its code, its commands, its examples; its links lead somewhere; its tables are right."""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gossamer import Reset, cli
from gossamer.methods import REGISTRY

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
HEADINGS = [
    "What it does",
    "How to use it",
    "Arguments",
    "Cost",
    "Source and deviations",
    "Result",
    "When to use it, and traps",
]
CHOICES = re.compile(r"^<!-- choices -->\n(.*?)^<!-- /choices -->$", re.M | re.S)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`(?:python )?((?:src|docs|examples|benchmarks|studies|tools|tests)/[\w./-]+\.\w+)[^`]*`")


@dataclass(frozen=True)
class Block:
    """A fenced block. follows: nothing but blank lines lies between it and the block before."""

    language: str
    text: str
    line: int
    follows: bool


def blocks(page: Path) -> list[Block]:
    source, found, end = page.read_text(encoding="utf-8"), [], -1
    for match in FENCE.finditer(source):
        follows = end >= 0 and not source[end : match.start()].strip()
        found.append(Block(match[1], match[2], source.count("\n", 0, match.start()) + 1, follows))
        end = match.end()
    return found


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page) if block.language == "console" for line in block.text.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture
def own_process_group() -> Iterator[None]:
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def registry_as_it_was() -> Iterator[None]:
    """Pages may register methods of their own."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=name_of)
def test_python_blocks_run_and_print_what_is_shown(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_process_group: None,
    registry_as_it_was: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("documentation")  # a real one, where its dataclasses are looked up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            source = "\n" * block.line + block.text  # a traceback then points at the line of the page
            exec(compile(source, str(page), "exec", dont_inherit=True), module.__dict__)
            printed = capsys.readouterr().out
        elif block.language == "text" and block.follows:
            assert printed.rstrip() == block.text.rstrip(), f"{name_of(page)}:{block.line}"


def run_commands(lines: list[str], *more: str) -> None:
    for number, line in enumerate(lines):
        extra = [*more, "--out", f"runs/{number}"] if more else []
        done = CliRunner().invoke(cli.app, [*shlex.split(line)[1:], *extra])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        assert done.output.strip(), line


@pytest.mark.slow
def test_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands(ROOT / "README.md") if line.startswith("gossamer ")]
    assert {line.split()[1] for line in lines} >= {"train", "demo", "methods", "inspect"}
    run_commands(lines)
    assert (tmp_path / "runs/first/report.html").exists()


@pytest.mark.slow
def test_commands_of_the_other_pages_run_for_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for page in DOCS for line in commands(page) if line.startswith("gossamer train ")]
    assert len(lines) >= len(REGISTRY)
    run_commands(lines, "--steps", "20")


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    asked = [line for page in (*PAGES, ROOT / "CONTRIBUTING.md") for line in commands(page) if line.startswith("make")]
    assert {"make demo", "make test"} <= set(asked)
    assert {line.split()[1] for line in asked} <= targets


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(example)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir()), "an example leaves files behind"


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_and_file_names_lead_somewhere(page: Path) -> None:
    text = prose(page)
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name_of(page)} links to {link}"
        assert not anchor or anchor in anchors(file), f"{name_of(page)} links to {link}, which is no heading"
    for file_name in FILE.findall(text):
        assert (ROOT / file_name).exists(), f"{name_of(page)} names {file_name}"


def test_every_page_and_example_can_be_reached_from_the_readme() -> None:
    seen, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        if page.suffix == ".md":
            links = [link.partition("#")[0] for link in LINK.findall(prose(page)) if "://" not in link]
            ahead += [(page.parent / link).resolve() for link in links if link]
    reports = ROOT / "docs" / "results"
    assert {name_of(p) for p in (*PAGES, *EXAMPLES) if reports not in p.parents} <= {name_of(p) for p in seen}


def arguments(page: Path) -> dict[str, str]:
    """Argument -> the default that the page's table states."""
    section = page.read_text(encoding="utf-8").partition("\n## Arguments\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[2].strip("`") for cells in rows}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_method_has_a_page_that_fits_its_signature(name: str) -> None:
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert re.findall(r"^## (.+)$", prose(page), re.M) == HEADINGS
    assert f"(docs/methods/{name}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({name}.md)" in page.with_name("index.md").read_text(encoding="utf-8")
    parameters = inspect.signature(REGISTRY[name].build).parameters
    stated = arguments(page)
    assert set(stated) == set(parameters)
    for argument, text in stated.items():
        expected = eval(text, {"Reset": Reset, "math": math}) if text else inspect.Parameter.empty
        assert parameters[argument].default == expected, f"{argument} of {name}"


def test_the_table_of_choices_is_what_the_methods_choose() -> None:
    page = ROOT / "docs" / "methods" / "index.md"
    shown = CHOICES.search(page.read_text(encoding="utf-8"))
    assert shown is not None
    printed = CliRunner().invoke(cli.app, ["methods", "--markdown"]).output
    assert shown[1] == printed, f"put this between the marks:\n{printed}"


@pytest.mark.parametrize("name", REGISTRY)
def test_the_results_of_a_method_are_those_of_the_studies(name: str) -> None:
    spec = importlib.util.spec_from_file_location("method_results", ROOT / "tools" / "method_results.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert f"<!-- result:{name} -->" in page
    assert tool.filled(page) == page, "run python tools/method_results.py"
