"""A method's depth or cameras for each sample of its suites, once: predictions/<method>. Scores are made of these files."""

from pathlib import Path

from plumbline import prediction
from plumbline.config import DatasetConfig, PredictionConfig, SuiteConfig, load_params, section, sections, value
from plumbline.stage import record, run

SCENES = Path("data/scenes")


def main(method: str) -> None:
    """Predict with `method`: the test suites that ask it, and all that systems which refine its depth learn from or answer."""
    params = load_params()
    config, own = section(params, "prediction", PredictionConfig), value(params, f"systems.{method}") or {}
    datasets, suites = sections(params, "datasets", DatasetConfig), sections(params, "suites", SuiteConfig)
    prediction.check_methods(suites, params["systems"])
    refined = prediction.refined_suites(method, suites, params["systems"], params["train"])
    chosen = prediction.asked_suites(method, suites, refined)
    opened = [prediction.open_suite(*item, datasets=datasets, scenes=SCENES) for item in chosen.items()]
    out = Path("predictions") / method
    if method == "file":
        seconds = prediction.predict_files(Path(own["folder"]), suites=opened, out=out)
    else:
        weights = Path("runs/train") / method if method in params["train"] else None
        system, device = prediction.load_method(method, own, weights=weights, device=config.device)
        initial = Path("predictions") / own["initial"] if "initial" in own else None
        given = {"initial": initial, **prediction.training_means(system, opened, datasets, SCENES)}
        options = {"batch_size": config.batch_size, "device": device}
        seconds = prediction.predict(system, method=method, suites=opened, out=out, **options, **given)
    record("predict", method, params, params=own, metrics={f"seconds_per_sample/{k}": v for k, v in seconds.items()})


if __name__ == "__main__":
    run(main)
