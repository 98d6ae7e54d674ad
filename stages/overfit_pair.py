"""Can one system fit its sample, and by looking at it? runs/overfit/<system>; training waits for the answer."""

from pathlib import Path

from plumbline.config import load_params, section, value
from plumbline.data.checks import CheckConfig
from plumbline.overfit import OverfitConfig
from plumbline.overfit_record import record_files
from plumbline.overfit_stage import Places, run_gate
from plumbline.overfit_verdict import numbers, require_passed, summary
from plumbline.stage import record, run


def main(system: str) -> None:
    """Overfit `system` on data/pair/<system>; fails, with the record in place, when its criteria are not met."""
    params = load_params()
    config, checks = section(params, f"overfit.{system}", OverfitConfig), section(params, "checks", CheckConfig)
    own, out = value(params, f"systems.{system}") or {}, Path("runs/overfit") / system
    places = Places(pair=Path("data/pair") / system, labels=Path("data/pseudo_labels"), out=out)
    verdict = run_gate(system, own, config, checks, seed=params["seed"], places=places)
    print(summary(verdict))
    logged = {"overfit": params["overfit"][system], "system": own, "seed": params["seed"]}
    tags = {"verdict": "passed" if verdict.passed else "failed"}
    record("overfit_pair", system, params, params=logged, metrics=numbers(verdict), tags=tags, **record_files(out))
    require_passed(verdict, record=str(out / "record.md"))


if __name__ == "__main__":
    run(main)
