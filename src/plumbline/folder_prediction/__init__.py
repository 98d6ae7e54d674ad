"""Depth for any folder of raw captures, without the pipeline: choose samples, predict, write, compare where there is truth."""

from plumbline.folder_prediction.method import Method, load_method
from plumbline.folder_prediction.run import FolderResult, predict_folder
from plumbline.folder_prediction.samples import Choice, RawSamples, choose_samples, open_raw, sample_rule
from plumbline.folder_prediction.show import plan_text, show_result

__all__ = [
    "Choice",
    "FolderResult",
    "Method",
    "RawSamples",
    "choose_samples",
    "load_method",
    "open_raw",
    "plan_text",
    "predict_folder",
    "sample_rule",
    "show_result",
]
