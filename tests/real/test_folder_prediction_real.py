"""Depth for a real capture from its folder, as the command does it."""

import csv

import numpy as np

from plumbline.files import read_png16
from plumbline.folder_prediction import Choice, choose_samples, load_method, open_raw, predict_folder, sample_rule


def test_the_sweep_of_a_kitchen_beats_the_constant(real_data, tmp_path):
    errors = {}
    for name in ("plane_sweep", "constant"):
        raw = open_raw("rgbd", real_data / "seven_scenes", size=(96, 128))
        chosen = choose_samples(raw, Choice(sample_rule("rgbd", gap=5), max_samples=6), depth_range=(0.5, 8.0))
        result = predict_folder(load_method(name, device="cpu"), chosen, tmp_path / name)
        assert result.finished == result.total == 6
        rows = list(csv.DictReader((tmp_path / name / "metrics.csv").open()))
        errors[name] = np.mean([float(row["abs_rel"]) for row in rows])
        assert all(float(row["coverage"]) == 1 for row in rows)
    assert errors["plane_sweep"] < 0.15 and errors["plane_sweep"] < 0.5 * errors["constant"]
    millimetres = read_png16(next((tmp_path / "plane_sweep").rglob("frame-*.png")))
    assert millimetres.min() >= 500 and millimetres.max() <= 8000
