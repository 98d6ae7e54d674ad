"""Tables, figures and the verdict, from score files: reports/."""

from pathlib import Path

from plumbline.config import DatasetConfig, EvaluationConfig, ReportConfig, SuiteConfig, load_params, section, sections
from plumbline.evaluation import headline
from plumbline.report import build_report
from plumbline.stage import record, run


def main() -> None:
    """Write the report on all methods."""
    params = load_params()
    suites = sections(params, "suites", SuiteConfig)
    metrics = build_report(
        Path.cwd(),
        methods=list(params["systems"]),
        suites={name: suite for name, suite in suites.items() if suite.is_test},
        datasets=sections(params, "datasets", DatasetConfig),
        report=section(params, "report", ReportConfig),
        evaluation=section(params, "evaluation", EvaluationConfig),
        seed=params["seed"],
    )
    flat = {f"headline/{suite}/{m}": x for suite, row in headline(metrics).items() for m, x in row.items()}
    files = [Path("reports") / name for name in ("report.html", "report.md", "metrics.json", "headline.json")]
    record("report", None, params, params=params, metrics=flat, artifacts=files, ends_pipeline=True)


if __name__ == "__main__":
    run(main)
