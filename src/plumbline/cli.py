"""The `plumbline` command. Each sub-command imports what it needs when it runs, so that --help is instant."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plumbline.errors import PlumblineError

if TYPE_CHECKING:
    from plumbline.config import TrackingConfig

app = typer.Typer(
    name="plumbline",
    help="A reproducible lab for multi-view depth: proves that data are read right, trains, and reports traceable numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Run the command line; an error that a user is meant to read ends it with status 1 and no traceback."""
    from rich.console import Console

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        app()
    except PlumblineError as error:
        Console(stderr=True).print(f"[bold red]error[/] {error}", markup=True, highlight=False)
        raise SystemExit(1) from None


@app.command()
def check(
    format: Annotated[Literal["dtu", "sun3d", "rgbd"], typer.Argument(help="How the folder is laid out.")],
    path: Annotated[Path, typer.Argument(help="Folder of raw files; it is only read.", exists=True, file_okay=False)],
    out: Annotated[
        Path | None, typer.Option(help="Where pictures and point clouds go. Default: ./checks/<name>.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Reader option as key=value; repeatable.")
    ] = None,
) -> None:
    """Is this capture read right? A verdict for each scene, with pictures; status 1 when one is wrong. Needs no DVC."""
    from rich.console import Console

    from plumbline.data.checks import check_folder, verdict_table

    folder = out or Path("checks") / path.resolve().name
    result = check_folder(format, path, out=folder, options=_options(option or []))
    Console().print(verdict_table(result), highlight=False, soft_wrap=True)
    typer.echo(f"Pictures and point clouds: {folder}")
    raise SystemExit(1 if result.wrong else 0)


def _options(pairs: list[str]) -> dict[str, object]:
    from plumbline.config import parse_value

    if any("=" not in pair for pair in pairs):
        raise typer.BadParameter("expected key=value", param_hint="--option")
    return {key: parse_value(text) for key, _, text in (pair.partition("=") for pair in pairs)}


@app.command()
def run(
    params: Annotated[Path, typer.Option(help="A params file; keys it lacks are taken from params.yaml.", exists=True)],
    name: Annotated[str, typer.Option(help="Name of the run: .runs/<name>, reports/<name>.html and .json.")] = "run",
) -> None:
    """Run the whole graph on other inputs, in a clone of its own: dvc.lock and committed reports stay as they are."""
    from plumbline.runs import run_params

    raise SystemExit(run_params(params, name=name, root=Path.cwd()))


@app.command()
def results(
    readme: Annotated[
        bool, typer.Option("--readme", help="Write the table into README.md instead of printing it.")
    ] = False,
) -> None:
    """Print the result table of the last run and where its report is."""
    from plumbline.files import read_json
    from plumbline.report import ORACLES, print_results, update_readme

    if readme:
        update_readme(Path("README.md"), read_json(Path("reports/headline.json")), oracles=ORACLES)
    else:
        print_results(read_json(Path("reports/metrics.json")), report=Path("reports/report.html"), oracles=ORACLES)


@app.command()
def gate(
    base: Annotated[str | None, typer.Option(help="Revision to compare with. Default: merge-base with main.")] = None,
    first: Annotated[bool, typer.Option("--first", help="Accept that the base has no metrics yet.")] = False,
    all_rows: Annotated[bool, typer.Option("--all", help="Show unchanged metrics too.")] = False,
) -> None:
    """Refuse results that are worse than before, missing, NaN or compared with nothing (reports/tolerances.yaml)."""
    from plumbline.gate import gate_command

    raise SystemExit(gate_command(Path.cwd(), base=base, first=first, all_rows=all_rows))


@app.command()
def stale(
    warn: Annotated[bool, typer.Option("--warn", help="Only warn: status 0 in any case.")] = False,
) -> None:
    """Would `dvc repro` run anything? Says so when the committed results are older than the code, data or params."""
    from plumbline.runs import stale_stages

    names = stale_stages(Path.cwd())
    if names:
        typer.echo(
            f"Results are stale: dvc repro would run {', '.join(names)}. Run make repro and commit dvc.lock and reports/."
        )
    else:
        typer.echo("Data and pipelines are up to date.")
    raise SystemExit(1 if names and not warn else 0)


@app.command()
def sync() -> None:
    """Record a run in MLflow that was restored from the cache, where no stage ran to log it."""
    from plumbline.tracking import sync as record

    run_id = record(_tracking())
    typer.echo(f"Recorded as run {run_id}." if run_id else "These results are recorded already.")


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Open the MLflow page on this machine: runs side by side, parameters, curves, metrics."""
    from plumbline.tracking import serve

    raise SystemExit(serve(port))


def _tracking() -> "TrackingConfig":
    from plumbline.config import TrackingConfig, load_params, section

    return section(load_params(), "tracking", TrackingConfig)
