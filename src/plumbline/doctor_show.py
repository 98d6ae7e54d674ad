"""What `plumbline doctor` prints: an examination as tables and bars, plain where nobody watches."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from plumbline.doctor import Component, Examination, Module, StepCost, examine, open_subject
from plumbline.process import keep_freed_memory
from plumbline.progress import duration
from plumbline.single_pair import sparkline
from plumbline.training import TrainConfig, step_groups

_BLOCKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_BAR = 16
# Gradients are compared over this many powers of ten.
_DECADES = 5.0
_WIDTH = 118


def doctor_command(name: str, root: Path, *, weights: Path | None, suite: str | None) -> int:
    """Examine the system `name` of the project at `root` and print what was found; 1 when something is broken."""
    keep_freed_memory()
    found = examine(open_subject(name, root, weights=weights, suite=suite))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    show(found, console)
    return 1 if found.broken else 0


def show(found: Examination, console: Console) -> None:
    """Print all that there is of an examination."""
    subject = found.subject
    every = list(subject.system.parameters())
    count, frozen = sum(p.numel() for p in every), sum(p.numel() for p in every if not p.requires_grad)
    size = f"{_count(count)} weights" + (f", {_count(frozen)} of them frozen" if frozen else "")
    console.print()
    console.print(
        f"[bold]{escape(subject.name)}[/]  {size}  [dim]{escape(subject.weights)}, {found.device}, {found.precision}[/]"
    )
    for title, body in _sections(found):
        console.print()
        console.rule(f"[bold]{title}[/]", align="left", style="dim", characters="─")
        console.print(body)
    console.print()
    console.print(_verdict(found))


def _sections(found: Examination) -> list[tuple[str, Any]]:
    sections: list[tuple[str, Any]] = [(f"Batch  [not bold dim]{escape(found.subject.given)}[/]", _batch(found))]
    if found.components:
        sections.append(("Loss", _losses(found)))
    if found.modules:
        sections.append(("Gradients  [not bold dim]of the first step, before clipping[/]", _gradients(found)))
    sections.append(("Training  [not bold dim]as it will be[/]", _training(found)))
    return sections


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left or not name else "right", no_wrap=True)
    return table


# --- batch -----------------------------------------------------------------------------------------------------------


def _batch(found: Examination) -> Group:
    table = _table("", "shape", "type", "range", "seen by", left=1)
    for entry in found.entries:
        span = "nothing finite" if entry.low is None else f"{_number(entry.low)} to {_number(entry.high)}"
        if entry.non_finite:
            span = f"[red]{entry.non_finite} not finite[/]"
        table.add_row(
            entry.name, "x".join(map(str, entry.shape)) or "scalar", f"[dim]{entry.dtype}[/]", span, entry.seen_by
        )
    return Group(table, Text(), _views(found)) if found.views else Group(table)


def _views(found: Examination) -> Table:
    values = np.concatenate([view.values for view in found.views])
    low, high = (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)
    table = _table("true depth", "measured", "", "metres", f"{low:.3g} to {high:.3g} m (log)")
    table.columns[-1].justify = "left"
    for view in found.views:
        span = f"{view.values.min():.2f} to {view.values.max():.2f}" if view.values.size else "none"
        bar = f"[cyan]{_bar(view.share, 8)}[/]"
        shape = f"[cyan]{sparkline(view.values, (low, high))}[/]" if view.values.size else ""
        table.add_row(escape(view.name), f"{view.share:.1%}", bar, span, shape)
    return table


# --- losses ----------------------------------------------------------------------------------------------------------


def _losses(found: Examination) -> Group:
    table = _table("component", "in training", "in inference", "weight", "adds", "")
    most = max((abs(c.contribution) for c in found.components if math.isfinite(c.contribution)), default=0.0)
    for component in _ordered(found.components):
        table.add_row(*_loss_row(component, most))
    table.add_row("[bold]total[/]", f"[bold]{_number(found.total)}[/]", "", "", "", "")
    return Group(table, Text.from_markup(f"[dim]{_depth_words(found)}[/]"))


def _ordered(components: Sequence[Component]) -> list[Component]:
    """Each component with its parts after it."""
    tops = [c for c in components if c.part_of is None]
    return [row for top in tops for row in (top, *(c for c in components if c.part_of == top.name))]


def _loss_row(component: Component, most: float) -> tuple[str, ...]:
    value = _number(component.training)
    if not math.isfinite(component.training):
        value = f"[bold red]{value}[/]"
    inference = "" if component.inference is None else f"[dim]{_number(component.inference)}[/]"
    if component.part_of is not None:
        return f"  [dim]└ {component.name}[/]", value, inference, f"[dim]{_number(component.weight)}[/]", "", ""
    if component.weight is None:
        return f"[dim]{component.name}[/]", f"[dim]{value}[/]", inference, "[dim]–[/]", "[dim]–[/]", ""
    share = abs(component.contribution) / most if most > 0 and math.isfinite(component.contribution) else 0.0
    colour = "green" if component.contribution < 0 else "yellow"
    bar = f"[{colour}]{_bar(share)}[/]"
    return component.name, value, inference, _number(component.weight), _number(component.contribution), bar


def _depth_words(found: Examination) -> str:
    words = "" if found.depth_error is None else f"Depth error |predicted - true| / true: {found.depth_error:.3g}"
    if found.rotation_deg is not None:
        words += f"; largest rotation error: {found.rotation_deg:.3g} degrees"
    if found.psnr is not None:
        words += f"{'; target' if words else 'Target'} views rendered at {found.psnr:.3g} dB"
    return f"{words}." if words else ""


# --- gradients -------------------------------------------------------------------------------------------------------


def _gradients(found: Examination) -> Group:
    table = _table("module", "weights", "their norm", "gradient", "", "")
    most = max((m.gradient for m in found.modules if math.isfinite(m.gradient)), default=0.0)
    for module in found.modules:
        table.add_row(*_module_row(module, most))
    clip = found.subject.config.clip
    words = f"norm of all {_number(found.gradient_norm)}" + _clip_words(found.subject.config, found.gradient_norm, clip)
    return Group(table, Text.from_markup(f"[dim]Bars are logarithmic, {_DECADES:.0f} decades; {words}.[/]"))


def _clip_words(config: TrainConfig, norm: float | None, clip: float | None) -> str:
    if config.clip_groups or clip is None or norm is None or not norm > clip:
        return ""
    return f", which is clipped to {clip:g}"


def _module_row(module: Module, most: float) -> tuple[str, ...]:
    state = module.state
    bad = state in {"not finite", "no gradient"}
    style = "bold red" if bad else "dim" if state == "frozen" else "yellow" if state else ""
    note = f"[{style}]{state}[/]" if state else ""
    if state == "frozen":
        return f"[dim]{module.name}[/]", _count(module.parameters), _number(module.weight), "", "", note
    filled = 0.0
    if math.isfinite(module.gradient) and module.gradient > 0 and most > 0:
        filled = max(1 + math.log10(module.gradient / most) / _DECADES, 0.02)
    bar = f"[cyan]{_bar(filled)}[/]"
    name = f"[bold red]{module.name}[/]" if bad else module.name
    return name, _count(module.parameters), _number(module.weight), _number(module.gradient), bar, note


# --- training --------------------------------------------------------------------------------------------------------


def _training(found: Examination) -> Group:
    subject, config = found.subject, found.subject.config
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    if found.rates is not None:
        r = found.rates
        table.add_row("step size", f"[cyan]{curve(r.curve)}[/]")
        line = f"{_number(r.start)} → {_number(r.peak)} at step {r.peak_step} → {_number(r.end)} at step {config.steps}"
        table.add_row("", f"{line}  [dim]({_schedule(config)})[/]")
    for number, line in enumerate(_step_sizes(found)):
        table.add_row("" if number else "effective", line)
    table.add_row("optimiser", _optimiser(config))
    parts = f", in {config.accumulate} parts" if config.accumulate > 1 else ""
    table.add_row("batch", f"{_plural(config.batch_size, 'sample')}{parts}; {config.steps} steps")
    table.add_row(
        "learns from", f"{', '.join(config.train_suites)}; validated on {config.val_suite} every {config.val_every}"
    )
    threads = f", {_plural(config.threads, 'thread')}" if config.threads else ""
    table.add_row("computes", f"{found.device}{threads}, {found.precision}")
    if found.cost is not None:
        table.add_row("a step", _cost(found.cost, config.steps))
    if subject.gate is not None:
        gate = subject.gate
        table.add_row(
            "overfit gate", f"{gate.steps} steps at up to {gate.lr:g}, on one sample; its own, whatever lr is"
        )
    return Group(table)


def _step_sizes(found: Examination) -> list[str]:
    """What the step size is made of, with `lr_scales` that of each group of parameters."""
    subject, config = found.subject, found.subject.config
    own = f"lr {subject.lr:g} x lr_scale {config.lr_scale:g} = [bold]{subject.lr * config.lr_scale:g}[/]"
    if not config.lr_scales or not any(p.requires_grad for p in subject.system.parameters()):
        return [own]
    groups = step_groups(subject.system, config, name=subject.name)
    counts = [_count(sum(p.numel() for p in group["params"])) for group in groups]
    lines = [
        f"lr {subject.lr:g} x lr_scales {scale:g} = [bold]{subject.lr * scale:g}[/]  [dim]{escape(key)}, {count} weights[/]"
        for (key, scale), count in zip(config.lr_scales.items(), counts[-len(config.lr_scales) :], strict=True)
    ]
    others = f"{own}  [dim]all others, {counts[0]} weights[/]"
    return lines if len(groups) == len(lines) else [others, *lines]


def _optimiser(config: TrainConfig) -> str:
    limits = ", ".join(f"{name} {limit:g}" for name, limit in config.clip_groups.items())
    clip = (
        f"gradient clipped by group: {limits}"
        if limits
        else f"gradient clipped to {config.clip:g}"
        if config.clip
        else ""
    )
    decay = f"weight decay {config.weight_decay:g}"
    return ", ".join(
        part for part in (config.optimizer, f"betas {config.betas[0]:g} {config.betas[1]:g}", decay, clip) if part
    )


def _schedule(config: TrainConfig) -> str:
    schedule = config.schedule
    if schedule.kind == "onecycle":
        return f"onecycle, {schedule.pct_start:.0%} of it rising"
    warm = f", {schedule.warm_up} steps of warm-up" if schedule.warm_up else ""
    return f"{schedule.kind}{warm}"


def _cost(cost: StepCost, steps: int) -> str:
    """Time and memory of a step, what all steps would take, and how the loss went."""
    went = " → ".join(_number(loss) for loss in cost.losses)
    return (
        f"{_seconds(cost.seconds)}, {cost.batch / cost.seconds:.3g} samples/s; {steps} steps {duration(steps * cost.seconds)}; "
        f"peak memory {cost.memory_gb:.2f} GB\n[dim]loss over the first {len(cost.losses)} steps: {went}[/]"
    )


def curve(values: Sequence[float]) -> str:
    """Values as a line of blocks, from 0 to the largest."""
    most = max(max(values), 1e-300)
    return "".join(_BLOCKS[min(int(value / most * len(_BLOCKS)), len(_BLOCKS) - 1)] for value in values)


# --- verdict and words -----------------------------------------------------------------------------------------------


def _verdict(found: Examination) -> Panel:
    lines = [f"[bold red]✗[/] {escape(f.text)}" for f in found.findings if f.kind == "broken"]
    lines += [f"[yellow]![/] {escape(f.text)}" for f in found.findings if f.kind == "note"]
    count = sum(f.kind == "broken" for f in found.findings)
    title = f"{count} thing{'s' if count > 1 else ''} broken" if count else "nothing is broken"
    colour = "red" if count else "green"
    if not count:
        lines.insert(
            0, "[green]✓[/] finite losses, a gradient in every module that is trained, inputs that show something"
        )
    return Panel("\n".join(lines), title=f"[bold {colour}]{title}[/]", title_align="left", border_style=colour)


def _bar(share: float, width: int = _BAR) -> str:
    """A bar of `width` characters, filled to a share between 0 and 1."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 or not math.isfinite(value) else f"{value:.2e}"


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count > 1 else ''}"


def _count(count: int) -> str:
    unit, factor = next(((u, f) for u, f in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= f), ("", 1.0))
    return f"{count / factor:.3g}{' ' if unit else ''}{unit}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
