"""The section on novel views: every number from its file, a verdict by rule, the sweep, pictures and the orbit."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from fabricated import write_gate
from fabricated_views import NOISE, SCENES, VIEW_METHODS, target_suite, write_orbit, write_views
from page_reader import Reader, rows_of, value_at
from plumbline.config import DatasetConfig, EvaluationConfig, ReportConfig
from plumbline.errors import DataError
from plumbline.evaluation import paired
from plumbline.report import build_report, print_results
from plumbline.report.novel import find_sweeps, read_novel, view_verdicts
from plumbline.report.novel_samples import rank_views
from plumbline.report.pictures import movie
from plumbline.report.results import read_results
from plumbline.view_scores import ViewRow, read_view_rows, scene_means

EVALUATION = EvaluationConfig(bootstrap=100)


def build(root, suites, **changes):
    options = {"methods": VIEW_METHODS, "report": ReportConfig(systems=["depthsplat"])} | changes
    datasets: dict[str, DatasetConfig] = {}
    build_report(root, suites=suites, datasets=datasets, evaluation=EVALUATION, **options)
    return (root / "reports/report.html").read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("huts")
    (root / "params.yaml").write_text("seed: 0\n")
    suites = write_views(root)
    write_gate(root, "depthsplat")
    return root, suites, build(root, suites)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A report on samples with two targets, with LPIPS, a gate that measured PSNR, and no orbit."""
    root = tmp_path_factory.mktemp("huts")
    suites = write_views(root, views=4, targets=2, sweep=())
    (root / "predictions/depthsplat/huts_new/orbit.gif").unlink()
    for method in VIEW_METHODS[1:]:
        file = root / f"scores/{method}/summary.json"
        content = json.loads(file.read_text())
        content["suites"]["huts_new"]["views"]["lpips"] = {"mean": 0.1 * len(method), "low": None, "high": None}
        file.write_text(json.dumps(content))
    write_gate(root, "depthsplat")
    folder = root / "runs/overfit/depthsplat"
    verdict = json.loads((folder / "verdict.json").read_text())
    criterion = {"name": "psnr", "value": 31.25, "expected": "above 30 dB", "met": True, "remark": ""}
    (folder / "verdict.json").write_text(json.dumps(verdict | {"criteria": [*verdict["criteria"], criterion]}))
    lines = [f"{step},{1 / step},{0.9 / step},{20 + np.log(step)}" for step in range(1, 101)]
    (folder / "curve.csv").write_text("\n".join(["step,train/loss,val/loss,val/psnr", *lines]) + "\n")
    return root, suites, build(root, suites)


def section_of(text):
    return text[text.index('id="novel"') : text.index('id="samples"')]


def expected(root, number):
    """What a number of this section must say, read without the report's code."""
    sources, kind = number["data-source"].split(" "), number["data-kind"]
    if kind.startswith("paired."):
        means = [scene_means(read_view_rows(root / source.split("#")[0])) for source in sources]
        value = getattr(paired(*means, "psnr", bootstrap=100), kind.removeprefix("paired."))
    else:
        values = [view_value(root, source) for source in sources]
        value = {
            "value": lambda: values[0],
            "milliseconds": lambda: 1000 * values[0],
            "difference": lambda: values[0] - values[1],
            "mean": lambda: sum(values) / len(values),
        }[kind]()
    return format(value, number["data-format"])


def view_value(root, source):
    file, place = source.split("#")
    if not file.endswith("_views.csv"):
        return value_at(root, source)
    sample, target, metric = place.split("/")
    with (root / file).open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["sample"], row["target"]) == (sample, target)]
    assert len(rows) == 1
    return float(rows[0][metric])


def test_every_number_about_rendered_views_is_the_one_in_its_file(project):
    root, _, text = project
    numbers = Reader(section_of(text)).numbers
    kinds = {number["data-kind"] for number in numbers}
    assert {"value", "milliseconds", "difference", "paired.low", "paired.high"} <= kinds and len(numbers) > 60
    assert [n for n in numbers if n["text"] != expected(root, n)] == []
    rest = re.sub(r"95 %|delta\d+", " ", " ".join(Reader(section_of(text)).rest))
    assert re.findall(r"\d+\.\d+", rest) == []


def test_the_table_has_baselines_first_and_marks_the_best(project):
    text = section_of(project[2])
    table = text[text.index("huts_new: views rendered from 2 given ones") :]
    rows = rows_of(table, "huts_new: views rendered")
    assert list(rows) == list(VIEW_METHODS)
    assert rows["warped_view"].count('class="best"') == 2 and 'class="best"' not in rows["nearest_view"]
    assert rows["depthsplat"].count('class="best"') == 1  # its depth, beside that of constant
    assert ">40,966<" in rows["depthsplat"] and rows["depthsplat"].count('data-kind="milliseconds"') == 2
    assert text.count("LPIPS is unavailable: no weight files given") == 1 and "<th>LPIPS" not in text


def test_the_verdict_says_what_is_beaten_and_what_is_not(project):
    text = project[2]
    card = text[text.index("<h3>depthsplat's rendered views in huts_new</h3>") - 40 :][:500]
    assert 'class="card open"' in card
    assert "Better than mean_colour and nearest_view, not than warped_view." in card
    words = " ".join(re.sub(r"<[^>]+>", "", section_of(text)).split())
    assert re.search(
        r"depthsplat [\d.]+ dB: better than mean_colour \([\d.]+\) and nearest_view \([\d.]+\); worse than warped_view",
        words,
    )


@pytest.mark.parametrize(
    ("depthsplat", "outcome", "words"),
    [
        (5, "good", "Better than every other method."),
        (60, "bad", "Better than mean_colour, not than nearest_view and warped_view."),
        (250, "bad", "Not better than mean_colour and nearest_view and warped_view."),
    ],
)
def test_the_verdict_follows_the_numbers(tmp_path, depthsplat, outcome, words):
    suites = write_views(tmp_path, views=3, noise=NOISE | {"depthsplat": depthsplat}, sweep=())
    results = read_results(tmp_path, VIEW_METHODS, list(suites))
    novel = read_novel(tmp_path, results, VIEW_METHODS, suites, systems=["depthsplat"])
    (verdict,) = view_verdicts(tmp_path, novel, ["depthsplat"], bootstrap=100, seed=0)
    assert (verdict.outcome, verdict.headline) == (outcome, words)


def test_without_intervals_nothing_is_decided(tmp_path):
    suites = write_views(tmp_path, views=3, scenes=SCENES[:1], sweep=())
    results = read_results(tmp_path, VIEW_METHODS, list(suites))
    novel = read_novel(tmp_path, results, VIEW_METHODS, suites, systems=["depthsplat"])
    (verdict,) = view_verdicts(tmp_path, novel, ["depthsplat"], bootstrap=100, seed=0)
    assert verdict.outcome == "bad" and len(verdict.of("open")) == 3


def test_suites_of_rendered_views_stay_out_of_the_depth_tables(project):
    text = project[2]
    glance = text[text.index("at a glance") : text.index('id="novel"')]
    assert "huts_new" not in glance and "mean_colour" not in glance
    assert "all metrics of the depth of given views" in section_of(text)


def test_a_sweep_is_found_by_its_rule(project):
    names = {
        "a_4": target_suite("d", 4),
        "a_2": target_suite("d", 2),
        "a": target_suite("d", 2),
        "b_3": target_suite("d", 2),
        "c_2": target_suite("d", 2),
    }
    assert find_sweeps(names) == {"a": {2: "a_2", 4: "a_4"}}
    text = section_of(project[2])
    table = text[text.index("the same views rendered from more and more given ones") :]
    assert re.findall(r'<th scope="row">(\d)</th>', table[: table.index("</table>")]) == ["2", "3"]
    chart = re.search(r'alt="(huts_new: rendered views[^"]*)"', text)
    assert chart is not None and "depthsplat" in chart[1] and "nearest_view" in chart[1]
    assert re.search(r'alt="huts_new: depth, abs_rel \(lower is better\)[^"]*depthsplat', text)


def test_pictures_are_of_the_best_median_and_worst_sample(project):
    root, _, text = project
    rows = sorted(read_view_rows(root / "scores/depthsplat/huts_new_views.csv"), key=lambda row: -row.values["psnr"])
    for name, row in (("Best", rows[0]), ("Median", rows[(len(rows) - 1) // 2]), ("Worst", rows[-1])):
        assert re.search(rf"{name}: <code>{row.scene}/{row.target} from \d{{4}}\+\d{{4}}</code>", text)
    section = section_of(text)
    for title, times in (("given view", 6), ("truth", 3), ("rendered: warped_view", 3), ("error: depthsplat", 3)):
        assert section.count(f"<figcaption>{title}</figcaption>") == times
    assert "rendered: mean_colour" not in section
    assert section.count("rendered depth: depthsplat</figcaption>") == section.count("true depth</figcaption>") == 3


def test_a_sample_is_ranked_by_all_its_targets():
    values = [(0, 20.0), (0, 10.0), (1, 16.0), (2, 16.0)]
    rows = [
        ViewRow(sample, "a" if sample < 2 else "b", "", str(i), {"psnr": x}) for i, (sample, x) in enumerate(values)
    ]
    assert rank_views(rows) == [("best", 1), ("median", 2), ("worst", 0)]


def test_several_targets_are_averaged_and_the_first_is_shown(other):
    root, _, text = other
    numbers = Reader(section_of(text)).numbers
    assert sum(number["data-kind"] == "mean" for number in numbers) == 3
    assert [n for n in numbers if n["text"] != expected(root, n)] == []


def test_the_orbit_is_in_the_page_and_may_be_absent(project, other):
    text = project[2]
    assert 'class="orbit"' in text and 'alt="an orbit around a scene, rendered by depthsplat"' in text
    assert [link for link in Reader(text).links if not link.startswith(("data:image/webp;base64,", "#"))] == []
    assert 'class="orbit"' not in other[2]


def test_an_orbit_keeps_its_frames_and_a_broken_one_is_refused(tmp_path):
    import base64
    import io

    write_orbit(tmp_path / "orbit.gif", frames=4)
    data = base64.b64decode(movie(tmp_path / "orbit.gif").removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(data)) as film:
        assert film.format == "WEBP" and film.n_frames == 4 and film.info["loop"] == 0
        film.seek(3)
        assert np.asarray(film.convert("RGB"))[12, 16, 0] > 150
    (tmp_path / "orbit.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"orbit\.gif: cannot be read as a GIF"):
        movie(tmp_path / "orbit.gif")


def test_lpips_is_shown_where_there_is_any(other):
    text = section_of(other[2])
    assert "LPIPS ↓" in text and "LPIPS is unavailable" not in text
    rows = rows_of(text, "huts_new: views rendered")
    assert re.search(r'class="best"><span[^>]*lpips/mean[^>]*>1\.000<', rows["depthsplat"])
    assert ">1.200<" in rows["nearest_view"]


def test_markdown_and_terminal_have_the_views(project, capsys):
    root, _, text = project
    markdown = (root / "reports/report.md").read_text()
    assert "- **depthsplat's rendered views in huts_new:** depthsplat" in markdown
    assert "### huts_new: more and more given views" in markdown
    for table in re.findall(r"(?:^\|.*\|\n)+", markdown, re.MULTILINE):
        assert len(table.splitlines()) > 2, table
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    metrics = json.loads((root / "reports/metrics.json").read_text())
    psnr = metrics["huts_new"]["warped_view"]["psnr"]
    assert f"| warped_view | **{psnr:.2f}** |" in markdown and f">{psnr:.2f}<" in text
    print_results(metrics, report=root / "reports/report.html")
    printed = capsys.readouterr().out
    assert "PSNR dB" in printed and f"{psnr:.2f}" in printed


def test_curves_of_psnr_are_drawn(project):
    text = project[2]
    assert 'alt="depthsplat: rendered views: validation over the optimiser step"' in text


def test_a_gate_of_rendered_views_is_told(other):
    root, _, text = other
    section = text[text.index('id="overfit"') : text.index('id="results"')]
    assert "above 30 dB" in section and ">31.25<" in section and "<th>PSNR, dB</th>" in section
    assert 'alt="depthsplat: PSNR, dB, one sample: after the step over the optimiser step"' in section
    metrics = json.loads((root / "reports/metrics.json").read_text())
    assert metrics["overfit"]["depthsplat"]["psnr"] == 31.25


def test_methods_that_render_nothing_have_no_rows(project):
    root = project[0]
    rows = read_view_rows(root / "scores/depthsplat/huts_new_views.csv")
    assert {row.scene for row in rows} == set(SCENES) and len(rows) == 12
    assert read_view_rows(root / "scores/constant/huts_new_views.csv") == []
