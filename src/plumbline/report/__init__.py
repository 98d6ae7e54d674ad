"""The report: one self-contained page, its markdown twin, and the result table for a terminal."""

from plumbline.report.page import build_report
from plumbline.report.readme import update_readme
from plumbline.report.terminal import print_results

# Methods that read the truth, for tables made from metrics alone; the report itself asks the predictions.
ORACLES = frozenset({"median_plane", "perturbed"})

__all__ = ["ORACLES", "build_report", "print_results", "update_readme"]
