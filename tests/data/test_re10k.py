"""Chunk files: what was written reads back, the half pixel, every rule and broken file by its own words, views without depth."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from plumbline.config import ByIndex, DatasetConfig, SuiteConfig
from plumbline.data import aerialmd, dtu, re10k, re10k_chunks, rgbd, sun3d
from plumbline.data.canonical import list_scenes, read_scene, write_scene
from plumbline.data.checks import CheckConfig, check_folder
from plumbline.data.checks.dataset import check_dataset
from plumbline.data.checks.raw import FORMATS
from plumbline.data.geometry import invert
from plumbline.data.pair import PairConfig, extract_pair
from plumbline.data.parse import parse_dataset
from plumbline.data.samples import build, gather, open_split
from plumbline.data.synthetic import Config, generate, paths, write_re10k
from plumbline.data.synthetic import _clip_K as made_K
from plumbline.data.synthetic.raycast import prepare, render
from plumbline.data.synthetic.scenes import room
from plumbline.data.synthetic.sensor import of_scene
from plumbline.data.synthetic.world import Camera, look_at
from plumbline.errors import ConfigError, DataError
from plumbline.files import write_json
from plumbline.records import Sample
from plumbline.systems.records import to_batch

ROOT = Path(__file__).resolve().parents[2]
SIZE = (36, 64)
INDEX = "evaluation_index.json"
MADE = {
    "layout": "re10k", "scenes": ["train/a0", "test/b0", "test/b1"], "views": 12, "image_size": [36, 64], "seed": 5,
    "chunk": 2, "jpeg_quality": 97,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "raw"
    generate(Config.model_validate(MADE), out, workers=1)
    return out


def images(count: int = 5, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 255, (count, size[0] // 4, size[1] // 4, 3))
    return list(np.kron(coarse, np.ones((1, 4, 4, 1))).astype(np.uint8))


def place(index: int) -> np.ndarray:
    return look_at(np.array([0.1 * index, -0.2, -2.0]), np.array([0.02 * index, 0.1, 0.0]), roll=3.0)


def record(key: str = "k0", *, count: int = 5, kind: str = ".png", **changes: Any) -> dict[str, Any]:
    """A scene as it is stored, written without the project's writer."""
    rows = []
    for i in range(count):
        rows.append([0.6, 1.1, 0.52, 0.47, 0, 0, *np.linalg.inv(place(i))[:3].ravel()])
    encoded = [cv2.imencode(kind, image[..., ::-1])[1].reshape(-1) for image in images(count)]
    return {
        "key": key,
        "url": "https://example.org/film",
        "timestamps": torch.arange(count, dtype=torch.int64) * 33_366,
        "cameras": torch.tensor(np.array(rows), dtype=torch.float32),
        "images": [torch.from_numpy(one) for one in encoded],
        **changes,
    }


def write_folder(folder: Path, chunks: dict[str, list[dict[str, Any]]], *, index: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in chunks.items():
        torch.save(records, folder / name)
    listed = {one["key"]: name for name, records in chunks.items() for one in records}
    write_json(folder / "index.json", listed if index is None else index)
    return folder.parent


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_folder(tmp_path / "raw/train", {"000000.torch": [record("k0"), record("k1")], "000001.torch": [record("k2")]})
    return write_folder(tmp_path / "raw/test", {"000000.torch": [record("t0")]})


def config(**changes: Any) -> DatasetConfig:
    values = {
        "format": "re10k", "source": {"kind": "folder", "path": "x"}, "image_size": SIZE, "depth_range": [0.5, 100.0],
        "split": "folders", "storage": "jpeg",
    }  # fmt: skip
    return DatasetConfig.model_validate({**values, **changes})


def parsed(raw: Path, place: Path, **changes: Any) -> Path:
    parse_dataset("film", config(**changes), raw=raw, identity="a", out=place / "film", scratch=place / "scratch")
    return place / "film"


# --- what is read -------------------------------------------------------------------------------------------------


def test_frames_read_as_they_were_stored(raw: Path) -> None:
    options = re10k.Options()
    assert re10k.scenes(raw, options) == ["train/k0", "train/k1", "train/k2", "test/t0"]
    views = list(re10k.views(raw, "train/k1", options))
    assert [view.name for view in views[:2]] == ["00000-000000000000", "00001-000000033366"]
    assert [view.frame for view in views] == [(i, 5) for i in range(5)]
    for i, (view, image) in enumerate(zip(views, images(), strict=True)):
        np.testing.assert_array_equal(view.image, image)
        np.testing.assert_allclose(view.world_T_cam, place(i), atol=1e-6)
        assert view.depth is None and view.mask is None
    assert re10k.pairs(raw, "train/k1", options) is None


def test_normalised_intrinsics_put_the_corner_of_the_first_pixel_at_0() -> None:
    """A pixel's centre is at ((column + .5) / width, (row + .5) / height): a centred principal point is between two pixels."""
    K = re10k.in_pixels(np.array([0.6, 1.1, 0.5, 0.5]), (4, 6), re10k.Options())
    np.testing.assert_allclose(K, [[3.6, 0, 2.5], [0, 4.4, 1.5], [0, 0, 1]])
    row, column = 3, 1
    ray = np.linalg.inv(K) @ [column, row, 1]
    normalised = np.diag([0.6, 1.1, 1]) + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    np.testing.assert_allclose(normalised @ ray, [(column + 0.5) / 6, (row + 0.5) / 4, 1])
    whole = re10k.in_pixels(np.array([0.6, 1.1, 0.5, 0.5]), (4, 6), re10k.Options(pixel_centres="whole"))
    np.testing.assert_allclose(whole - K, [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def test_what_is_made_reads_back_as_the_cameras_and_pictures_it_was_made_from(made: Path) -> None:
    assert sorted(path.name for path in made.rglob("*") if path.is_file()) == sorted(
        ["000000.torch", "index.json", "000000.torch", "index.json", INDEX]
    )
    name = "test/b0"
    rng = np.random.default_rng([MADE["seed"], crc32(name.encode())])
    world, size = room(rng)
    of_scene(Config.model_validate(MADE).sensor, rng)
    stage, path = prepare(world), paths.walk(rng, size)
    K = made_K(SIZE, rng)
    views = list(re10k.views(made, name, re10k.Options()))
    assert len(views) == 12
    for view, seconds in zip(views, np.arange(12) * 0.1, strict=True):
        np.testing.assert_allclose(view.world_T_cam, path(float(seconds)), atol=3e-6)
        np.testing.assert_allclose(view.K, K, atol=1e-4)
    # The picture itself, seen again from the camera that was read: half a pixel beside it fits worse.
    view = views[7]
    assert view.world_T_cam is not None
    right = _likeness(view.image, render(stage, Camera(view.K, view.world_T_cam, SIZE))[0])
    for shift in ((0.5, 0.0), (0.0, 0.5), (-0.5, -0.5)):
        moved = view.K.copy()
        moved[:2, 2] += shift
        assert _likeness(view.image, render(stage, Camera(moved, view.world_T_cam, SIZE))[0]) < right
    assert right > 0.97


def _likeness(image: np.ndarray, light: np.ndarray) -> float:
    """Correlation of a picture with the rendering of linear light, the lens's blur included."""
    seen = cv2.GaussianBlur(np.clip(light, 0, 1), (0, 0), 0.55) ** (1 / 2.2)
    return float(np.corrcoef(image.ravel(), seen.ravel())[0, 1])


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    few = Config.model_validate({**MADE, "scenes": ["test/b"], "views": 3})
    for name in ("first", "second"):
        generate(few, tmp_path / name, workers=1)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert [str(path) for path in files] == [INDEX, "test/000000.torch", "test/index.json"]
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()


def test_names_that_are_no_folder_and_key_are_refused() -> None:
    with pytest.raises(ValidationError, match="expected train/<key> and test/<key>"):
        Config.model_validate({**MADE, "scenes": ["a0"]})


def test_a_folder_of_chunks_alone_is_read(raw: Path) -> None:
    options = re10k.Options()
    assert re10k.scenes(raw / "train", options) == ["k0", "k1", "k2"]
    assert len(list(re10k.views(raw / "train", "k2", options))) == 5
    for path in raw.rglob("index.json"):
        path.unlink()
    with pytest.raises(DataError, match=r"train/index.json: no such file; .* set options.index: chunks"):
        re10k.scenes(raw, options)
    assert re10k.scenes(raw, re10k.Options(index="chunks")) == ["train/k0", "train/k1", "train/k2", "test/t0"]


def test_strides_selections_and_the_other_direction(raw: Path) -> None:
    options = re10k.Options(stride=2, only_scenes=("train/k2",))
    assert re10k.scenes(raw, options) == ["train/k2"]
    views = list(re10k.views(raw, "train/k2", options, select=[2, 0]))
    assert [view.frame for view in views] == [(4, 5), (0, 5)]
    assert len(re10k.frames(raw, "train/k2", options)) == 3
    ((label, other),) = re10k.alternatives(raw, "train/k2", re10k.Options())
    assert label == "poses read as camera-to-world"
    view = next(re10k.views(raw, "train/k2", other))
    np.testing.assert_allclose(view.world_T_cam, invert(place(0)), atol=1e-6)
    assert re10k.alternatives(raw, "train/k2", other)[0][0] == "poses read as world-to-camera"


def test_old_files_that_are_no_archives_are_read_too(tmp_path: Path) -> None:
    raw = write_folder(tmp_path / "raw/test", {"000000.torch": [record("t0")]})
    torch.save([record("t0")], raw / "test/000000.torch", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(next(re10k.views(raw, "test/t0", re10k.Options())).image, images()[0])


@pytest.mark.parametrize(
    "module", [dtu, sun3d, rgbd, aerialmd, re10k], ids=lambda module: module.__name__.split(".")[-1]
)
def test_every_reader_has_the_interface(module: Any) -> None:
    assert module.__name__.rpartition(".")[2] in FORMATS
    assert all(callable(getattr(module, name)) for name in ("scenes", "views", "pairs", "alternatives", "Options"))


def test_only_chunks_need_torch() -> None:
    """The reader is imported by name with others; listing scenes from index.json, too, needs none."""
    code = (
        "import sys; from plumbline.data import dtu, parse, re10k, synthetic, view_sampling; from pathlib import Path\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


# --- rules and broken files ---------------------------------------------------------------------------------------


def cameras(change: Callable[[np.ndarray], None]) -> torch.Tensor:
    rows = record()["cameras"].numpy().copy()
    change(rows)
    return torch.from_numpy(rows)


def wide(rows: np.ndarray) -> None:
    rows[3, 0] = 0.4


def tall(rows: np.ndarray) -> None:
    rows[:, 1] = 0.41


def lost(rows: np.ndarray) -> None:
    rows[2, 9] = np.nan


def scaled(rows: np.ndarray) -> None:
    rows[1, 6:9] *= 1.2


def left_handed(rows: np.ndarray) -> None:
    rows[:, 6:10] *= -1


def distorted(rows: np.ndarray) -> None:
    rows[4, 4] = 0.02


def negative(rows: np.ndarray) -> None:
    rows[0, 1] = -1.1


def distant(rows: np.ndarray) -> None:
    rows[4, 9] = 2000


RULES = [
    (wide, {}, r"a camera sees 10\d\.\d degrees; options.max_fov allows 100"),
    (tall, {}, r"a camera sees 101\.\d degrees"),
    (lost, {}, "camera 2 holds NaN or infinity; 1 of 5 do"),
    (scaled, {}, r"camera 1 has no rotation \(R Rᵀ is off by 0\.4\d*, determinant"),
    (left_handed, {}, r"determinant -1\); 5 of 5 are so"),
    (distorted, {}, "fifth and sixth number of a camera are 0.02, 0; expected 0"),
    (negative, {}, "a focal length is -1.1; expected more than 0"),
    (distant, {"max_translation": 1000}, "translation is 2000; options.max_translation allows 1000"),
]


@pytest.mark.parametrize(("change", "options", "message"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_scene_that_breaks_a_rule_is_an_error_or_left_out_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, options: dict[str, Any], message: str
) -> None:
    records = [record("good"), record("odd", cameras=cameras(change)), record("well")]
    raw = write_folder(tmp_path / "raw/test", {"000000.torch": records})
    given = re10k.Options(**options)
    assert re10k.scenes(raw, given) == ["test/good", "test/odd", "test/well"]
    with pytest.raises(
        DataError, match=rf"test/odd: .*{message}.*quarantine \(name: reason\), or set options.broken_scenes"
    ):
        list(re10k.views(raw, "test/odd", given))
    assert re10k.scenes(raw, given.model_copy(update={"broken_scenes": "drop"})) == ["test/good", "test/well"]
    assert "1 of 3 scenes left out" in caplog.text and "test/odd: " in caplog.text
    assert len(list(re10k.views(raw, "test/good", given))) == 5


def test_rules_can_be_off_and_shapes_asked_for(raw: Path, tmp_path: Path) -> None:
    write_folder(raw / "train", {"000001.torch": [record("k2", cameras=cameras(wide))]}, index={"k2": "000001.torch"})
    assert len(list(re10k.views(raw, "train/k2", re10k.Options(max_fov=None)))) == 5
    assert len(list(re10k.views(raw, "test/t0", re10k.Options(image_shape=SIZE)))) == 5
    with pytest.raises(
        DataError, match=r"images are \(36, 64\) \(height, width\); options.image_shape expects \(360, 640\)"
    ):
        list(re10k.views(raw, "test/t0", re10k.Options(image_shape=(360, 640))))
    with pytest.raises(DataError, match=r"1 of 1 scenes are broken; expected few:\n  raw/test/t0: images are"):
        re10k.scenes(raw / "..", re10k.Options(folders=("raw/test",), image_shape=(360, 640), broken_scenes="drop"))


def short_cameras(item: dict[str, Any]) -> None:
    item["cameras"] = item["cameras"][:, :16]


def fewer_images(item: dict[str, Any]) -> None:
    item["images"] = item["images"][:-1]


def decoded_images(item: dict[str, Any]) -> None:
    item["images"] = [torch.zeros(4, 4, 3, dtype=torch.uint8)] * 5


def no_cameras(item: dict[str, Any]) -> None:
    del item["cameras"]


def no_frames(item: dict[str, Any]) -> None:
    item.update(images=[], cameras=torch.zeros(0, 18), timestamps=torch.zeros(0, dtype=torch.int64))


def another_size(item: dict[str, Any]) -> None:
    item["images"][3] = torch.from_numpy(cv2.imencode(".png", np.zeros((18, 64, 3), np.uint8))[1].reshape(-1))


def no_image(item: dict[str, Any]) -> None:
    item["images"][1] = torch.zeros(50, dtype=torch.uint8)


def empty_image(item: dict[str, Any]) -> None:
    item["images"][1] = torch.zeros(0, dtype=torch.uint8)


DEFECTS = [
    (short_cameras, r"cameras is \(5, 16\); expected \(n, 18\): fx, fy, cx, cy by width and height"),
    (fewer_images, "4 images, 5 cameras, 5 timestamps; expected as many"),
    (decoded_images, r"image 0 is uint8 \(4, 4, 3\); expected a row of uint8, an encoded file"),
    (no_cameras, "its chunk has no cameras for it, only key, url"),
    (no_frames, "has no frames"),
    (another_size, r"image 3 is \(18, 64\) \(height, width\), the first \(36, 64\)"),
    (no_image, "image 1 cannot be decoded. Fetch its chunk again, or set options.undecodable: drop"),
    (empty_image, "image 1 cannot be decoded"),
]


@pytest.mark.parametrize(("break_it", "message"), DEFECTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_scene_has_its_own_words(tmp_path: Path, break_it: Any, message: str) -> None:
    item = record("t0")
    break_it(item)
    raw = write_folder(tmp_path / "raw/test", {"000000.torch": [item]})
    with pytest.raises(DataError, match=f"^test/t0: {message}"):
        list(re10k.views(raw, "test/t0", re10k.Options()))


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_cut_images_are_seen_and_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    item = record("t0", kind=kind)
    item["images"][2] = item["images"][2][:-40].clone()
    raw = write_folder(tmp_path / "raw/test", {"000000.torch": [item]})
    with pytest.raises(DataError, match=r"test/t0: image 2 (is cut|cannot be decoded)"):
        list(re10k.views(raw, "test/t0", re10k.Options()))
    views = list(re10k.views(raw, "test/t0", re10k.Options(undecodable="drop")))
    assert [view.frame for view in views] == [(i, 5) for i in (0, 1, 3, 4)]
    assert "test/t0: 1 of 5 frames left out: they have an image that cannot be decoded" in caplog.text
    item["images"] = [one[:20].clone() for one in item["images"]]
    write_folder(tmp_path / "raw/test", {"000000.torch": [item]})
    with pytest.raises(DataError, match="5 of 5 frames have an image that cannot be decoded"):
        list(re10k.views(raw, "test/t0", re10k.Options(undecodable="drop")))


def cut(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[:-500])


def short(chunk: Path) -> None:
    chunk.write_bytes(b"PK\3\4")


def text(chunk: Path) -> None:
    chunk.write_text("<html>404</html>")


def code(chunk: Path) -> None:
    torch.save([{"key": "t0", "images": Path("x")}], chunk)


def plain(chunk: Path) -> None:
    torch.save({"t0": torch.zeros(3)}, chunk)


def twice(chunk: Path) -> None:
    torch.save([record("t0"), record("t0")], chunk)


def other_key(chunk: Path) -> None:
    torch.save([record("t1")], chunk)


def more_keys(chunk: Path) -> None:
    torch.save([record("t0"), record("t7")], chunk)


def gone(chunk: Path) -> None:
    chunk.unlink()
    (chunk.parent / "000009.torch").write_bytes(b"")


CHUNKS = [
    (cut, r"^test/000000.torch: no readable chunk of \d+ bytes .*The download was cut"),
    (short, "no readable chunk of 4 bytes"),
    (text, "no readable chunk of 16 bytes"),
    (code, "holds something else than tensors, numbers and text, which is refused before it can run"),
    (plain, "no chunk; expected a list of scenes"),
    (twice, "scene t0 is in it twice"),
    (
        other_key,
        "^test/t0: index.json says that it is in 000000.torch, which holds t1. The two are of different preparations",
    ),
    (more_keys, r"test/000000.torch: holds scene t7, which index.json does not list \(1 such scenes\)"),
    (gone, r"index.json: 1 chunks are not there, first 000000.torch \(1 scenes are in them\)"),
]


@pytest.mark.parametrize(("break_it", "message"), CHUNKS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_chunk_has_its_own_words(tmp_path: Path, break_it: Any, message: str) -> None:
    raw = write_folder(tmp_path / "raw/test", {"000000.torch": [record("t0")]})
    break_it(raw / "test/000000.torch")
    with pytest.raises(DataError, match=message):
        list(re10k.views(raw, "test/t0", re10k.Options()))


@pytest.mark.parametrize(
    ("index", "message"),
    [({}, "no index; expected JSON"), ([1], "no index"), ({"../x": "000000.torch"}, "names become folders")],
)
def test_a_broken_index_is_refused(tmp_path: Path, index: Any, message: str) -> None:
    raw = write_folder(tmp_path / "raw/test", {"000000.torch": [record("t0")]}, index=index)
    with pytest.raises(DataError, match=message):
        re10k.scenes(raw, re10k.Options())


def test_what_is_not_there_is_named(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no chunks; expected train/\*\.torch, test/\*\.torch with index.json beside them"
    ):
        re10k.scenes(tmp_path, re10k.Options())
    with pytest.raises(DataError, match=r"options.only_scenes names k9, which is not there. There is: train/k0"):
        re10k.scenes(raw, re10k.Options(only_scenes=("k9",)))
    with pytest.raises(DataError, match="test/t5: no such scene; there is train/k0"):
        list(re10k.views(raw, "test/t5", re10k.Options()))
    torch.save([record("k0")], raw / "train/000002.torch")
    with pytest.raises(DataError, match=r"train/000002.torch: scene k0 is in 000000.torch too"):
        re10k.scenes(raw, re10k.Options(index="chunks"))
    with pytest.raises(DataError, match="no such file"):
        re10k_chunks.open_chunk(raw / "none.torch")


# --- canonical scenes without depth -------------------------------------------------------------------------------


def test_a_data_set_without_depth_is_parsed_checked_and_split(made: Path, tmp_path: Path) -> None:
    folder = parsed(made, tmp_path, options={"samples": [INDEX]})
    assert list_scenes(folder) == ["test/b0", "test/b1", "train/a0"]
    scene = read_scene(folder / "test/b0")
    assert scene.depth is None and not (folder / "test/b0/depth.npy").exists()
    assert scene.images.shape == (12, *SIZE, 3) and (folder / "test/b0/images.bin").is_file()
    whole = [view.image for view in re10k.views(made, "test/b0", re10k.Options())]
    assert np.abs(scene.images[5].astype(int) - whole[5]).mean() < 3
    assert list(open_split(folder, config(), "test")) == ["test/b0", "test/b1"]
    assert [list(open_split(folder, config(), part)) for part in ("train", "val")] == [[], ["train/a0"]]
    check = check_dataset(folder, CheckConfig(), out=tmp_path / "checks", dataset=config(), raw=made, workers=1)
    assert {one.verdict for one in check.scenes} == {"cannot tell"}
    assert "no depth to check" in check.scenes[0].diagnosis
    assert (tmp_path / "checks/test/b0.png").is_file() and not (tmp_path / "checks/test/b0.ply").exists()


def test_a_bare_folder_is_checked(raw: Path, tmp_path: Path) -> None:
    check = check_folder("re10k", raw, tmp_path / "out")
    assert [one.verdict for one in check.scenes] == ["cannot tell"] * 4


def test_the_folders_split_asks_for_folders(raw: Path, tmp_path: Path) -> None:
    folder = parsed(raw / "test", tmp_path)
    with pytest.raises(DataError, match="t0: the folders split expects scenes named train/<name>, val/<name> or test/"):
        open_split(folder, config(), "train")


# --- evaluation indices -------------------------------------------------------------------------------------------


def suite(path: str = INDEX, **changes: Any) -> SuiteConfig:
    values = {"dataset": "film", "sources": {"kind": "index", "path": path}, **changes}
    return SuiteConfig.model_validate(values)


def test_a_published_index_gives_samples_whose_targets_no_method_sees(made: Path, tmp_path: Path) -> None:
    entry = json.loads((made / INDEX).read_text())
    assert entry["b1"] is None and set(entry) == {"b0", "b1"}
    folder = parsed(made, tmp_path, options={"samples": [INDEX]})
    scenes = open_split(folder, config(), "test")
    (sample,) = build(suite(), scenes)
    assert sample == Sample("test/b0", (*entry["b0"]["context"], *entry["b0"]["target"]), context=2)
    assert (sample.given, sample.targets) == (tuple(entry["b0"]["context"]), tuple(entry["b0"]["target"]))
    batch = to_batch(gather(scenes, [sample]))
    assert batch.image.shape == (1, 2, 3, *SIZE) and batch.depth is None
    assert Sample("s", (3, 1)).given == (3, 1) and Sample("s", (3, 1)).targets == ()
    with pytest.raises(
        DataError, match=r"no list of samples 'other.json'; there is evaluation_index.json. Name the file in"
    ):
        build(suite("other.json"), scenes)
    with pytest.raises(ConfigError, match=r"predict_views 3, but evaluation_index.json gives test/b0 fewer views"):
        build(suite(predict_views=3), scenes)
    with pytest.raises(DataError, match="no view of 1 scenes has the sources"):
        build(suite(), {"test/b1": scenes["test/b1"]})


def test_a_pair_of_a_published_index_keeps_its_roles(made: Path, tmp_path: Path) -> None:
    parsed(made, tmp_path, options={"samples": [INDEX]})
    rule = PairConfig(
        dataset="film", split="test", sources=ByIndex(kind="index", path=INDEX), context=2, target=3
    )  # fmt: skip
    pair = extract_pair(rule, datasets={"film": config()}, scenes=tmp_path, out=tmp_path / "pair")
    assert pair.roles == ("context",) * 2 + ("target",) * 3
    whole, entry = read_scene(tmp_path / "film/test/b0"), json.loads((made / INDEX).read_text())["b0"]
    np.testing.assert_array_equal(pair.scene.images[2], whole.images[entry["target"][0]])


def test_only_listed_frames_are_read_where_that_is_asked_for(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"samples": [INDEX], "frames": "listed"}
    folder = parsed(made, tmp_path, options=options)
    assert list_scenes(folder) == ["test/b0"]
    assert "2 of 3 scenes left out: no index lists them" in caplog.text
    scenes, entry = open_split(folder, config(), "test"), json.loads((made / INDEX).read_text())["b0"]
    (sample,) = build(suite(), scenes)
    wanted = sorted({*entry["context"], *entry["target"]})
    assert scenes["test/b0"].frames == tuple(wanted) and scenes["test/b0"].frame_count == 12
    assert [wanted[view] for view in sample.views] == [*entry["context"], *entry["target"]]
    write_json(made.parent / "other.json", {"zz": None})
    other = re10k.Options.model_validate({**options, "samples": ["../other.json"]})
    with pytest.raises(DataError, match=r"none of its 3 scenes is in \.\./other.json"):
        re10k.scenes(made, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"b0": {"context": [0, 99], "target": [2]}}, "frame 99 is listed, but the scene has 12 frames"),
        ({"b0": {"context": [1, 4], "target": [2]}}, "frame 1 is listed, but is not read. Set options.stride: 1"),
        ({"b0": {"context": [1, 2]}}, "no evaluation index; expected JSON"),
        ({"b0": {"context": [], "target": [2]}}, "no evaluation index"),
        ({"b0": {"context": [1.5], "target": [2]}}, "no evaluation index"),
        ([3], "no evaluation index"),
    ],
)
def test_a_broken_evaluation_index_is_refused(made: Path, content: Any, message: str) -> None:
    write_json(made / "broken.json", content)
    with pytest.raises(DataError, match=message):
        re10k.samples(made, "test/b0", re10k.Options(samples=("broken.json",), stride=2))
    (made / "broken.json").unlink()
    with pytest.raises(DataError, match=r"broken.json: no such file; options.samples names it"):
        re10k.samples(made, "test/b0", re10k.Options(samples=("broken.json",)))


def test_lists_of_samples_survive_a_canonical_scene(made: Path, tmp_path: Path) -> None:
    views = list(re10k.views(made, "test/b0", re10k.Options()))
    names = [view.name for view in views]
    listed = {"a.json": [([names[3], names[1]], [names[2]]), ([names[0]], [])], "b.json": []}
    write_scene(tmp_path / "s", dataset="d", name="s", views=views, depth_range=(0.5, 9.0), samples=listed)
    assert read_scene(tmp_path / "s").samples == {"a.json": (((3, 1), (2,)), ((0,), ())), "b.json": ()}
    write_scene(tmp_path / "t", dataset="d", name="t", views=views, depth_range=(0.5, 9.0))
    assert read_scene(tmp_path / "t").samples == {} and "samples" not in (tmp_path / "t/scene.json").read_text()


def test_the_evaluation_index_of_the_shortest_clip_stays_inside(tmp_path: Path) -> None:
    for views in (2, 3, 5, 40):
        write_re10k.evaluation_index(tmp_path, ["train/a", "test/b"], views=views)
        entry = json.loads((tmp_path / INDEX).read_text())["b"]
        left, right = entry["context"]
        assert 0 <= left < right < views and all(left <= frame <= right for frame in entry["target"])
