"""Metrics from files: scores/<method>."""

from pathlib import Path

from plumbline.config import EvaluationConfig, SuiteConfig, load_params, section
from plumbline.evaluation import evaluate, tracked_metrics
from plumbline.stage import record, run
from plumbline.systems import load


def main(method: str) -> None:
    """Score the predictions of `method` on every test suite that asks it."""
    params = load_params()
    config = section(params, "evaluation", EvaluationConfig)
    suites = {name: section(params, f"suites.{name}", SuiteConfig) for name in params["suites"]}
    summary = evaluate(
        method,
        predictions=Path("predictions") / method,
        suites={name: suite for name, suite in suites.items() if suite.is_test and suite.asks(method)},
        scenes=Path("data/scenes"),
        out=Path("scores") / method,
        common=Path("predictions") / config.common,
        bootstrap=config.bootstrap,
        seed=config.seed,
        batch_size=config.batch_size if config.average == "batch_means" else None,
        # Only this metric needs torch, so only then it is imported.
        distance=config.lpips and load("depthsplat.lpips").scorer(Path(config.lpips.trunk), Path(config.lpips.heads)),
    )
    record("evaluate", method, params, metrics=tracked_metrics(summary))


if __name__ == "__main__":
    run(main)
