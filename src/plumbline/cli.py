"""The `plumbline` command. Each sub-command imports what it needs when it runs, so that --help is instant."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plumbline.errors import PlumblineError

if TYPE_CHECKING:
    from plumbline.config import TrackingConfig

# Options of predict, in the groups that its help shows.
_METHOD, _DATA, _SAMPLES, _OUTPUT = "Method", "Data", "Samples (one rule)", "Output"
_Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights: the file that the system's authors published, or a finished training (runs/train/SYSTEM).",
        rich_help_panel=_METHOD,
    ),
]
_Preset = Annotated[
    str | None, typer.Option(help="Size of the system, where its weights do not say it.", rich_help_panel=_METHOD)
]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the system; repeatable.", rich_help_panel=_METHOD),
]
_Initial = Annotated[
    str | None, typer.Option(help="Method whose depth is refined, for deltaz.", rich_help_panel=_METHOD)
]
_InitialWeights = Annotated[Path | None, typer.Option(help="Weights of that method.", rich_help_panel=_METHOD)]
_Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.", rich_help_panel=_METHOD)
]
_BatchSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Samples at once. Default: 8 on a GPU, else 1.", rich_help_panel=_METHOD),
]
_Size = Annotated[
    tuple[int, int] | None,
    typer.Option(
        metavar="H W",
        help="Size that images and depth are brought to. Default: 240 320; dtu 128 160, re10k 256 256.",
        rich_help_panel=_DATA,
    ),
]
_DepthRange = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="A B",
        help="Depth in metres that methods look for and truth counts in. Default: 0.5 10; dtu 0.425 0.935, re10k 0.5 100.",
        rich_help_panel=_DATA,
    ),
]
_Scenes = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="This scene alone; repeatable.", rich_help_panel=_DATA)
]
_ReaderOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="Reader option; repeatable.", rich_help_panel=_DATA),
]
_Gap = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Sources N frames before and after; with --views a window of frames N apart. Default: 20; for dtu its pairs.",
        rich_help_panel=_SAMPLES,
    ),
]
_Baseline = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="A B", help="Sources whose cameras are A to B metres away.", rich_help_panel=_SAMPLES),
]
_Pairs = Annotated[
    bool, typer.Option("--pairs", help="Sources from the pair list that dtu has.", rich_help_panel=_SAMPLES)
]
_Index = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Samples of an evaluation index in the raw folder (re10k): views given, and views to render.",
        rich_help_panel=_SAMPLES,
    ),
]
_Render = Annotated[
    bool,
    typer.Option(
        "--render",
        help="Render each frame from the --views (default 2) around it, --gap apart, which alone are given; with PSNR.",
        rich_help_panel=_SAMPLES,
    ),
]
_Views = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="Views of a sample, the reference included. Default: 3, by pairs 5.",
        rich_help_panel=_SAMPLES,
    ),
]
_MaxSamples = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="At most N samples, spread evenly over all.", rich_help_panel=_SAMPLES),
]
_Out = Annotated[
    Path | None, typer.Option(help="Where files go. Default: ./depth/<folder>_<system>.", rich_help_panel=_OUTPUT)
]
_Ply = Annotated[
    bool,
    typer.Option("--ply", help="Write each sample's Gaussians as PLY too (depthsplat).", rich_help_panel=_OUTPUT),
]
_Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete depth of another making in that folder.", rich_help_panel=_OUTPUT)
]

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
    from rich.markup import escape

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        app()
    except PlumblineError as error:
        Console(stderr=True).print(f"[bold red]error[/] {escape(str(error))}", markup=True, highlight=False)
        raise SystemExit(1) from None


@app.command()
def check(
    format: Annotated[
        Literal["dtu", "sun3d", "rgbd", "aerialmd", "re10k"], typer.Argument(help="How the folder is laid out.")
    ],
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


@app.command(
    epilog="Examples:\n\nplumbline predict --system plane_sweep --data sun3d captures/mit_x"
    "\n\nplumbline predict --system deltas --weights FILE --data rgbd room --gap 10"
    "\n\nplumbline predict --system depthsplat --weights FILE --data rgbd room --gap 10 --render --ply"
)
def predict(
    system: Annotated[
        str, typer.Option(help="deltas, deltaz, depthsplat, plane_sweep, constant, ...", rich_help_panel=_METHOD)
    ],
    data: Annotated[
        tuple[str, Path],
        typer.Option(
            metavar="FORMAT PATH",
            help="dtu, sun3d, rgbd, aerialmd or re10k, and the folder of raw files.",
            rich_help_panel=_DATA,
        ),
    ],
    weights: _Weights = None,
    preset: _Preset = None,
    setting: _Settings = None,
    initial: _Initial = None,
    initial_weights: _InitialWeights = None,
    device: _Device = "auto",
    batch_size: _BatchSize = None,
    size: _Size = None,
    depth_range: _DepthRange = None,
    scene: _Scenes = None,
    option: _ReaderOptions = None,
    gap: _Gap = None,
    baseline: _Baseline = None,
    pairs: _Pairs = False,
    index: _Index = None,
    views: _Views = None,
    render: _Render = False,
    max_samples: _MaxSamples = None,
    out: _Out = None,
    ply: _Ply = False,
    overwrite: _Overwrite = False,
) -> None:
    """Depth for any folder of raw captures, and metrics where it has truth.

    Written for each reference view, below the output folder's <scene>/:

    [bold]<view>.npy[/]        depth in metres, 0 = none
    [bold]<view>.png[/]        the same in millimetres, 16 bits; 0 beyond 65.535 m too
    [bold]<view>_sheet.jpg[/]  image, depth, truth and error
    [bold]<view>.ply[/]        Gaussians in the capture's world, and <view>_cameras.json, for plumbline render (--ply)
    [bold]<view>_rendered.png[/]  a view rendered from others, <view>_compared.jpg beside what was seen (--render, --index)

    and for all: overview.jpg, metrics.csv, views.csv (PSNR), about.json (what made them).
    After Ctrl-C the same command goes on where it was. Needs no DVC.
    """
    from plumbline import folder_prediction as folder

    rule = folder.sample_rule(data[0], gap=gap, baseline=baseline, pairs=pairs, index=index, views=views, render=render)
    choice = folder.Choice(rule, max_samples, None if scene is None else tuple(scene))
    listed = {} if index is None else {"samples": [index], "frames": "listed"}
    raw = folder.open_raw(*data, size=size, options={**listed, **_options(option or [])})
    method = folder.load_method(
        system,
        weights=weights,
        preset=preset,
        settings=_options(setting or [], "--set"),
        initial=initial,
        initial_weights=initial_weights,
        device=device,
    )
    chosen = folder.choose_samples(raw, choice, depth_range=depth_range)
    where = out or Path("depth") / f"{data[1].resolve().name}_{system}"
    typer.echo(folder.plan_text(method, chosen))
    with _stoppable():
        result = folder.predict_folder(method, chosen, where, batch_size=batch_size, overwrite=overwrite, ply=ply)
    folder.show_result(result, method, chosen)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C ends the command with what the interrupted function says of how far it came, and status 130."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(f"\n{stopped}", err=True)
        raise SystemExit(130) from None


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="A DELTAS training's folder or model.pt, or the published checkpoint.")
    ],
    target: Annotated[Path, typer.Argument(help="File to write; it must not be there yet.")],
) -> None:
    """DELTAS weights in the other format: a model.pt of ours as the published .pth.tar, or that as a model.pt."""
    from plumbline.conversion import convert as write

    typer.echo(write(source, target))


def _options(pairs: list[str], name: str = "--option") -> dict[str, object]:
    from plumbline.config import parse_value

    if any("=" not in pair for pair in pairs):
        raise typer.BadParameter("expected key=value", param_hint=name)
    return {key: parse_value(text) for key, _, text in (pair.partition("=") for pair in pairs)}


@app.command("extract-pair")
def extract_pair(
    source_root: Annotated[Path, typer.Option(help="AerialMegaDepth, preprocessed.", exists=True, file_okay=False)],
    source_npz: Annotated[Path, typer.Option(help="The index with the pairs: a path, or a name in the source root.")],
    output_root: Annotated[Path, typer.Option(help="Folder to write; it appears when all of it reads back.")],
    source_seg_root: Annotated[
        Path | None, typer.Option(help="Label maps. Default: seg/ in the source root, or <its name>_segmentation.")
    ] = None,
    pair_index: Annotated[int, typer.Option(min=0, metavar="N", help="Row of the pair in the index.")] = 0,
    create_config: Annotated[
        bool, typer.Option("--create-config", help="Write params.yaml there too, for plumbline run.")
    ] = False,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Size images and depth are brought to. Default: 476 518, or what fits."),
    ] = None,
    depth_range: Annotated[
        tuple[float, float], typer.Option(metavar="A B", help="Depth in metres that methods look for.")
    ] = (1.0, 1000.0),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a pair that is there already.")] = False,
) -> None:
    """One pair of AerialMegaDepth as a data set of its own, read back as a training would read it. Needs no DVC."""
    from plumbline.single_pair import Request, extract_command

    extract_command(
        Request(
            root=source_root,
            index=source_npz,
            out=output_root,
            row=pair_index,
            masks=source_seg_root,
            size=size,
            depth_range=depth_range,
            params=create_config,
            overwrite=overwrite,
        )
    )


@app.command(
    epilog="Examples:\n\nplumbline render --ply room.ply --cameras data/scenes/rgbd/room --out pictures"
    "\n\nplumbline render --ply room.ply --cameras cameras.json --size 480 640 --out pictures --orbit orbit.gif"
)
def render(
    ply: Annotated[Path, typer.Option(help="Gaussians, in the PLY layout of 3-D Gaussian splatting.")],
    cameras: Annotated[
        Path,
        typer.Option(
            exists=True,
            help="JSON with K (pixels) and world_T_cam (4x4 each, OpenCV axes), or a canonical scene's folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for pictures and depth.")],
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="H W", help="Size of the pictures. Default: what K is for.")
    ] = None,
    orbit: Annotated[str | None, typer.Option(metavar="NAME", help="Write a short orbit too: a .gif or .mp4.")] = None,
    background: Annotated[tuple[float, float, float], typer.Option(metavar="R G B", help="Each from 0 to 1.")] = (
        0,
        0,
        0,
    ),
    surroundings: Annotated[
        bool,
        typer.Option(
            "--surroundings",
            help="Let gaps between Gaussians show their surroundings, as DepthSplat's tiny preset is trained.",
        ),
    ] = False,
    near: Annotated[float, typer.Option(help="Nearer than this nothing is drawn (the scene's unit).")] = 0.1,
    backend: Annotated[
        Literal["auto", "torch", "compiled", "gsplat", "dense"],
        typer.Option(help="auto: the fastest that is installed."),
    ] = "auto",
) -> None:
    """Pictures and depth of Gaussians from given cameras. Writes <camera>.png and <camera>_depth.npy (z, 0 = none)."""
    from plumbline.render_ply import Request, render_command

    typer.echo(
        render_command(Request(ply, cameras, size, out, background, near, backend, orbit, surroundings=surroundings))
    )


@app.command(
    epilog="Examples:\n\nplumbline doctor deltaz"
    "\n\nplumbline doctor deltas --suite sun3d_train_gap10 --weights runs/train/deltas"
    "\n\nplumbline doctor vggt --root .runs/single_pair"
)
def doctor(
    system: Annotated[str, typer.Argument(help="A system that params.yaml trains: deltaz, deltas, vggt.")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights to look at: a model.pt, its folder, or the authors' file.", exists=True)
    ] = None,
    suite: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take the first batch of this suite. Default: the gate's sample.")
    ] = None,
    root: Annotated[
        Path,
        typer.Option(help="Project whose params and data count, such as .runs/NAME.", exists=True, file_okay=False),
    ] = Path(),
) -> None:
    """What would a training of this system meet? Batch, losses, gradients, schedule, a step's cost; status 1 when broken.

    A few steps are taken and thrown away: nothing is written. Needs parsed data ([bold]dvc repro extract_pair@SYSTEM[/]).
    """
    from plumbline.doctor_show import doctor_command

    raise SystemExit(doctor_command(system, root, weights=weights, suite=suite))


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
        update_readme(Path("README.md"), read_json(Path("reports/metrics.json")), oracles=ORACLES)
    else:
        print_results(read_json(Path("reports/metrics.json")), report=Path("reports/report.html"), oracles=ORACLES)


@app.command()
def compare(
    experiments: Annotated[list[str], typer.Argument(help="Names of `dvc exp show`, git revisions, or workspace.")],
    metric: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: abs_rel.")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the tables there too, as markdown.")] = None,
) -> None:
    """Put experiments side by side: the params that differ, and their metrics as changes from the first one."""
    from plumbline.compare import compare_command

    compare_command(experiments, Path.cwd(), metrics=metric or (), suites=suite or (), methods=method or (), out=out)


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
