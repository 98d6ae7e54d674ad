"""What every stage does around its one call: end with its parent, show errors as messages, stop cleanly on Ctrl-C."""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plumbline.config import TrackingConfig, section
from plumbline.errors import PlumblineError
from plumbline.process import dvc_root, prepare


def run(main: Callable[..., None]) -> None:
    """Call `main` with the command line's arguments; an error a user is meant to read ends the process with status 1."""
    prepare()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        main(*sys.argv[1:])
    except PlumblineError as error:
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nInterrupted. Finished parts are kept: the same command goes on from there.", file=sys.stderr)
        raise SystemExit(130) from None


def record(
    stage: str, item: str | None, params: Mapping[str, Any], /, tags: Mapping[str, str] | None = None, **logged: Any
) -> None:
    """Log what a stage did (see `tracking.log_stage`), tagged with its item and seed. Called last: mlflow loads only now."""
    from plumbline.tracking import log_stage

    kind = "dataset" if stage in {"download", "parse", "check_data", "pseudo_labels"} else "system"
    own = {"seed": str(params["seed"])} | ({} if item is None else {kind: item})
    config = section(params, "tracking", TrackingConfig)
    log_stage(stage, item=item, config=config, tags=own | dict(tags or {}), **logged)


def raw_root() -> Path:
    """Where raw files of downloads and generators lie: beside the main workspace's data, whatever clone this runs in."""
    return dvc_root() / "data" / "raw" / "files"


def scratch_root() -> Path:
    """Where unfinished work is kept between runs; not declared to DVC, never part of an output."""
    return dvc_root() / ".resume"
