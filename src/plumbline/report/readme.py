"""The results table of README.md, from reports/headline.json: written between two markers, never by hand."""

from collections.abc import Mapping
from pathlib import Path

from plumbline.errors import DataError
from plumbline.files import atomic_path

_BEGIN = "<!-- results: written by `plumbline results --readme` -->\n"
_END = "<!-- end of results -->"


def results_table(headline: Mapping[str, Mapping[str, float]], *, oracles: frozenset[str] = frozenset()) -> str:
    """A markdown table of {suite: {method: abs_rel}}: a row for each method, the best of a suite that is no oracle bold."""
    methods = list(next(iter(headline.values())))
    best = {s: min(v for m, v in row.items() if m not in oracles) for s, row in headline.items()}
    lines = ["| abs_rel | " + " | ".join(headline) + " |", "|---|" + "---|" * len(headline)]
    for method in methods:
        cells = [_cell(row.get(method), bold=row.get(method) == best[suite]) for suite, row in headline.items()]
        name = f"{method} (oracle)" if method in oracles else method
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, *, bold: bool) -> str:
    if value is None:
        return "–"
    return f"**{value:.4f}**" if bold else f"{value:.4f}"


def with_results(text: str, table: str) -> str:
    """README's text with its table replaced; DataError when the two markers are not there."""
    if _BEGIN not in text or _END not in text:
        raise DataError(
            f"README.md: the markers {_BEGIN.strip()!r} and {_END!r} are not there. Put them where results belong."
        )
    head, rest = text.split(_BEGIN, 1)
    return head + _BEGIN + table + _END + rest.split(_END, 1)[1]


def update_readme(path: Path, headline: Mapping[str, Mapping[str, float]], *, oracles: frozenset[str]) -> None:
    """Rewrite the table in README.md."""
    text = with_results(path.read_text(encoding="utf-8"), results_table(headline, oracles=oracles))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
