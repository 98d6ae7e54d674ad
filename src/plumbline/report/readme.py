"""The results tables of README.md, from reports/metrics.json: written between two markers, never by hand."""

from collections.abc import Mapping
from pathlib import Path

from plumbline.camera_metrics import CAMERA_METRICS
from plumbline.errors import DataError
from plumbline.evaluation import OVERFIT, headline, headline_metric, oracles_in
from plumbline.files import atomic_path

_BEGIN = "<!-- results: written by `plumbline results --readme` -->\n"
_END = "<!-- end of results -->"
_ANGLES = {"rotation_error_deg": "rotation, °", "translation_error_deg": "translation, °", "auc30": "AUC@30"}
Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]


def results_tables(metrics: Metrics, *, oracles: frozenset[str] = frozenset()) -> str:
    """Markdown of {suite: {method: {metric: value}}}: abs_rel by method and suite, and the cameras where there are any.

    Suites in which views are rendered have a table of their own, with PSNR and SSIM in place of depth. The best of a suite that
    is no oracle is bold. A suite in which a method does not know the scale is said to be aligned by
    the median. What the overfit gates measured is not shown.
    """
    suites = {name: methods for name, methods in metrics.items() if name != OVERFIT}
    rendered = {name: methods for name, methods in suites.items() if any("psnr" in row for row in methods.values())}
    measured = {name: methods for name, methods in suites.items() if name not in rendered}
    tables = [_depth_table(measured, oracles), *(_camera_table(name, methods) for name, methods in measured.items())]
    tables.append(_view_table(rendered, oracles))
    return "\n".join(table for table in tables if table)


def _depth_table(suites: Metrics, oracles: frozenset[str]) -> str:
    rows = headline(suites)
    aligned = {suite for suite, methods in suites.items() if headline_metric(methods) != "abs_rel"}
    hidden = {suite: oracles_in(suites[suite], oracles) for suite in rows}
    known = {suite: [v for m, v in row.items() if m not in hidden[suite]] for suite, row in rows.items()}
    best = {suite: min(values, default=None) for suite, values in known.items()}
    names = [f"{suite} (median-aligned)" if suite in aligned else suite for suite in rows]
    lines = ["| abs_rel | " + " | ".join(names) + " |", "|---|" + "---|" * len(rows)]
    for method in dict.fromkeys(method for row in rows.values() for method in row):
        cells = [
            _cell(row.get(method), bold=row.get(method) == best[suite], oracle=method in hidden[suite] - oracles)
            for suite, row in rows.items()
        ]
        name = f"{method} (oracle)" if method in oracles else method
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, *, bold: bool, oracle: bool) -> str:
    if value is None:
        return "–"
    return f"**{value:.4f}**" if bold else f"{value:.4f}{' (oracle)' if oracle else ''}"


def _camera_table(suite: str, methods: Mapping[str, Mapping[str, float]]) -> str:
    """Rotation, translation and AUC@30 of the methods of a suite that predict cameras; "" when none does."""
    rows = {method: values for method, values in methods.items() if values.keys() & set(CAMERA_METRICS)}
    if not rows:
        return ""
    lines = [f"| cameras, {suite} | " + " | ".join(_ANGLES.values()) + " |", "|---|" + "---|" * len(_ANGLES)]
    for method, values in rows.items():
        cells = [_angle(name, values.get(name), rows) for name in _ANGLES]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _angle(name: str, value: float | None, rows: Mapping[str, Mapping[str, float]]) -> str:
    if value is None:
        return "–"
    pick, text = (max, f"{value:.1%}") if name.startswith("auc") else (min, f"{value:.2f}")
    return f"**{text}**" if value == pick(row[name] for row in rows.values() if name in row) else text


def _view_table(suites: Metrics, oracles: frozenset[str]) -> str:
    """PSNR in dB and SSIM of the methods that render, by suite; the best PSNR of a suite is bold. "" when none renders."""
    if not suites:
        return ""
    lines = ["| PSNR, dB / SSIM | " + " | ".join(suites) + " |", "|---|" + "---|" * len(suites)]
    known = {
        suite: [row["psnr"] for method, row in rows.items() if "psnr" in row and method not in oracles]
        for suite, rows in suites.items()
    }
    best = {suite: max(values, default=None) for suite, values in known.items()}
    methods = dict.fromkeys(m for rows in suites.values() for m, row in rows.items() if "psnr" in row)
    for method in methods:
        cells = [_view_cell(rows.get(method, {}), best[suite]) for suite, rows in suites.items()]
        name = f"{method} (oracle)" if method in oracles else method
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _view_cell(row: Mapping[str, float], best: float | None) -> str:
    if "psnr" not in row:
        return "–"
    text = f"{row['psnr']:.2f}"
    return (f"**{text}**" if row["psnr"] == best else text) + f" / {row['ssim']:.3f}"


def with_results(text: str, table: str) -> str:
    """README's text with its tables replaced; DataError when the two markers are not there."""
    if _BEGIN not in text or _END not in text:
        raise DataError(
            f"README.md: the markers {_BEGIN.strip()!r} and {_END!r} are not there. Put them where results belong."
        )
    head, rest = text.split(_BEGIN, 1)
    return head + _BEGIN + table + _END + rest.split(_END, 1)[1]


def update_readme(path: Path, metrics: Metrics, *, oracles: frozenset[str]) -> None:
    """Rewrite the tables in README.md from the content of reports/metrics.json."""
    text = with_results(path.read_text(encoding="utf-8"), results_tables(metrics, oracles=oracles))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
