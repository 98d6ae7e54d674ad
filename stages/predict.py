"""A method's depth for each sample of its suites, once: predictions/<method>. Scores are made from these files."""

from pathlib import Path

from plumbline.config import DatasetConfig, PredictionConfig, SuiteConfig, load_params, section, sections, value
from plumbline.prediction import load_method, open_suite, predict, predict_files, training_constants
from plumbline.stage import record, run

SCENES = Path("data/scenes")


def main(method: str) -> None:
    """Predict with `method`: a baseline, or a system trained before (it alone skips the suites it is trained on)."""
    params = load_params()
    config, own = section(params, "prediction", PredictionConfig), value(params, f"systems.{method}") or {}
    datasets, suites = sections(params, "datasets", DatasetConfig), sections(params, "suites", SuiteConfig)
    trained = method in params["train"]
    chosen = {name: suite for name, suite in suites.items() if suite.split in ("test", "all") or not trained}
    opened = [open_suite(name, suite, datasets=datasets, scenes=SCENES) for name, suite in chosen.items()]
    out = Path("predictions") / method
    if method == "file":
        seconds = predict_files(Path(own["folder"]), suites=opened, out=out)
    else:
        weights = Path("runs/train") / method if trained else None
        system, device = load_method(method, own, weights=weights, device=config.device)
        initial = Path("predictions") / own["initial"] if "initial" in own else None
        constants = training_constants(system, datasets, SCENES)
        options = {"batch_size": config.batch_size, "device": device, "initial": initial, "constants": constants}
        seconds = predict(system, method=method, suites=opened, out=out, **options)
    record("predict", method, params, params=own, metrics={f"seconds_per_sample/{k}": v for k, v in seconds.items()})


if __name__ == "__main__":
    run(main)
