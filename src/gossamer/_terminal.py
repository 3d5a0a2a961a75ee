"""What the commands share: one-line errors, flags from `RunConfig`, tables."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .errors import GossamerError
from .experiments.config import FIELDS, MAPPINGS, field_help

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and no progress.")]

_INTERRUPTED = 130  # exit status of a process stopped by Ctrl-C
_COLUMN = 15  # widest that a column of a wide table asks for


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """Turn errors of our own, and of the file system, into one line on stderr and exit status 1."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except BrokenPipeError:  # nobody reads on; `main` ends quietly
            raise
        except (GossamerError, OSError) as error:
            typer.echo(f"gossamer: error: {error}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            typer.echo(f"gossamer: {str(stop) or 'stopped'}", err=True)
            raise typer.Exit(_INTERRUPTED) from None

    return guarded


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Inside, a UserWarning is one line on stderr, without the line of code that gave it."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, UserWarning):
                typer.echo(f"note: {' '.join(str(message).split())}", err=True)
            else:
                others(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def run_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Give `function` one optional flag per `RunConfig` field, before its own parameters."""
    flags = []
    for name, (kind, default) in FIELDS.items():
        if name in MAPPINGS:
            continue
        members = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
        member = next(member for member in members if member is not type(None))
        choices = "|".join(map(str, get_args(member))) if get_origin(member) is Literal else None
        flag = member if member in (int, float) else str
        shown = "" if default in (None, inspect.Parameter.empty) else f" [default: {default}]"
        option = typer.Option(help=field_help(name) + shown, metavar=choices, show_default=False)
        flags.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[flag | None, option]
            )
        )
    own = inspect.signature(function, eval_str=True).parameters.values()
    kept = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = inspect.Signature([*flags, *kept])  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in (*flags, *kept)}
    return function


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal."""
    table = Table(box=SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)


def print_wide_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of many columns as several, each as wide as the terminal and with the first column."""
    lines = [header, *rows]
    wanted = [min(_COLUMN, max(len(line[i]) for line in lines)) + 3 for i in range(len(header))]
    room, parts = Console().width - wanted[0], [[1]]
    for i in range(2, len(header)):
        if sum(wanted[j] for j in parts[-1]) + wanted[i] > room:
            parts.append([])
        parts[-1].append(i)
    for part in parts:
        print_table([header[i] for i in (0, *part)], [[row[i] for i in (0, *part)] for row in rows])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
