"""A method's depth for each sample of its suites, once: predictions/<method>. Scores are made from these files."""

from pathlib import Path
from typing import Any

from plumbline.config import DatasetConfig, PredictionConfig, SuiteConfig, load_params, section, sections, value
from plumbline.prediction import load_method, open_suite, predict, predict_files, training_constants
from plumbline.stage import record, run

SCENES = Path("data/scenes")


def main(method: str) -> None:
    """Predict with `method`: the test suites, and what other systems learn from that refine its depth."""
    params = load_params()
    config, own = section(params, "prediction", PredictionConfig), value(params, f"systems.{method}") or {}
    datasets, suites = sections(params, "datasets", DatasetConfig), sections(params, "suites", SuiteConfig)
    uses = [params["train"][key] for key, x in params["systems"].items() if (x or {}).get("initial") == method]
    learnt = {suite for use in uses for suite in (*use["train_suites"], use["val_suite"])}
    chosen = {name: suite for name, suite in suites.items() if suite.split in ("test", "all") or name in learnt}
    opened = [open_suite(*item, datasets=datasets, scenes=SCENES) for item in chosen.items()]
    out = Path("predictions") / method
    if method == "file":
        seconds = predict_files(Path(own["folder"]), suites=opened, out=out)
    else:
        weights = Path("runs/train") / method if method in params["train"] else None
        system, device = load_method(method, own, weights=weights, device=config.device)
        initial = Path("predictions") / own["initial"] if "initial" in own else None
        constants = training_constants(system, datasets, SCENES)
        options: dict[str, Any] = {"device": device, "initial": initial, "constants": constants}
        seconds = predict(system, method=method, suites=opened, out=out, batch_size=config.batch_size, **options)
    record("predict", method, params, params=own, metrics={f"seconds_per_sample/{k}": v for k, v in seconds.items()})


if __name__ == "__main__":
    run(main)
