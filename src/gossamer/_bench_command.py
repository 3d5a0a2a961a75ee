"""`gossamer bench`: will sparse layers pay on this machine?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ._terminal import guarded
from ._timing import quiet_environment
from .errors import ConfigError, check_choice, check_number
from .experiments.values import parse

_HELD = {"sparse": "sparse", "packed": "sparse", "hybrid": "hybrid", "hybrid rewired": "hybrid"}  # all others: dense
_OTHERS = {
    "packed": "packed between sparse layers",
    "hybrid": "hybrid",
    "hybrid rewired": "hybrid with a new support in every step",
}
_OVER = ("dense fp32", "dense bf16", "masked")


@guarded
def bench_command(
    *,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="4096x4096 (out x in), or conv:64x64x3x3@32 (out x in / groups x kernel @ size). Repeatable."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Every layer of a model instead; `gossamer models` lists them.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set that says what goes into the model.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="model.<option> or data.<option>. Repeatable."),
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Rows of a linear layer's input, examples of a convolution's.", min=1)
    ] = 128,
    density: Annotated[float | None, typer.Option(help="One density instead of several.")] = None,
    densities: Annotated[str, typer.Option(help="Densities; the break-even one is interpolated.")] = ".25,.1,.05,.01",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default torch's.", min=1)] = None,
    budget: Annotated[float, typer.Option(help="Seconds for a layer at a density, beyond the 15 rounds.")] = 2.0,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Hybrid layers too, for methods whose inactive weights keep a value.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda: linear layers on a GPU beside dense bfloat16.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
) -> None:
    """Measure dense, masked and sparse layers side by side on this machine: will it pay?"""
    request = _request(layer or [], model, data, settings or [])
    chosen = (density,) if density is not None else parse(densities, tuple[float, ...], "densities")
    if not chosen:
        raise ConfigError(f"densities={densities!r} names none; use e.g. .1,.05")
    for value in chosen:
        check_number("density", value, "the fraction of the weights that is kept", 0, 1)
        if value == 0:
            raise ConfigError("density=0.0 keeps nothing, so there is nothing to measure; use e.g. 0.1")
    check_number("budget", budget, "the seconds for a layer at a density")
    request |= {"batch": batch, "densities": sorted(set(chosen), reverse=True), "threads": threads, "budget": budget}
    request["hybrid"] = hybrid
    if threads is not None and threads > (cpus := os.cpu_count() or threads):
        raise ConfigError(f"threads={threads}: this machine runs {cpus} at once; use at most that many")
    if json_file is not None:
        _check_writable(json_file)
    check_choice("device", device, ("cpu", "cuda"))
    told = _measured_on_gpu(request) if device == "cuda" else _measured(request)
    if json_file is not None:
        json_file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if device == "cpu":
        _print(told)


def _measured_on_gpu(request: Mapping[str, Any]) -> dict[str, Any]:
    from . import _bench_gpu

    told = _bench_gpu.report(request)
    typer.echo("\n".join(_bench_gpu.lines(told)))
    return told


def _check_writable(file: Path) -> None:
    """Before anything is measured."""
    folder = file.resolve().parent
    if not folder.is_dir():
        why = "its folder does not exist; make it, or"
    elif file.is_dir():
        why = "it is a folder;"
    elif not os.access(file if file.exists() else folder, os.W_OK):
        why = "permission denied;"
    else:
        return
    raise ConfigError(f"cannot write {file}: {why} give another --json FILE")


def _request(layers: Sequence[str], model: str | None, data: str | None, settings: Sequence[str]) -> dict[str, Any]:
    """What is to be measured; every name and option is checked."""
    if bool(layers) == bool(model):
        raise ConfigError(
            "give either layers, e.g. --layer 4096x4096, or a model, e.g. --model resnet20 --data cifar10"
        )
    if model is None:
        if data or settings:
            raise ConfigError("--data and --set are for --model; a --layer needs neither")
        from .nn.layer_shape import LayerShape

        for text in layers:
            LayerShape.parse(text, 1)
        return {"layers": list(dict.fromkeys(layers)), "model": None}
    if data is None:
        raise ConfigError(f"model {model!r} needs data that say what goes into it, e.g. --data mnist1d")
    from .experiments.config import RunConfig
    from .experiments.setup import named_method

    config = RunConfig(data=data, model=model).with_settings(settings)
    named_method(config)  # raises on unknown names and options
    options = {"model_options": dict(config.model_options), "data_options": dict(config.data_options)}
    return {"layers": [], "model": model, "data": data, **options}


def _measured(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the measuring process answers; its threads are pinned."""
    environment = quiet_environment()
    if request["threads"]:
        environment["OMP_NUM_THREADS"] = str(request["threads"])
    command = [sys.executable, "-m", "gossamer._bench"]
    done = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, env=environment, text=True)
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        why = f"ended with status {done.returncode}" if done.returncode >= 0 else f"was killed by {-done.returncode}"
        raise ConfigError(f"the measuring process {why}, perhaps out of memory; use a smaller layer or batch") from None
    if "error" in told:
        raise ConfigError(told["error"])
    return told


def _print(told: Mapping[str, Any]) -> None:
    pinned = "pinned" if told["pinned"] else "not pinned: figures may be off by a factor of 2"
    typer.echo(
        f"{told['cpu']}, {told['threads']} threads, {pinned}, kernels {told['isa']}, torch {told['torch']}\n"
        f"forward, backward: milliseconds, {told['statistic']}; unpinned runs may be off by a factor of 2\n"
        "sparse: a layer by itself, its input and output row-major; packed: between sparse layers\n"
        "x fp32: times the speed of dense fp32\n"
        "MiB: weights, gradients, indices and the slots of Adam"
    )
    for layer in told["layers"]:
        typer.echo(f"\n{layer['name']}" + (f" ({layer['layer']})" if layer["name"] != layer["layer"] else ""), nl=False)
        typer.echo(f", batch {layer['batch']}")
        header = ("density", "layer", "forward", "backward", "x fp32", "x bf16", "x masked", "MiB")
        typer.echo(_aligned([header, *(line for row in layer["densities"] for line in _cells(row, layer["variants"]))]))
        typer.echo(_advice(layer))
    for row in told.get("steps", []):
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in row["milliseconds"].items())
        typer.echo(f"whole training step at density {row['density']:g}: {times}: {_speed(row['speedup'])}")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _cells(row: Mapping[str, Any], variants: Sequence[str]) -> list[tuple[str, ...]]:
    """The lines of one density, one for each way to run the layer."""
    lines = []
    for variant in variants:
        held = f"{row['bytes'][_HELD.get(variant, 'dense')] / 2**20:.3g}"
        if variant not in row["milliseconds"]:
            lines.append((f"{row['density']:g}", variant, "does not fit", *[""] * 4, held))
            continue
        times = row["milliseconds"][variant]
        speeds = [row["speedup"].get(f"{variant} vs {over}") for over in _OVER]
        told = ["" if speed is None else f"{speed:.2f}x" for speed in speeds]
        figures = f"{times['forward']:.3g}", f"{times['backward']:.3g}", *told, held
        lines.append((f"{row['density']:g}", variant, *figures))
    return lines


def _advice(layer: Mapping[str, Any]) -> str:
    """From which density down it pays, and the verdict at every one."""
    told = [f"{name} {_even(**found)}" for name, found in layer["break_even"].items() if found]
    lines = [f"break-even density: {', '.join(told)}"]
    for row in layer["densities"]:
        others = [
            f"; {label} {speed:.2f}x"
            for variant, label in _OTHERS.items()
            if (speed := row["speedup"].get(f"{variant} vs dense fp32")) is not None
        ]
        lines.append(f"density {row['density']:g}: {row['verdict']['why']}{''.join(others)}")
    return "\n".join(lines)


def _even(side: str, density: float) -> str:
    """A break-even density in words; without one, on which side of the measured densities it lies."""
    return f"{density:.2g}" if side == "at" else f"{side} {density:g}"


def _speed(times: float) -> str:
    return f"{times:.2f}x dense" if times > 1 else f"no speed-up here: {times:.2f}x dense"
