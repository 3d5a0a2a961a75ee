"""`gossamer costs`: what methods cost in compute and in bytes, as the slides of DCTpS compare them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._terminal import guarded, markdown_table, print_table, print_wide_table
from .errors import ConfigError, check_number
from .experiments.values import parse

if TYPE_CHECKING:
    from .analysis.cost_rows import CostRow
    from .analysis.cost_table import Cost, Network, Setting
    from .experiments.cost_files import CostModel

    Told = tuple[Network, list[tuple[Cost, int | None]]]  # with the size of a file

_COMPUTE = (
    *("method", "density", "found by", "step", "masked", "sparse", "training", "masked", "sparse"),
    *("inference", "masked", "sparse"),
)
_BYTES = (
    "method",
    "density",
    "at first",
    "masked",
    "sparse",
    "training",
    "masked",
    "sparse",
    "weights",
    "final",
    "file",
)
_ORDER = ("method", "finding", "training", "final", "size at first", "in training", "final")
_MODELS = (
    "model",
    "N",
    "layers",
    "filters",
    "other",
    "classes",
    "f_D [M]",
    "f_T/f_D, dct",
    "delta-dct",
    "dct executed",
    "packed",
)
_NOTES = (
    "step, training, inference: FLOPs as multiples of those of dense training and inference: in theory, as executed "
    "with masked weights, and with sparse layers (hybrid ones for rewire)",
    "found by: forward and backward passes of one example through the dense network; training includes them, and all "
    "trainings of imp",
    "MB (1e6 bytes) at first: before the first step; training: weights, gradients, optimizer slots, indices at their "
    "most; weights, final: stored values and indices, and with everything else; file: a checkpoint that was written",
    "snip, grasp, force, synflow, imp, gmp: as if every layer kept the same density, which their scores decide",
)


@guarded
def costs_command(
    *,
    models: Annotated[
        str | None, typer.Option(help="Models, e.g. vgg19,resnet20. [default: those of the slides of DCTpS]")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Rows of the table, e.g. rigl,dctps. [default: all]")] = None,
    densities: Annotated[str, typer.Option("--density", help="Densities.")] = "1e-2,1e-3,1e-4",
    image: Annotated[str, typer.Option(help="Shape of one input.")] = "3,32,32",
    classes: Annotated[int | None, typer.Option(help="Classes. [default: 10; resnet50 100]", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Examples of a step.", min=1)] = 128,
    steps: Annotated[int, typer.Option(help="Steps of a training; 200 epochs of 45,000 examples.", min=2)] = 70_400,
    slots: Annotated[int, typer.Option(help="Optimizer slots of each weight: Adam has 2.", min=0)] = 2,
    transform_factor: Annotated[
        float, typer.Option(help="Multiplications for each q log2 q of a fast transform: 1.25 as a real FFT.")
    ] = 1.25,
    files: Annotated[
        bool, typer.Option("--files", help="Write the checkpoints and tell their sizes; minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, in FLOPs and bytes.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Count what methods cost: compute and bytes at first, in training and final, in theory and as executed."""
    from .analysis.cost_rows import ROWS, rows_named
    from .analysis.cost_table import Setting

    check_number("transform-factor", transform_factor, "multiplications for each q log2 q")
    chosen = _models(models, image, classes)
    rows = rows_named(parse(methods, tuple[str, ...], "methods") if methods else ROWS)
    wanted = parse(densities, tuple[float, ...], "density")
    for density in wanted:
        check_number("density", density, "the fraction of the weights that is kept", 0, 1)
    setting = Setting(steps, slots, transform_factor)
    told = [_of_model(model, rows, wanted, setting, batch, files) for model in chosen]
    if as_json:
        typer.echo(json.dumps(_plain(told, setting), indent=1))
    else:
        _print(told, rows, setting, markdown)


def _models(names: str | None, image: str, classes: int | None) -> list[CostModel]:
    from .experiments.cost_files import SLIDES, CostModel
    from .experiments.models import model_options

    shape = parse(image, tuple[int, ...], "image")
    found = []
    for name in parse(names, tuple[str, ...], "models") if names else SLIDES:
        model_options(name)  # raises on an unknown name
        model = replace(SLIDES.get(name, CostModel(name)), image=shape)
        found.append(model if classes is None else replace(model, classes=classes))
    if not found:
        raise ConfigError("models names none; use e.g. --models vgg19,resnet20")
    return found


def _of_model(
    model: CostModel, rows: Sequence[CostRow], densities: Sequence[float], setting: Setting, batch: int, files: bool
) -> Told:
    from .analysis.cost_table import cost
    from .experiments.cost_files import file_bytes

    network, made = model.network(batch), []
    for number, density in enumerate(densities):
        for row in rows:
            if row.name == "dense" and number:
                continue
            counted = cost(network, row, density, setting)
            made.append((counted, file_bytes(model, row, density) if files else None))
    return network, made


def _print(told: Sequence[Told], rows: Sequence[CostRow], setting: Setting, markdown: bool) -> None:
    def show(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
        lines = list(lines)
        if markdown:
            typer.echo(f"\n## {title}\n\n{markdown_table(header, lines)}", nl=False)
            return
        typer.echo(f"\n{title}")
        (print_wide_table if len(header) > len(_ORDER) else print_table)(header, lines)

    networks = [network for network, _ in told]
    show("Models", _MODELS, [_about(network, setting) for network in networks])
    show("In symbols (* ours, in the notation of the slides)", _ORDER, [_symbols(row) for row in rows])
    for network, costs in told:
        dense = _dense(network)
        show(f"{network.name}: compute", _COMPUTE, [_compute(cost, dense, setting) for cost, _ in costs])
        show(f"{network.name}: MB", _BYTES, [_bytes(cost, size) for cost, size in costs])
        held = costs[0][0].activations / 1e6
        typer.echo(f"\nactivations of a batch of {network.batch}: {held:.4g} MB, whatever the method")
    typer.echo("\n" + "\n".join(f"- {note}" for note in _NOTES))


def _about(network: Network, setting: Setting) -> tuple[str, ...]:
    from .analysis.cost_table import offset_multiplications
    from .offsets import DCT, DeltaDCT

    whole, factor = network.multiplications(), setting.factor
    plain, centre = (offset_multiplications(network, offset, factor=factor) for offset in (DCT(), DeltaDCT()))
    shares = plain[0], centre[0], plain[1], offset_multiplications(network, DCT(), packed=True)[1]
    filters = sum(shape.weight[0] for shape in network.shapes.values())
    numbers = (sum(network.sizes.values()), len(network.sizes), filters, network.rest, network.classes)
    return (network.name, *(f"{n:,}" for n in numbers), f"{whole / 1e6:.4g}", *(f"{s / whole:.3f}" for s in shares))


def _symbols(row: CostRow) -> tuple[str, ...]:
    return (row.name + ("" if row.slides else " *"), *row.order.compute, *row.order.size)


def _dense(network: Network) -> Cost:
    from .analysis.cost_rows import ROWS
    from .analysis.cost_table import Setting, cost

    return cost(network, ROWS["dense"], 1.0, Setting(1, 0))


def _compute(cost: Cost, dense: Cost, setting: Setting) -> tuple[str, ...]:
    whole = dense.total.theory * setting.steps
    shares = [
        _share(amount, unit)
        for part, of in ((cost.step, dense.step.theory), (cost.total, whole), (cost.final, dense.final.theory))
        for amount, unit in ((part.theory, of), (part.masked, of), (part.sparse, of))
    ]
    return (cost.method, f"{cost.density:g}", f"{cost.passes:,}", *shares)


def _bytes(cost: Cost, size: int | None) -> tuple[str, ...]:
    amounts = (
        *(cost.init_bytes.theory, cost.init_bytes.masked, cost.init_bytes.sparse),
        *(cost.training_bytes.theory, cost.training_bytes.masked, cost.training_bytes.sparse),
        *(cost.kernel_bytes, cost.final_bytes, size),
    )
    return (cost.method, f"{cost.density:g}", *(_share(amount, 1e6) for amount in amounts))


def _share(amount: float | None, unit: float) -> str:
    return "-" if amount is None else f"{amount / unit:.3g}"


def _plain(told: Sequence[Told], setting: Setting) -> dict[str, Any]:
    """All figures: FLOPs and bytes."""
    return {
        "setting": asdict(setting),
        "models": [
            {
                "name": network.name,
                "batch": network.batch,
                "weights": sum(network.sizes.values()),
                "layers": len(network.sizes),
                "other_parameters": network.rest,
                "forward_multiplications": network.multiplications(),
                "rows": [asdict(cost) | {"file_bytes": size} for cost, size in costs],
            }
            for network, costs in told
        ],
    }
