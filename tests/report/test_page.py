import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fabricated import METHODS, ROOM_SCENES, TOWN_METHODS, write_checks, write_gate, write_project, write_towns
from page_reader import Reader, rows_of, value_at
from plumbline.config import DatasetConfig, EvaluationConfig, ReportConfig
from plumbline.errors import ConfigError, DataError
from plumbline.evaluation import Scored, paired, read_scene_means
from plumbline.metrics import Row
from plumbline.report import build_report, print_results, published
from plumbline.report.chosen import rank
from plumbline.report.provenance import code_digest, lock_digest

EVALUATION = EvaluationConfig(bootstrap=100)


def datasets(**changes):
    source = {
        "kind": "synthetic",
        "settings": {"layout": "sun3d", "scenes": ["a"], "views": 9, "image_size": [24, 32], "seed": 0},
    }
    values = {"format": "sun3d", "source": source, "image_size": (24, 32), "depth_range": (0.5, 8.0), "split": "seeded"}
    return {"rooms": DatasetConfig.model_validate(values | changes)}


def build(root, configs, **changes):
    options = {"methods": METHODS, "datasets": datasets(), "report": ReportConfig(), "evaluation": EVALUATION} | changes
    return build_report(root, suites=configs, **options)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "src/plumbline").mkdir(parents=True)
    (root / "src/plumbline/a.py").write_text("A = 1\n")
    (root / "params.yaml").write_text("lr: 1.0e-4  # <script>alert(1)</script>\n")
    parts = [
        "schema: '2.0'\nstages:\n",
        "  parse@rooms:\n    outs:\n    - {path: data/scenes/rooms, md5: 0123abcd.dir, size: 77, nfiles: 9}\n",
        "  report:\n    outs:\n    - {path: reports/report.html, md5: 1}\n",
    ]
    (root / "dvc.lock").write_text("".join(parts))
    configs = write_project(root, suites=("rooms_gap1", "rooms_gap5"))
    configs = {"configs": configs, "metrics": build(root, configs)}
    return root, configs


@pytest.fixture
def html(project):
    return (project[0] / "reports/report.html").read_text()


@pytest.fixture
def copy(project, tmp_path):
    shutil.copytree(project[0], tmp_path / "copy")
    return tmp_path / "copy", {"rooms_gap1": project[1]["configs"]["rooms_gap1"]}


def expected_text(root, number):
    sources, kind = number["data-source"].split(" "), number["data-kind"]
    if kind == "value":
        value = value_at(root, sources[0])
    elif kind == "change":
        value = value_at(root, sources[0]) / value_at(root, sources[1]) - 1
    else:
        places = [source.split("#") for source in sources]
        region, alignment, metric = places[0][1].split("/")
        means = [read_scene_means(root / file, region, alignment) for file, _ in places]
        value = getattr(paired(*means, metric, bootstrap=EVALUATION.bootstrap), kind.removeprefix("paired."))
    return format(int(value) if number["data-format"] == "d" else value, number["data-format"])


def test_every_number_is_the_one_in_its_file(project, html):
    numbers = Reader(html).numbers
    assert len(numbers) > 200
    assert {number["data-kind"] for number in numbers} == {"value", "change", "paired.low", "paired.high"}
    wrong = [n for n in numbers if n["text"] != expected_text(project[0], n)]
    assert wrong == []


def test_no_number_in_the_results_is_without_a_source(html):
    text = re.sub(
        r"(delta|log|sun3d_gap|rooms_gap)\d+|flat/\w+/\d+(\+\d+)+|\b1?\.?25|95 %", " ", " ".join(Reader(html).rest)
    )
    assert re.findall(r"\d+\.\d+", text) == []


def test_a_changed_score_is_noticed(copy):
    root = copy[0]
    file = root / "scores/deltaz/summary.json"
    content = json.loads(file.read_text())
    content["suites"]["rooms_gap1"]["regions"]["all"]["none"]["rmse"]["mean"] += 0.01
    file.write_text(json.dumps(content))
    numbers = Reader((root / "reports/report.html").read_text()).numbers
    assert [n["data-source"] for n in numbers if n["text"] != expected_text(root, n)] == [
        "scores/deltaz/summary.json#suites/rooms_gap1/regions/all/none/rmse/mean"
    ]


def test_the_page_needs_no_other_file(html):
    links = Reader(html).links
    assert len(links) > 20
    assert [link for link in links if not link.startswith(("data:image/webp;base64,", "#"))] == []
    assert not re.search(r"https?://|@import|url\(", html)
    assert len(html) < 4_000_000


def test_text_from_files_is_escaped(html):
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_metrics_and_headline_are_the_scores(project):
    root, made = project
    metrics = json.loads((root / "reports/metrics.json").read_text())
    assert metrics == made["metrics"]
    summary = json.loads((root / "scores/deltaz/summary.json").read_text())
    mean = summary["suites"]["rooms_gap5"]["regions"]["all"]["none"]["abs_rel"]["mean"]
    assert metrics["rooms_gap5"]["deltaz"]["abs_rel"] == mean
    assert json.loads((root / "reports/headline.json").read_text())["rooms_gap5"]["deltaz"] == mean


def test_the_verdict_comes_first_and_is_in_words(html):
    assert html.index('id="verdict"') < html.index('id="results"') < html.index('id="provenance"')
    assert "Better in all 2 suites." in html and "Read right." in html
    assert "These results are on generated scenes" in html


def test_real_captures_are_not_called_generated(copy):
    root, configs = copy
    build(root, configs, datasets=datasets(source={"kind": "folder", "path": "raw"}))
    assert "generated scenes" not in (root / "reports/report.html").read_text()


def test_a_system_that_loses_is_said_to_lose(copy):
    root, configs = copy
    build(root, configs, report=ReportConfig(systems=["constant"]))
    text = (root / "reports/report.html").read_text()
    assert '<span class="word bad">worse in 1</span>' in text


def test_sparse_methods_and_oracles_are_never_best(html):
    rows = rows_of(html, "No alignment, all valid pixels</caption>")
    assert 'class="best"' in rows["deltaz"]
    assert all('class="best"' not in rows[name] for name in ("plane_sweep", "perturbed"))
    assert "oracle: reads the truth" in rows["perturbed"] and "abstains in places" in rows["plane_sweep"]


def test_a_row_on_common_pixels_stands_beside_a_sparse_method(html):
    rows = rows_of(html, "only pixels on which plane_sweep speaks")
    assert set(rows) == set(METHODS)
    assert "abstains" not in rows["plane_sweep"]


def test_a_method_s_own_measures_parameters_and_memory_are_shown(html):
    shown = {number["data-source"].split("#")[1]: number["text"] for number in Reader(html).numbers}
    assert shown["suites/rooms_gap1/diagnostics/usable_share"] == "50.0%"
    assert shown["suites/rooms_gap1/diagnostics/match_error_px"] == "1.25"
    assert (shown["parameters"], shown["peak_memory_gb"]) == ("1,234", "0.5")


def test_samples_are_chosen_by_the_rule(project, html):
    root = project[0]
    with (root / "scores/deltaz/rooms_gap1.csv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if (r["region"], r["alignment"]) == ("all", "none")]
    ordered = sorted(rows, key=lambda row: float(row["abs_rel"]))
    for name, row in (("Best", ordered[0]), ("Median", ordered[(len(ordered) - 1) // 2]), ("Worst", ordered[-1])):
        assert f"{name}: <code>{row['scene']}/{row['views']}</code>" in html


def test_ties_and_few_samples_have_a_rule():
    def row(sample, value):
        return Scored(sample, "a", "", "all", "none", Row({"abs_rel": value}, 1, 1))

    ranked = rank([row(0, 0.2), row(1, 0.1), row(2, 0.1), row(3, 0.3)])
    assert [(name, scored.sample) for name, scored in ranked] == [("best", 1), ("median", 2), ("worst", 3)]
    assert [name for name, _ in rank([row(0, 1.0), row(1, 2.0)])] == ["best", "worst"]
    assert [name for name, _ in rank([row(0, 1.0)])] == ["only"]
    assert rank([]) == []


def test_data_verdicts_contact_sheets_and_reasons_are_shown(copy):
    root, configs = copy
    write_checks(root, ROOM_SCENES, verdict="wrong")
    build(root, configs, datasets=datasets(quarantine={"flat/attic": "blurred <b>"}))
    text = (root / "reports/report.html").read_text()
    assert "Not read right." in text
    assert "flat/attic: blurred &lt;b&gt;" in text
    assert text.count('alt="contact sheet of flat/') == 3
    section = text[text.index('id="data"') :]
    assert section.index("flat/kitchen") < section.index("flat/hall")  # the wrong scene comes first


def test_what_is_missing_is_said(copy):
    root, configs = copy
    shutil.rmtree(root / "data/checks")
    shutil.rmtree(root / "runs")
    (root / "dvc.lock").unlink()
    build(root, configs, methods=("constant", "plane_sweep"))
    text = (root / "reports/report.html").read_text()
    for words in (
        "Not checked.",
        "No method of this report has a training curve",
        "No trained system is among the methods",
    ):
        assert words in text


def test_published_numbers_stand_apart(html):
    section = html[html.index('id="published"') : html.index('id="conventions"')]
    assert all(name in section for name, _, _ in published.ROWS)
    assert 'class="n"' not in section
    assert ".0430" not in html[: html.index('id="published"')]


def test_the_same_inputs_give_the_same_page(project, copy, html):
    root = copy[0]
    build(root, project[1]["configs"])
    assert (root / "reports/report.html").read_text() == html


def test_markdown_says_the_same(project):
    text = (project[0] / "reports/report.md").read_text()
    assert text.index("## Verdict") < text.index("## Results")
    best = json.loads((project[0] / "reports/metrics.json").read_text())["rooms_gap1"]["deltaz"]["abs_rel"]
    assert f"| deltaz | **{best:.4f}** |" in text
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) >= 7
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_provenance_ties_the_page_to_lock_and_code(project, html):
    root = project[0]
    before = code_digest(root)
    assert before in html and "0123abcd.dir" in html
    (root / "src/plumbline/b.py").write_text("B = 2\n")
    assert code_digest(root) != before
    (root / "src/plumbline/b.py").unlink()


def test_the_lock_hash_leaves_out_the_report_itself():
    stages = {"parse@rooms": {"outs": [{"md5": "1"}]}}
    assert lock_digest(stages) == lock_digest(stages | {"report": {"outs": []}})
    assert lock_digest(stages) != lock_digest({"parse@rooms": {"outs": [{"md5": "2"}]}})


def test_results_are_printed_with_the_path(project, capsys):
    metrics = project[1]["metrics"]
    print_results(metrics, report=Path("reports/report.html"))
    text = capsys.readouterr().out
    assert f"{metrics['rooms_gap5']['deltaz']['abs_rel']:.4f}" in text
    assert "perturbed (oracle)" in text and text.rstrip().endswith("report: reports/report.html")


def test_colours_do_not_depend_on_the_suite():
    from plumbline.report.figures import colour_of

    assert colour_of("deltaz", METHODS) == colour_of("deltaz", METHODS[::-1][::-1]) != colour_of("constant", METHODS)
    assert len({colour_of(method, METHODS) for method in METHODS}) == len(METHODS)


def test_one_scale_for_all_depth_maps_of_a_sample():
    from plumbline.report.pictures import colour_map

    near, far = np.full((8, 8), 1, np.float32), np.full((8, 8), 3, np.float32)
    shown = np.ones((8, 8), bool)
    assert colour_map(near, shown, (1.0, 3.0), "depth") != colour_map(far, shown, (1.0, 3.0), "depth")
    assert colour_map(far, shown, (1.0, 3.0), "depth") == colour_map(9 * far, shown, (1.0, 3.0), "depth")


def test_scenes_are_listed_by_number_and_long_lists_fold(copy):
    root, configs = copy
    shutil.rmtree(root / "data/checks")
    write_checks(root, [f"scan{number}" for number in (10, 2, 1, *range(20, 32))])
    build(root, configs)
    section = (root / "reports/report.html").read_text().split('id="data"')[1]
    assert (
        section.index(">scan1<")
        < section.index(">scan2<")
        < section.index(">scan10<")
        < section.index("The other 3 scenes")
    )
    assert section.index("The other 3 scenes") < section.index(">scan31<")


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """A report on a suite of cameras and depth without scale, with gates that passed and failed."""
    root = tmp_path_factory.mktemp("towns")
    configs = write_towns(root)
    write_gate(root, "vggt", guide=True)
    write_gate(root, "plane_sweep", passed=False)
    made = build(root, configs, methods=TOWN_METHODS, report=ReportConfig(systems=["vggt"]))
    return root, configs, made, (root / "reports/report.html").read_text()


def test_every_number_about_cameras_and_gates_is_the_one_in_its_file(towns):
    root, _, _, text = towns
    numbers = Reader(text).numbers
    files = {number["data-source"].split("#")[0] for number in numbers}
    assert {"scores/vggt/towns_cameras.csv", "runs/overfit/vggt/verdict.json", "runs/overfit/vggt/curve.csv"} <= files
    assert [n for n in numbers if n["text"] != expected_text(root, n)] == []
    rest = re.sub(r"town/\w+/\d+(\+\d+)+|delta\d+|\b1?\.?25|95 %", " ", " ".join(Reader(text).rest))
    assert re.findall(r"\d+\.\d+", rest) == []


def test_depth_without_scale_is_aligned_and_one_plane_is_then_an_oracle(towns):
    text = towns[3]
    assert "Median alignment: each map times median(truth) / median(prediction); vggt does not know the scale" in text
    rows = rows_of(text, "vggt does not know the scale. All valid pixels</caption>")
    assert list(rows) == ["constant", "median_plane", "plane_sweep", "vggt"]
    assert all("oracle: reads the truth" in rows[name] for name in ("constant", "median_plane"))
    assert 'class="best"' not in rows["constant"]
    plain = rows_of(text, "<caption>No alignment, all valid pixels")
    assert list(plain) == ["constant", "median_plane", "plane_sweep"] and "oracle" not in plain["constant"]
    assert "towns, abs_rel_median" in text


def test_cameras_stand_beside_those_of_the_trivial_methods(towns):
    text = towns[3]
    rows = rows_of(text[text.index('id="cameras"') :], "predicted cameras against the true ones")
    assert list(rows) == ["identity", "mean_pose", "vggt"]
    assert "180.00" in rows["identity"] and 'class="best"' in rows["vggt"]
    card = text[text.index("vggt's cameras in towns") :]
    assert "Both angles below every other method's." in card[:400]
    glance = rows_of(text, "abs_rel ↓ at a glance")
    assert "identity" not in glance and "median-aligned" in text


def test_a_sample_s_pictures_show_both_views_and_its_cameras(towns):
    root, _, _, text = towns
    section = text[text.index('id="samples"') : text.index('id="training"')]
    assert section.count("<figcaption>source image</figcaption>") == 6
    assert section.count("rotation, °") == 3
    assert not (root / "scores/plane_sweep/towns_cameras.csv").exists()


def test_gates_are_told_with_criteria_steps_curve_and_picture(towns):
    root, _, made, text = towns
    section = text[text.index('id="overfit"') : text.index('id="results"')]
    assert "vggt does not" not in section and "plane_sweep does not fit its sample." in section
    assert "Frozen: depth_head stays as it was drawn." in section
    assert "&lt;depth&gt;: 0, 1.5" in section and "<depth>" not in section
    assert section.count("own thresholds, for comparison") == 1
    steps = re.findall(r'<th scope="row"><span[^>]*>(\d+)</span>', section)
    assert steps == ["1", "10", "50", "100", "300"] * 2
    assert section.count('alt="the sample of') == 2 and "after step 300" in section
    assert section.index("plane_sweep:") < section.index("vggt:")
    expected = {"finite": 0.0, "loss_depth_regression": 0.00412, "abs_rel": 0.0123, "passed": 1.0}
    assert made["overfit"]["vggt"] == expected and made["overfit"]["plane_sweep"]["passed"] == 0
    assert list(made) == ["towns", "overfit"]
    assert list(json.loads((root / "reports/headline.json").read_text())) == ["towns"]


def test_markdown_has_the_cameras_and_the_gates(towns):
    text = (towns[0] / "reports/report.md").read_text()
    assert "- **vggt's cameras in towns**" in text and "- **plane_sweep on one sample: FAILED.**" in text
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) >= 9
    for table in tables:
        assert len(table.splitlines()) > 2, table
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_terminal_shows_aligned_depth_cameras_and_gates(towns, capsys):
    print_results(towns[2], report=Path("reports/report.html"), oracles={"median_plane"})
    text = capsys.readouterr().out
    assert "abs_rel_median" in text and "rotation °" in text and "constant (oracle)" in text
    assert "one sample: vggt passed" in text and "one sample: plane_sweep FAILED" in text


def test_a_suite_may_not_have_the_gates_name_and_needs_an_answer(towns):
    root, configs, _, _ = towns
    with pytest.raises(ConfigError, match=r"suites.overfit: metrics.json keeps this name"):
        build(root, {"overfit": configs["towns"]}, methods=TOWN_METHODS)
    with pytest.raises(DataError, match=r"suites.rooms: no method answers this suite"):
        build(root, {"rooms": configs["towns"]}, methods=TOWN_METHODS)
