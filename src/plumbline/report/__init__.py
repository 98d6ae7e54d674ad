"""The report: one self-contained page, its markdown twin, and the result table for a terminal."""

from plumbline.report.page import build_report
from plumbline.report.terminal import print_results

__all__ = ["build_report", "print_results"]
