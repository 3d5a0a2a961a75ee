"""Commands that list what there is: methods, offsets, data sets, models."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._terminal import AsJson, guarded, markdown_table, print_table, print_wide_table
from .experiments.values import parameters, parse, spelled, spellings

if TYPE_CHECKING:
    from .analysis.offsets import OffsetSpectrum
    from .offsets import Offset

_SHOWN_DENSITY = 0.25  # at which the choices of methods are shown; N:M methods turn it into 1:4
_SPECTRUM = (
    "offset",
    "D",
    "rank",
    "operator",
    "> 0.1 max",
    "effective rank",
    "largest output",
    "multiplications",
    "executed",
)
_ABOUT_SPECTRUM = (
    "D: singular values of the matrix from inputs (of a convolution: from a patch) to outputs, and its rank; "
    "operator: those of the convolution at all spatial frequencies, and their effective rank; largest output: "
    "share of the energy in one output for ReLU(N(0, 1)) inputs; multiplications: per sample (of a convolution: per "
    "position of the output) by the best transform known, and as executed here"
)
_ABOUT_OMITS = (
    "omits: which recommendations of Advances in Sparse Neural Model Training a method does not follow: rewire, "
    "dense gradients (update all weights), discard (intermediate values of inactive weights)"
)


@guarded
def methods_command(
    name: Annotated[str | None, typer.Argument(help="One method: its description, choices and arguments.")] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of choices as Markdown.")] = False,
) -> None:
    """List the methods and what they choose, or describe one with its arguments."""
    from .experiments.config import CONTROLS, method_parameters
    from .methods import REGISTRY, find

    if name in CONTROLS:
        _print_control(name, as_json)
        return
    arguments = method_parameters(name) if name else {}
    infos = [find(name)] if name else sorted(REGISTRY.values(), key=lambda info: info.name)
    choices = {info.name: info.build(_SHOWN_DENSITY).choices for info in infos}
    header, cells = next(iter(choices.values())).header(), {row: shown.cells() for row, shown in choices.items()}
    if as_json:
        keys = ("name", "summary", "needs", "source")
        about = [{key: getattr(info, key) for key in keys} for info in infos]
        typer.echo(json.dumps([row | {"choices": asdict(choices[row["name"]])} for row in about], indent=1))
    elif markdown:
        table = [(f"[{row}]({row}.md)", *shown) for row, shown in cells.items()]
        typer.echo(markdown_table(("method", *header), table), nl=False)
    elif name:
        typer.echo(f"{name}: {inspect.getdoc(infos[0].build)}\n\nsource: {infos[0].source}\nneeds: {infos[0].needs}")
        typer.echo(f"choices (at density {_SHOWN_DENSITY}):")
        typer.echo(
            "".join(f"  {column:9} {cell}\n" for column, cell in zip(header, cells[name], strict=True)), nl=False
        )
        typer.echo("arguments (--set name=value):")
        for argument, (kind, default) in arguments.items():
            typer.echo(f"  {argument} = {spelled(default)}")
            if argument == "structure":
                typer.echo(f"    one of {'  '.join(spellings(kind))}")
    else:
        print_table(("method", "summary", "needs"), [(i.name, i.summary, i.needs) for i in infos])
        typer.echo(f"choices, at density {_SHOWN_DENSITY}; {_ABOUT_OMITS}")
        print_wide_table(("method", *header), [(row, *shown) for row, shown in cells.items()])
        typer.echo(f"controls: {'; '.join(f'{control}: {summary}' for control, summary in CONTROLS.items())}")


def _print_control(name: str, as_json: bool) -> None:
    from .experiments.config import CONTROLS

    needs = "--density, that of the sparse model" if name == "small" else "no density"
    about = {"name": name, "summary": CONTROLS[name], "needs": needs, "source": "a control, not a sparse method"}
    plain = f"{name}: {CONTROLS[name]}\n\nsource: {about['source']}\nneeds: {needs}\nit takes no arguments"
    typer.echo(json.dumps([about], indent=1) if as_json else plain)


@guarded
def offsets_command(
    names: Annotated[list[str] | None, typer.Argument(help="Offsets, e.g. dct signed-hadamard:rounds=3.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Of a weight, of up to some hundred channels: what they do to it; outputs,inputs or "
            "outputs,inputs/groups,height,width."
        ),
    ] = None,
    groups: Annotated[int, typer.Option(help="Groups of that convolution.")] = 1,
    seed: Annotated[int, typer.Option(help="Of those that are drawn.")] = 0,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """List the offsets of offset layers, with spectrum and cost for one shape of a weight."""
    from .analysis.offsets import offset_spectrum
    from .offsets import REGISTRY, Offset

    wanted = names or sorted(REGISTRY)
    offsets: list[Offset] = [parse(name, Offset, "offset") for name in wanted]
    weight = tuple(parse(shape, tuple[int, ...], "shape")) if shape else None
    spectra = [offset_spectrum(offset, weight, groups, seed) for offset in offsets] if weight else []
    if as_json:
        typer.echo(json.dumps(_offset_rows(offsets, spectra), indent=1))
        return
    header: tuple[str, ...]
    if spectra:
        header, rows = _SPECTRUM, [(name, *_spectrum_cells(s)) for name, s in zip(wanted, spectra, strict=True)]
    else:
        header = ("offset", "summary", "cost", "singular values", "options")
        rows = [
            (about["name"], about["summary"], about["cost"], about["singular_values"],
             " ".join(f"{option}={default}" for option, default in about["options"].items()))
            for about in _offset_rows(offsets, [])
        ]  # fmt: skip
    if markdown:
        typer.echo(markdown_table(header, rows), nl=False)
        return
    if len(offsets) == 1 and not spectra:
        typer.echo(f"{wanted[0]}: {inspect.getdoc(offsets[0])}\n")
    print_wide_table(header, rows) if spectra else print_table(header, rows)
    if spectra:
        typer.echo(_ABOUT_SPECTRUM)


def _offset_rows(offsets: list[Offset], spectra: list[OffsetSpectrum]) -> list[dict[str, Any]]:
    keys = ("name", "summary", "cost", "singular_values", "seeded")
    rows = [
        {key: getattr(offset, key) for key in keys}
        | {"options": {option: spelled(getattr(offset, option)) for option in parameters(type(offset))}}
        for offset in offsets
    ]
    return [row | {"spectrum": asdict(s)} for row, s in zip(rows, spectra, strict=True)] if spectra else rows


def _spectrum_cells(spectrum: OffsetSpectrum) -> tuple[str, ...]:
    operator = spectrum.operator
    return (
        f"{spectrum.min:.2f} to {spectrum.max:.2f}",
        str(spectrum.rank),
        f"{operator.min:.2f} to {operator.max:.2f}",
        f"{operator.passed:.0%}",
        f"{operator.effective_rank:.1f}",
        f"{spectrum.largest_output:.1%}",
        f"{spectrum.theoretical:,.0f}",
        f"{spectrum.executed:,.0f}",
    )


@guarded
def data_command(as_json: AsJson = False) -> None:
    """List the data sets, whether they are on this machine, and their options."""
    from .experiments.data import DATASETS, available, data_options

    rows = [
        {"name": name, "present": available(name), "summary": info.summary, "licence": info.licence,
         "options": {option: spelled(default) for option, (_, default) in data_options(name).items()}}
        for name, info in DATASETS.items()
    ]  # fmt: skip
    _print_catalogue(rows, as_json, "data")


@guarded
def models_command(as_json: AsJson = False) -> None:
    """List the reference models and their options."""
    from .experiments.models import MODELS, model_options

    rows = [
        {"name": name, "summary": info.summary, "data": "/".join(info.kinds),
         "options": {option: spelled(default) for option, (_, default) in model_options(name).items()}}
        for name, info in MODELS.items()
    ]  # fmt: skip
    _print_catalogue(rows, as_json, "model")


def _print_catalogue(rows: list[dict[str, Any]], as_json: bool, prefix: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    shown = {True: "yes", False: "no"}
    print_table(
        tuple(rows[0]),
        [
            [
                " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else shown.get(value, value)
                for value in row.values()
            ]
            for row in rows
        ],
    )
    typer.echo(f"give an option as --set {prefix}.<option>=<value>")
