"""The command line: a client of the public API and of `gossamer.experiments`; run flags come from `RunConfig`."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ._bench_command import bench_command
from ._catalogue import data_command, methods_command, models_command, offsets_command
from ._costs_command import costs_command
from ._terminal import AsJson, guarded, one_line_warnings, print_table, run_flags
from .errors import ConfigError
from .experiments.config import RunConfig

if TYPE_CHECKING:
    from .experiments.progress import Show
    from .experiments.runs import Result

app = typer.Typer(
    name="gossamer",
    help="Train neural networks sparse from scratch.",
    epilog="Start with: gossamer demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def main() -> None:
    """Entry point of the `gossamer` command."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError:  # a closed pipe or a full disk: end without a traceback, now and when Python flushes at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    if version:
        from . import __version__

        typer.echo(f"gossamer {__version__}")
        raise typer.Exit


@app.command(
    "train",
    epilog="Example: gossamer train --data mnist1d --model mlp --method rewire --density 0.05 "
    "--set exploit=reset:100 --seed 0 --out runs/first",
)
@guarded
@run_flags
def train_command(
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Argument of the method (`gossamer methods NAME` lists them), else a run field, "
            "model.<option>, data.<option> or mask_data.<option>. Repeatable.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file to start from, e.g. a run's config.yaml.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out exactly.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    **flags: Any,
) -> None:
    """Train one model and write a run folder with its checkpoint, result.json and report.html."""
    from .experiments.train import Interrupted, train

    run = _run_config(flags, settings or [], config, resume)
    try:
        with _progress(quiet or as_json, 1) as show, one_line_warnings():
            result = train(run, resume=resume, progress=show and functools.partial(show, run.method))
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop}; continue with: gossamer train --resume --out {stop.folder}") from None
    if as_json:
        typer.echo(json.dumps(result.to_dict()))
        return
    value, counts = result.metric["value"], result.counts
    typer.echo(
        f"{result.title}: test {result.metric['name']} {value:.4g}, density {result.density['achieved']:.4g} "
        f"({counts['active']:,} of {counts['eligible']:,} weights), model {result.checkpoint_bytes:,} bytes\n"
        f"report: {Path(result.config['out']) / 'report.html'}"
    )
    if result.structure:
        typer.echo(_about_structure(result.structure))
    _notice_still_supports(result)
    _notice_missing_curves()


def _about_structure(found: Mapping[str, Any]) -> str:
    """What to know of the structure of a trained model."""
    if not found["holds"]:
        return f"structure {found['name']}: does not hold in {', '.join(found['broken'])}"
    packed = found["packed_bytes"]
    size = "" if packed is None else f"; with 16-bit values {packed:,} bytes packed, {found['dense_bytes']:,} dense"
    return f"structure {found['name']}: holds in every sparse weight{size}"


def _notice_still_supports(result: Result) -> None:
    """A method with a period longer than the training is static, which nobody asks for on purpose."""
    from .experiments.runs import RunFolder

    every = result.config["args"].get("every")
    rewirings = sum(row["rewirings"] for row in RunFolder(Path(result.config["out"])).metrics())
    if every not in (None, "inf") and not rewirings:
        typer.echo(
            f"note: {result.method} did not rewire once in {result.steps} steps (every = {every}); "
            "give a smaller --set every=..., e.g. every=0.025 for forty times per training",
            err=True,
        )


def _run_config(flags: Mapping[str, Any], settings: list[str], file: Path | None, resume: bool) -> RunConfig:
    """The config that flags, --set, --config and, with --resume, the folder's own config.yaml amount to."""
    from .experiments.runs import RunFolder, read_config

    given = {name: value for name, value in flags.items() if value is not None}
    values: dict[str, Any] = read_config(file) if file else {}
    if resume and "out" in given and RunFolder(Path(given["out"])).config_file.exists():
        values = RunFolder(Path(given["out"])).stored_config() | values
    elif resume and not {"data", "model"} <= values.keys() | given.keys():
        place = f"in {given['out']}: it has no config.yaml" if "out" in given else "without its folder"
        raise ConfigError(f"there is no run to resume {place}; give the folder of a run, e.g. --out runs/first")
    if "epochs" in given:
        values.pop("steps", None)
    return RunConfig.from_dict(values | given).with_settings(settings)


def _progress(hidden: bool, runs: int) -> AbstractContextManager[Show | None]:
    if hidden:
        return nullcontext()
    from .experiments.progress import live_progress

    return live_progress(Console(stderr=True), runs)


def _notice_missing_curves() -> None:
    from .experiments.report import NO_CURVES, has_curves

    if not has_curves():
        typer.echo(f"note: {NO_CURVES}", err=True)


@app.command("demo", epilog="Example: gossamer demo --out runs/demo")
@guarded
def demo_command(
    *,
    out: Annotated[Path, typer.Option(help="Folder; a finished demo there is kept, and a numbered one made.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each run.", min=1)] = None,
    seeds: Annotated[int, typer.Option(help="Seeds per method.", min=1)] = 3,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train dense, SMALL, static, SET, RigL and rewire at one low density and compare them; under 3 minutes."""
    from .experiments import demo
    from .experiments.study import lines, print_lines
    from .experiments.train import Interrupted

    study = demo.demo_study(steps=steps or demo.STEPS, seeds=tuple(range(seeds)))
    folder = demo.demo_folder(study, out)
    try:
        with _progress(quiet or as_json, study.size) as show:
            outcome = demo.run_demo(
                study, folder, progress=show and (lambda job, update: show(f"{job.label} seed {job.seed}", update))
            )
    except Interrupted as stop:
        raise KeyboardInterrupt(f"{stop}; the same command continues") from None
    if as_json:
        typer.echo(json.dumps([result.to_dict() for result in outcome.results.values()]))
    else:
        base = study.base
        print_lines(Console(), f"{base['data']}, {base['model']}, {base['steps']} steps", lines(outcome))
        typer.echo(f"seeds {', '.join(map(str, study.seeds))}; report: {folder / 'report.html'}")
        _notice_missing_curves()
    if outcome.failures:
        raise ConfigError("; ".join(f"{run}: {why}" for run, why in outcome.failures.items()))


@app.command("study", epilog="Example: gossamer study studies/m1d-baselines.yaml --workers 2")
@guarded
def study_command(
    file: Annotated[Path, typer.Argument(help="YAML file with the grid.")],
    *,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder; the study gets one of its own name in it.")] = Path("runs/studies"),
    seeds: Annotated[str | None, typer.Option(help="Seeds instead of those of the file, e.g. 0,1.")] = None,
    tables: Annotated[Path | None, typer.Option(help="Folder that gets a copy of results.md as NAME.md.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a grid of methods, densities and seeds from a YAML file; the same command continues a stopped one."""
    from .experiments import study as studies

    study = studies.Study.from_file(file).with_seeds(seeds)
    console, folder = Console(stderr=True, quiet=quiet or as_json), out / study.name
    with studies.Display(console, study) as display:
        outcome = studies.run_in_workers(study, folder, workers=workers, running=display.running, done=display.done)
    command = f"gossamer study {file} --workers {workers}" + (f" --seeds {seeds}" if seeds else "")
    studies.write_outcome(outcome, folder, command, tables)
    if as_json:
        typer.echo(json.dumps(studies.to_dict(outcome)))
    else:
        studies.print_outcome(Console(), outcome)
        typer.echo(f"written: {folder / 'results.md'}, results.json and report.html beside it")
    if outcome.failures:
        raise ConfigError("; ".join(f"{run}: {why}" for run, why in outcome.failures.items()))


@app.command("inspect", epilog="Example: gossamer inspect runs/first/model.safetensors")
@guarded
def inspect_command(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file that gossamer wrote.")],
    *,
    patterns: Annotated[
        bool, typer.Option("--patterns", help="Read the weights, too, and look for 2:4 and blocks in their non-zeros.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint holds: tensors, densities, bytes, and on request 2:4 and blocks."""
    from .checkpoint import describe
    from .experiments.structured import patterns_in

    about = describe(checkpoint)
    found = patterns_in(checkpoint) if patterns else {}
    for row in about["rows"] if patterns else ():
        row["pattern"] = found.get(row["name"].removeprefix("model/"), "")
    if as_json:
        typer.echo(json.dumps(about, indent=1))
        return
    header = ("name", "shape", "dtype", "stored", "count", "density", "bytes", *(["pattern"] if patterns else []))
    rows = [
        (r["name"], "x".join(map(str, r["shape"])), r["dtype"], r["stored"], f"{r['count']:,}", f"{r['density']:.4f}",
         f"{r['bytes']:,}", *([r["pattern"]] if patterns else []))
        for r in about["rows"]
    ]  # fmt: skip
    print_table(header, rows)
    totals = about["totals"]
    typer.echo(
        f"{about['kind']} file, {totals['count']:,} of {totals['entries']:,} entries stored, "
        f"{totals['file_bytes']:,} bytes ({totals['dense_bytes']:,} dense)"
    )
    typer.echo("".join(f"{key}: {value}\n" for key, value in about["metadata"].items()), nl=False)


app.command("bench", epilog="Example: gossamer bench --layer 4096x4096 --batch 128 --density 0.1")(bench_command)
app.command("costs", epilog="Example: gossamer costs --models lenet5-dctps --methods random,rigl,dctps --density 0.01")(
    costs_command
)
app.command("methods", epilog="Example: gossamer methods rigl")(methods_command)
app.command("offsets", epilog="Example: gossamer offsets --shape 64,64,3,3")(offsets_command)
app.command("data", epilog="Example: gossamer train --data fashion-mnist --set data.pool=2 --model cnn")(data_command)
app.command("models", epilog="Example: gossamer train --data digits --model mlp --set model.hidden=64,64")(
    models_command
)
