"""`plumbline extract-pair`: the data set of one pair, its params file, what it prints, and what it refuses without a trace."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from plumbline import runs
from plumbline.camera_metrics import rotation_angle
from plumbline.cli import app
from plumbline.config import load_params
from plumbline.data import aerialmd
from plumbline.data.aerialmd_index import read_index
from plumbline.data.aerialmd_pair import IndexedPair
from plumbline.data.checks import check_folder
from plumbline.data.exr import read_exr
from plumbline.data.manifest import list_files
from plumbline.data.pair import PairConfig, extract_pair, facts
from plumbline.data.parse import parse_dataset
from plumbline.data.synthetic import Config, generate
from plumbline.errors import ConfigError, DataError, PlumblineError
from plumbline.files import read_json, read_png8, write_png
from plumbline.single_pair import (
    Extraction,
    Request,
    check_params,
    dataset_values,
    extract,
    params_text,
    report_lines,
    sparkline,
)

ROOT = Path(__file__).resolve().parents[1]
SIDE = 96
MADE = {"layout": "aerialmd", "scenes": ["0001", "0022"], "views": 5, "image_size": [SIDE, 128], "seed": 1}
PAIR = IndexedPair(Path("train.npz"), 0, "0001", ("a", "b"), 1.0)
RECORD = [("scene_id", int), ("im1_id", int), ("im2_id", int), ("score", float)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "aerial"
    generate(Config.model_validate(MADE), out, workers=1)
    return out


def request(made: Path, out: Path, **changes: Any) -> Request:
    return Request(**{"root": made, "index": Path("train.npz"), "out": out, **changes})


def kept(folder: Path) -> list[str]:
    """All files below a folder, unfinished ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- what is written ----------------------------------------------------------------------------------------------


def test_the_folder_has_the_pair_and_nothing_else(made: Path, tmp_path: Path) -> None:
    done = extract(request(made, tmp_path / "pair", row=2))
    source = read_index(made / "train.npz", rows=[2])
    first, second, score = source.pairs_of(done.pair.scene)[0]
    assert done.pair.tags == (first, second)
    stems = [f"{done.pair.scene}/{tag}" for tag in (first, second)]
    copied = [f"{stem}{kind}" for stem in stems for kind in (".jpg", ".exr", ".npz")]
    copied += [f"seg/{stem}.png" for stem in stems]
    assert kept(tmp_path) == sorted(f"pair/{name}" for name in [*copied, "train.npz", "val.npz", "pair.json"])
    assert all((tmp_path / "pair" / name).read_bytes() == (made / name).read_bytes() for name in copied)
    for name in ("train.npz", "val.npz"):
        with np.load(tmp_path / "pair" / name, allow_pickle=False) as index:
            assert index["scenes"].tolist() == [done.pair.scene] and index["images"].tolist() == [first, second]
            assert index["images_scene_name"].tolist() == [done.pair.scene] * 2
            assert index["pairs"].tolist() == [(0, 0, 1, score)] and index["pairs"]["scene_id"].tolist() == [0]
    about = read_json(tmp_path / "pair/pair.json")
    assert (about["index"], about["pair"], about["images"]) == ("train.npz", 2, [first, second])
    assert sorted(about["files"]) == sorted([*copied, "train.npz", "val.npz"])
    assert done.files == 11 and done.size == sum(path.stat().st_size for path in (tmp_path / "pair").rglob("*.*"))


def test_the_check_that_is_named_judges_views_far_apart(made: Path, tmp_path: Path) -> None:
    done = extract(request(made, tmp_path / "pair", row=2))
    poses = [np.load(tmp_path / f"pair/{done.pair.scene}/{tag}.npz")["cam2world"] for tag in done.pair.tags]
    assert rotation_angle((poses[0].T @ poses[1])[None, :3, :3])[0] > 45
    (found,) = check_folder("aerialmd", tmp_path / "pair", options={"cleanup": "measured"}).scenes
    assert found.verdict == "ok" and found.as_read is not None and found.as_read.error < 0.01


def by_hand(made: Path, scene: str, tag: str) -> np.ndarray:
    """Depth as the single-pair recipe has it: no sky, the centred square, the outer 2 % of the measured values away."""
    depth = read_exr(made / scene / f"{tag}.exr")
    depth[(read_png8(made / "seg" / scene / f"{tag}.png") == 2) | (depth > 2000)] = 0
    start = depth.shape[1] // 2 - SIDE // 2
    depth = depth[:, start : start + SIDE]
    low, high = np.percentile(depth[depth > 0], (2, 98))
    return depth[(depth >= low) & (depth <= high)]


def test_what_reads_back_is_what_the_recipe_makes_of_the_files(made: Path, tmp_path: Path) -> None:
    done = extract(request(made, tmp_path / "pair", size=(SIDE, SIDE)))
    assert done.stored == ((SIDE, 128), (SIDE, 128))
    assert done.found.images == (1, 2, 3, SIDE, SIDE) and done.found.depths == (1, 2, SIDE, SIDE)
    assert done.found.length == 1
    for tag, view, values in zip(done.pair.tags, done.found.views, done.found.measured, strict=True):
        expected = by_hand(made, done.pair.scene, tag)
        assert (view.name, view.measured, view.pixels) == (tag, expected.size, SIDE * SIDE)
        assert (view.nearest, view.farthest) == (expected.min(), expected.max())
        np.testing.assert_array_equal(values, expected)


def test_the_same_pair_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    for _ in range(2):
        extract(request(made, tmp_path / "pair", params=True, overwrite=True), project=ROOT)
        (tmp_path / "pair").rename(tmp_path / f"made{len(list(tmp_path.iterdir()))}")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["made1", "made2"]
    names = kept(tmp_path / "made1")
    assert names == kept(tmp_path / "made2") and len(names) == 12
    assert all((tmp_path / "made1" / name).read_bytes() == (tmp_path / "made2" / name).read_bytes() for name in names)


def reindexed(made: Path, path: Path, rows: list[tuple[int, int, int, float]], **changes: Any) -> Path:
    """The made set's index with other pairs."""
    with np.load(made / "train.npz", allow_pickle=True) as stored:
        arrays = {key: stored[key] for key in ("scenes", "images", "images_scene_name")}
    np.savez(path, allow_pickle=True, **{**arrays, "pairs": np.array(rows, RECORD), **changes})
    return path


def test_the_first_image_of_the_pair_is_the_reference_whatever_its_number(made: Path, tmp_path: Path) -> None:
    index = reindexed(made, tmp_path / "turned.npz", [(0, 4, 1, 0.5)])
    done = extract(request(made, tmp_path / "pair", index=index))
    tags = read_index(index).tags
    assert done.pair.tags == (tags[4], tags[1]) and [view.name for view in done.found.views] == [tags[4], tags[1]]


def test_label_maps_may_lie_elsewhere_or_nowhere(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(made, root, ignore=shutil.ignore_patterns("seg"))
    masks = tmp_path / "masks"
    for tag in read_index(made / "train.npz").tags_of("0001"):
        write_png(
            masks / "0001" / f"{tag}.png", np.repeat([[2], [1]], SIDE // 2, axis=0).repeat(128, 1).astype(np.uint8)
        )
    given = extract(request(root, tmp_path / "given", masks=masks))
    bare = extract(request(root, tmp_path / "bare"))
    assert not (tmp_path / "bare/seg").exists() and (tmp_path / "given/seg").is_dir()
    assert sum(view.measured for view in bare.found.views) > sum(view.measured for view in given.found.views)
    assert any("No label maps: the sky keeps what depth it has" in line for line in report_lines(bare))
    assert not any("No label maps" in line for line in report_lines(given))
    shutil.copytree(masks, tmp_path / "root_segmentation")
    assert extract(request(root, tmp_path / "beside")).found.views == given.found.views


# --- the params file ----------------------------------------------------------------------------------------------


def run_params(made: Path, out: Path, **changes: Any) -> tuple[Extraction, dict[str, Any]]:
    """An extraction with a params file, and the params that `plumbline run` makes of it."""
    done = extract(request(made, out, params=True, **changes), project=ROOT)
    assert done.params is not None
    return done, runs.merged(load_params(ROOT / "params.yaml"), runs.expanded(load_params(done.params)))


def test_the_params_file_gates_trains_and_scores_vggt_on_the_pair(made: Path, tmp_path: Path) -> None:
    base = load_params(ROOT / "params.yaml")
    done, params = run_params(made, tmp_path / "pair", depth_range=(2.0, 300.0))
    assert check_params(params) == done.config and done.config.depth_range == (2.0, 300.0)
    assert list(params["datasets"]) == params["graph"]["datasets"] == ["aerialmd"]
    assert set(params["systems"]) == {"constant", "plane_sweep", "identity", "vggt"}
    assert [list(params[name]) for name in ("train", "pair", "overfit")] == [["vggt"]] * 3
    assert params["overfit"]["vggt"]["criteria"] == base["overfit"]["vggt"]["criteria"]
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    graph = runs.with_datasets(graph, base["graph"]["datasets"], ["aerialmd"])
    graph = runs.with_training(runs.with_methods(graph, list(params["systems"])), params)
    (item,) = graph["stages"]["train"]["foreach"].values()
    assert set(item["datasets"].values()) == {"aerialmd"} and set(item["suites"].values()) == {"pair_train", "pair_val"}
    assert "data/scenes/aerialmd" in graph["stages"]["predict"]["do"]["deps"]
    gone = {"deltaz", "deltas", "median_plane", "mean_pose"}
    assert not [path for path in graph["stages"]["report"]["deps"] if gone & set(path.split("/"))]
    keys = [key for stage in graph["stages"].values() for key in stage.get("do", stage).get("params", [])]
    assert not [key for key in keys if key.startswith(("systems.deltaz", "train.deltaz"))]


def test_the_network_sees_the_pair_as_it_is_in_patches_that_tile_it(made: Path, tmp_path: Path) -> None:
    _, params = run_params(made, tmp_path / "pair")
    own = params["systems"]["vggt"]
    assert all(size % own["patch"] == 0 for size in params["datasets"]["aerialmd"]["image_size"])
    assert set(own["augment"].values()) == {0.0} and (own["preset"], own["patch"]) == ("tiny", 7)
    base = load_params(ROOT / "params.yaml")
    large = runs.merged(base, yaml.safe_load(params_text(PAIR, {"image_size": [476, 518]}, base, tmp_path)))
    assert large["systems"]["vggt"]["patch"] == 28
    assert "threads" not in large["overfit"]["vggt"] and params["overfit"]["vggt"]["threads"] == 1
    base["systems"]["vggt"] = {"preset": "full"}
    assert (
        "patch" not in yaml.safe_load(params_text(PAIR, {"image_size": [476, 518]}, base, tmp_path))["systems"]["vggt"]
    )


def test_the_params_file_reads_the_same_data_and_is_none_of_them(made: Path, tmp_path: Path) -> None:
    done, params = run_params(made, tmp_path / "pair")
    source = params["datasets"]["aerialmd"]["source"]
    assert source["path"] == str(tmp_path / "pair") and "params.yaml" not in str(source["patterns"])
    listed = list_files(tmp_path / "pair", source["patterns"])
    assert listed == [name for name in kept(tmp_path / "pair") if name not in {"params.yaml", "pair.json"}]
    scenes, scratch = tmp_path / "scenes/aerialmd", tmp_path / "scratch"
    parse_dataset("aerialmd", done.config, raw=tmp_path / "pair", identity="a", out=scenes, scratch=scratch)
    sample = PairConfig.model_validate({"dataset": "aerialmd", "sources": {"kind": "pairs", "count": 1}, "context": 2})
    found = extract_pair(sample, datasets={"aerialmd": done.config}, scenes=tmp_path / "scenes", out=tmp_path / "vggt")
    assert tuple(facts(found)) == done.found.views and found.scene.pairs == (
        ((1, done.pair.score),),
        ((0, done.pair.score),),
    )


def test_another_pair_in_the_same_folder_is_other_data_to_dvc(made: Path, tmp_path: Path) -> None:
    sources = []
    for row in (0, 1):
        _, params = run_params(made, tmp_path / "pair", row=row, overwrite=True)
        sources.append(params["datasets"]["aerialmd"]["source"])
    assert sources[0] != sources[1] and sources[0]["path"] == sources[1]["path"]


def test_the_gate_s_sample_is_moved_to_the_pair(made: Path, tmp_path: Path) -> None:
    base = load_params(ROOT / "params.yaml")
    triplet = {"dataset": "sun3d", "sources": {"kind": "gap", "gap": 5}, "context": 3}
    base["pair"] = {"deltas": triplet, "vggt": {**triplet, "predict_views": 3}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(base))
    done = extract(request(made, tmp_path / "pair", params=True), project=tmp_path)
    assert done.params is not None
    (moved,) = runs.merged(base, load_params(done.params))["pair"].values()
    found = PairConfig.model_validate(moved)
    assert (found.dataset, found.context, found.predict_views) == ("aerialmd", 2, 2) and "gap" not in str(moved)


def test_without_the_project_there_is_no_params_file_and_no_folder(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params\.yaml: no such file\. Run from the project's root"):
        extract(request(made, tmp_path / "pair", params=True), project=tmp_path)
    assert not kept(tmp_path)


def test_sizes_are_those_of_the_recipe_where_the_images_allow_it() -> None:
    pair, plain = PAIR, Request(Path("r"), Path("i"), Path("o"))
    values = dataset_values(pair, plain, [(600, 800), (1080, 1920)], path=Path("o"), masks=True)
    assert values["image_size"] == [476, 518] and values["options"]["crop"] == 518
    small = dataset_values(pair, plain, [(600, 800), (240, 320)], path=Path("o"), masks=True)
    assert small["image_size"] == [210, 238]
    large = Request(Path("r"), Path("i"), Path("o"), size=(300, 200))
    with pytest.raises(
        ConfigError, match=r"--size 300 200: the images are cut to squares of 240 pixels.*at most 240 240"
    ):
        dataset_values(pair, large, [(600, 800), (240, 320)], path=Path("o"), masks=True)


# --- what is printed ----------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["extract-pair", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_prints_what_the_recipe_prints(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "pair"
    options = [
        "--source-root",
        made,
        "--source-seg-root",
        made / "seg",
        "--source-npz",
        "train.npz",
        "--output-root",
        out,
    ]
    text = invoke(*options, "--pair-index", 1, "--create-config", "--size", 70, 84)
    scene = read_json(out / "pair.json")["scene"]
    assert text.startswith(f"Pair 1 of train.npz: scene {scene}, score ")
    for line in (
        f"✓ configuration loaded  {out}/params.yaml",
        "✓ data set built        length 1, 70x84 pixels",
        "✓ loader built          a batch of 1",
        f"    seq_name  aerial_megadepth_{scene}_0",
        "    images    [1, 2, 3, 70, 84]",
        "    depths    [1, 2, 70, 84]",
        f"plumbline run --params {out}/params.yaml --name single_pair",
    ):
        assert line in text
    counts = re.findall(r"image (\d)   (\d+)/5880 valid \(([\d.]+)%\), depth \[([\d.]+), ([\d.]+)\] m", text)
    assert [count[0] for count in counts] == ["0", "1"]
    assert all(0 < float(low) < float(high) for *_, low, high in counts)
    again = invoke(*options, "--overwrite")
    assert "crop 518, clean-up measured; --create-config writes it" in again and not (out / "params.yaml").exists()


def test_depth_outside_the_range_that_methods_look_in_is_remarked(made: Path, tmp_path: Path) -> None:
    done = extract(request(made, tmp_path / "pair", depth_range=(1.0, 12.0)))
    share = np.mean(np.concatenate(done.found.measured) > 12)
    assert 0 < share < 1
    assert any(f"{share:.1%} of the depth lies outside 1 to 12 m" in line for line in report_lines(done))


def test_sparklines_show_where_depth_lies() -> None:
    line = sparkline(np.array([1, 1, 1, 1, 100], np.float32), (1.0, 100.0))
    assert len(line) == 32 and line[0] == "█" and line[-1] == "▂" and set(line[1:-1]) == {" "}
    assert sparkline(np.empty(0, np.float32), (1.0, 100.0)).strip() == ""
    assert sparkline(np.full(3, 5, np.float32), (5.0, 5.0)).strip() == "█"


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the made set that may be broken; its first pair is of images 1 and 2 of scene 0001."""
    root = tmp_path / "root"
    shutil.copytree(made, root)
    places = np.array(["0001"] * 5 + ["0022"])
    rows = [(0, 1, 2, 1.0), (0, 3, 5, 1.0), (0, 3, 3, 1.0)]
    reindexed(made, root / "train.npz", rows, images_scene_name=places)
    return root


def _lost(root: Path, tags: list[str]) -> None:
    for name in (f"0001/{tags[1]}.exr", f"0001/{tags[2]}.npz", f"seg/0001/{tags[2]}.png"):
        (root / name).unlink()


def _cut(root: Path, tags: list[str]) -> None:
    path = root / "0001" / f"{tags[2]}.exr"
    path.write_bytes(path.read_bytes()[:200])


def _hostile(root: Path, tags: list[str]) -> None:
    reindexed(root, root / "train.npz", [(0, 1, 2, 1.0)], images=np.array(["", "../../x", *tags[2:]], object))


@pytest.mark.parametrize(
    ("breaking", "changes", "words"),
    [
        (None, {"row": 3}, r"train\.npz: pair 3 was asked for, but it has 3 pairs, from 0"),
        (None, {"row": 1}, r"first pair 1: .* of scene 0001 and .* of scene 0022\. .*Take another pair\."),
        (None, {"row": 2}, r"pair 2 is image .* with itself"),
        (None, {"index": Path("test.npz")}, r"test\.npz: no such index, neither here nor in .*root"),
        (None, {"masks": Path("labels")}, "labels: no such folder; expected label maps"),
        (
            _lost,
            {},
            r"needs 8 files, of which 3 are not there: \S+0001/\S+\.exr, \S+\.npz, \S+seg/0001/\S+\.png\. Fetch",
        ),
        (_cut, {}, r"0001/\S+\.exr: not a readable EXR file"),
        (_hostile, {}, r"pair 0: '0001/\.\./\.\./x' is not a relative path that stays inside its folder"),
        (None, {"depth_range": (5.0, 1.0)}, r"--depth-range 5 1: expected the nearest and the farthest"),
    ],
    ids=["row", "across", "itself", "index", "masks", "lost", "cut", "hostile", "range"],
)
def test_what_cannot_be_extracted_is_named_and_leaves_no_trace(
    copy: Path,
    tmp_path: Path,
    breaking: Callable[[Path, list[str]], None] | None,
    changes: dict[str, Any],
    words: str,
) -> None:
    if breaking is not None:
        breaking(copy, [str(tag) for tag in read_index(copy / "train.npz", rows=[0]).tags])
    with pytest.raises(PlumblineError, match=words):
        extract(request(copy, tmp_path / "out/pair", **changes))
    assert not kept(tmp_path / "out")


def test_an_existing_folder_is_replaced_only_when_told_and_only_if_it_is_an_extraction(
    copy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out/pair"
    first = extract(request(copy, out))
    with pytest.raises(ConfigError, match=r"pair: holds a pair already\. Give another folder, or --overwrite"):
        extract(request(copy, out))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds files that no extraction wrote: notes\.txt"):
        extract(request(copy, out, overwrite=True))
    (out / "notes.txt").unlink()
    with pytest.raises(ConfigError, match="root: is there, and no extraction wrote it"):
        extract(request(copy, copy, overwrite=True))
    before = {name: (out / name).read_bytes() for name in kept(out)}
    _cut(copy, list(first.pair.tags[:1]) * 2 + [first.pair.tags[1]])
    with pytest.raises(DataError, match="not a readable EXR file"):
        extract(request(copy, out, overwrite=True))
    assert {name: (out / name).read_bytes() for name in kept(tmp_path / "out/pair")} == before
    assert [path.name for path in out.parent.iterdir()] == ["pair"]


def test_an_index_that_reads_back_otherwise_is_noticed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = aerialmd.pairs

    def swapped(raw: Path, scene: str, options: aerialmd.Options) -> Any:
        return {} if options.index == ("val.npz",) else pairs(raw, scene, options)

    monkeypatch.setattr(aerialmd, "pairs", swapped)
    with pytest.raises(DataError, match=r"val\.npz: reads back as \{\}"):
        extract(request(made, tmp_path / "pair"))
    assert not kept(tmp_path)
