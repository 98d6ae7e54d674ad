"""AerialMegaDepth: both index encodings, what is refused of an index, EXR, masks, crop and K, broken folders, COLMAP models."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import OpenEXR
import pytest

from plumbline.config import DatasetConfig
from plumbline.data import aerialmd
from plumbline.data.canonical import read_scene, validate_view
from plumbline.data.checks import CheckConfig, check_folder
from plumbline.data.checks.dataset import check_dataset
from plumbline.data.exr import read_exr, write_exr
from plumbline.data.geometry import backproject, invert, project, transform
from plumbline.data.npz import read_npz
from plumbline.data.parse import parse_dataset
from plumbline.data.synthetic import Config, generate
from plumbline.data.synthetic.world import look_at
from plumbline.errors import DataError, PlumblineError
from plumbline.files import write_jpg, write_png
from plumbline.records import View

PHOTO, FRAME, OTHER = "3775224815_2e30aeddbb_o.jpg.jpg", "0001_083.jpeg", "0022_007.jpeg"
SIZES = {PHOTO: (60, 48), FRAME: (54, 96), OTHER: (54, 96)}
PLACES = {
    PHOTO: look_at(np.array([0.0, -1.6, -30.0]), np.array([0.0, -8.0, 0.0])),
    FRAME: look_at(np.array([20.0, -50.0, -60.0]), np.array([0.0, -5.0, 0.0])),
    OTHER: look_at(np.array([-20.0, -50.0, -60.0]), np.array([0.0, -5.0, 0.0])),
}
RECORD = [("scene_id", int), ("im1_id", int), ("im2_id", int), ("score", float)]


def stored_K(size: tuple[int, int]) -> np.ndarray:
    """As COLMAP writes it: the principal point of a centred camera is half the size."""
    return np.array([[size[1] * 0.9, 0, size[1] / 2], [0, size[1] * 0.9, size[0] / 2], [0, 0, 1]])


def write_view(root: Path, scene: str, tag: str, *, labels: bool = True) -> None:
    height, width = SIZES[tag]
    rng = np.random.default_rng(len(tag))
    image = np.kron(rng.integers(0, 255, (height // 6, width // 6, 3)), np.ones((6, 6, 1))).astype(np.uint8)
    depth = np.linspace(20.0, 60.0, height * width, dtype=np.float32).reshape(height, width)
    write_jpg(root / scene / f"{tag}.jpg", image)
    write_exr(root / scene / f"{tag}.exr", depth)
    np.savez(root / scene / f"{tag}.npz", intrinsics=stored_K((height, width)), cam2world=PLACES[tag])
    if labels:
        semantic = np.full((height, width, 3), 1, np.uint8)
        semantic[:5] = 2
        write_png(root / "seg" / scene / f"{tag}.png", semantic)


def write_index(path: Path, *, records: bool = True, **changes: Any) -> None:
    """Scene 0001 is number 0, 0022 number 1; image number 1 is not used."""
    rows = [(0, 0, 2, 1.5)]
    values = {
        "scenes": np.array(["0001", "0022"]),
        "images": np.array([PHOTO, None, FRAME], object),
        "images_scene_name": np.array(["0001", "0001", "0001"]),
        "pairs": np.array(rows, RECORD) if records else np.array(rows, object),
    }
    np.savez(path, allow_pickle=True, **(values | changes))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for tag in (PHOTO, FRAME):
        write_view(root, "0001", tag)
    write_index(root / "train.npz")
    return root


def options(**changes: Any) -> aerialmd.Options:
    return aerialmd.Options.model_validate({"crop": None, **changes})


def read(raw: Path, scene: str = "0001", **changes: Any) -> dict[str, View]:
    return {view.name: view for view in aerialmd.views(raw, scene, options(**changes))}


# --- what is read -------------------------------------------------------------------------------------------------


def test_a_pair_is_read_with_its_names_poses_and_metres(raw: Path) -> None:
    assert aerialmd.scenes(raw, options()) == ["0001"]
    views = read(raw)
    assert list(views) == [PHOTO, FRAME]
    for tag, view in views.items():
        validate_view(view, tag)
        assert view.image.shape == (*SIZES[tag], 3) and view.depth is not None
        np.testing.assert_array_equal(view.world_T_cam, PLACES[tag])
        assert view.depth.dtype == np.float32 and view.depth[-1, -1] == 60.0
    assert aerialmd.pairs(raw, "0001", options()) == {PHOTO: [(FRAME, 1.5)], FRAME: [(PHOTO, 1.5)]}


def test_principal_points_move_by_half_a_pixel_to_whole_pixel_centres(raw: Path) -> None:
    np.testing.assert_array_equal(read(raw)[FRAME].K[:2, 2], [47.5, 26.5])
    np.testing.assert_array_equal(read(raw, pixel_centres="whole")[FRAME].K[:2, 2], [48, 27])


@pytest.mark.parametrize("records", [True, False], ids=["records", "rows of objects"])
def test_both_pair_encodings_say_the_same(raw: Path, records: bool) -> None:
    rows = [(0, 0, 2, 1.5), (0, 2, 3, 2.5)]
    write_index(
        raw / "train.npz",
        images=np.array([PHOTO, None, FRAME, "0001_100.jpeg"], object),
        images_scene_name=np.array(["0001"] * 4, object),
        pairs=np.array(rows, RECORD) if records else np.array(rows, object),
    )
    found = aerialmd.pairs(raw, "0001", options())
    assert found is not None and found[FRAME] == [("0001_100.jpeg", 2.5), (PHOTO, 1.5)]
    assert found[PHOTO] == [(FRAME, 1.5)]


def test_one_pair_of_an_index_can_be_taken(raw: Path) -> None:
    write_index(raw / "train.npz", pairs=np.array([(0, 0, 9, 0.0), (0, 2, 0, 1.25)], RECORD))
    assert list(read(raw, pair_rows=[1])) == [PHOTO, FRAME]
    assert aerialmd.pairs(raw, "0001", options(pair_rows=[1])) == {FRAME: [(PHOTO, 1.25)], PHOTO: [(FRAME, 1.25)]}
    with pytest.raises(DataError, match=r"train\.npz: pair 2 was asked for, but it has 2 pairs"):
        aerialmd.scenes(raw, options(pair_rows=[2]))


def test_the_scene_of_an_image_is_what_images_scene_name_says(raw: Path) -> None:
    """Merged files number scenes by another list: here the pair claims to be of scene 1, which is 0022."""
    write_index(raw / "train.npz", pairs=np.array([(1, 0, 2, 1.5)], RECORD))
    assert aerialmd.scenes(raw, options()) == ["0001"]
    assert list(read(raw)) == [PHOTO, FRAME]


def test_pairs_across_scenes_are_refused_or_dropped(raw: Path) -> None:
    write_view(raw, "0022", OTHER)
    write_index(
        raw / "train.npz",
        images=np.array([PHOTO, FRAME, OTHER], object),
        images_scene_name=np.array(["0001", "0001", "0022"]),
        pairs=np.array([(0, 0, 1, 1.5), (0, 1, 2, 2.0)], RECORD),
    )
    words = rf"1 of 2 pairs are of two scenes, first pair 1: {FRAME} of scene 0001 and {OTHER} of scene 0022.*options\.pairs"
    with pytest.raises(DataError, match=words):
        aerialmd.scenes(raw, options())
    assert aerialmd.scenes(raw, options(pairs_across_scenes="drop")) == ["0001"]
    assert aerialmd.pairs(raw, "0001", options(pairs_across_scenes="drop")) == {
        PHOTO: [(FRAME, 1.5)],
        FRAME: [(PHOTO, 1.5)],
    }


def test_several_indices_are_read_together(raw: Path) -> None:
    shutil.copy(raw / "train.npz", raw / "val.npz")
    assert list(read(raw)) == [PHOTO, FRAME]
    assert aerialmd.pairs(raw, "0001", options(index=["val.npz"])) == aerialmd.pairs(raw, "0001", options())


# --- depth --------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_too_far_or_sky_is_not_measured(raw: Path) -> None:
    depth = np.full(SIZES[FRAME], 30, np.float32)
    depth[10, :4] = [np.nan, np.inf, 2000.5, -1]
    depth[10, 4] = 2000
    write_exr(raw / "0001" / f"{FRAME}.exr", depth)
    found = read(raw)[FRAME].depth
    assert found is not None
    assert not found[:5].any() and found[10, :6].tolist() == [0, 0, 0, 0, 2000, 30]
    nearer = read(raw, max_depth=100.0, masks="none")[FRAME].depth
    assert nearer is not None and nearer[0, 0] == 30 and nearer[10, 4] == 0


def test_label_maps_are_found_in_both_usual_places_and_needed_for_each_image(raw: Path) -> None:
    shutil.move(raw / "seg", raw.with_name("raw_segmentation"))
    assert not read(raw)[PHOTO].depth[:5].any()
    (raw.with_name("raw_segmentation") / "0001" / f"{FRAME}.png").unlink()
    with pytest.raises(DataError, match=r"pairs image 0001_083\.jpeg, but its label map \(options\.masks: none"):
        read(raw)
    shutil.rmtree(raw.with_name("raw_segmentation"))
    assert (read(raw)[PHOTO].depth > 0).all()
    with pytest.raises(DataError, match=r"labels: no such folder; options\.masks names it"):
        read(raw, masks="labels")


def test_clean_up_rules_differ_in_what_they_count() -> None:
    depth = np.zeros((20, 100), np.float32)
    depth[:10] = np.arange(1, 1001, dtype=np.float32).reshape(10, 100)
    assert aerialmd.clean(depth, "none") is depth
    # 98 % of all 2000 pixels lie at or below 960; of the 1000 measured ones 2 % lie below 20.98 and above 980.02.
    whole, measured = aerialmd.clean(depth, "reference"), aerialmd.clean(depth, "measured")
    assert whole.max() == 960 and whole[whole > 0].min() == 1
    assert measured.max() == 980 and measured[measured > 0].min() == 21
    few = np.zeros((20, 20), np.float32)
    few[:5] = np.arange(1, 101).reshape(5, 20)
    np.testing.assert_array_equal(aerialmd.clean(few, "measured"), few)


def test_clean_up_equals_the_reference_vectors(golden: Path) -> None:
    stored = np.load(golden / "vggt_data.npz")
    found = aerialmd.clean(stored["threshold/in"], "reference")
    np.testing.assert_array_equal(found, stored["threshold/out_max98_min-1"])


@pytest.mark.parametrize(
    "channels",
    [{"R": np.float32, "G": np.float32, "B": np.float32}, {"Y": np.float16}, {"depth": np.float32}, {"Z": np.float32}],
    ids=["colour", "half", "other name", "Z"],
)
def test_exr_maps_of_other_writers_are_read(tmp_path: Path, channels: dict[str, Any]) -> None:
    depth = np.linspace(0, 64, 48, dtype=np.float32).reshape(6, 8).round(1)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {name: depth.astype(kind) for name, kind in channels.items()}) as stored:
        stored.write(str(tmp_path / "map.exr"))
    found = read_exr(tmp_path / "map.exr")
    assert found.dtype == np.float32 and found.shape == (6, 8)
    np.testing.assert_allclose(found, depth, atol=0.02 if np.float16 in channels.values() else 0)


def test_exr_is_exact_and_a_cut_one_is_named(tmp_path: Path) -> None:
    path, depth = tmp_path / "map.exr", np.random.default_rng(0).uniform(0, 2000, (64, 48)).astype(np.float32)
    write_exr(path, depth)
    np.testing.assert_array_equal(read_exr(path), depth)
    whole = path.read_bytes()
    for kept in (len(whole) - 40, len(whole) // 2, 100):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"map\.exr: not a readable EXR file"):
            read_exr(path)
    with pytest.raises(DataError, match=r"none\.exr: no such file"):
        read_exr(tmp_path / "none.exr")


# --- crop ---------------------------------------------------------------------------------------------------------


def test_crop_takes_the_pixels_about_the_centre_and_moves_the_principal_point(raw: Path) -> None:
    whole, cut = read(raw)[FRAME], read(raw, crop=40)[FRAME]
    np.testing.assert_array_equal(cut.image, whole.image[7:47, 28:68])
    np.testing.assert_array_equal(cut.depth, whole.depth[7:47, 28:68])
    np.testing.assert_allclose(cut.K - whole.K, [[0, 0, -28], [0, 0, -7], [0, 0, 0]], atol=1e-12)


def test_crop_of_a_small_image_is_its_largest_square(raw: Path) -> None:
    default = {view.name: view for view in aerialmd.views(raw, "0001", aerialmd.Options())}
    assert default[PHOTO].image.shape == (48, 48, 3) and default[FRAME].image.shape == (54, 54, 3)
    assert default[PHOTO].K[:2, 2].tolist() == [23.5, 23.5]


def test_the_single_pair_recipe_cuts_518_squares() -> None:
    image = np.random.default_rng(0).integers(0, 255, (600, 1000, 3)).astype(np.uint8)
    K = np.array([[800.0, 0, 499.5], [0, 800, 299.5], [0, 0, 1]])
    view = aerialmd._cropped(View("a", image, K, np.eye(4), image[..., 0].astype(np.float32)), 518)
    np.testing.assert_array_equal(view.image, image[300 - 259 : 300 + 259, 500 - 259 : 500 + 259])
    np.testing.assert_array_equal(view.depth, view.image[..., 0])
    assert view.K[:2, 2].tolist() == [258.5, 258.5]


# --- hostile and broken indices -----------------------------------------------------------------------------------


class Hostile:
    """Pickled, it asks whoever reads it to run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_a_hostile_index_is_refused_and_nothing_runs(raw: Path, tmp_path: Path) -> None:
    write_index(raw / "train.npz", images=objects(PHOTO, Hostile(f"touch {tmp_path / 'ran'}"), FRAME))
    with pytest.raises(
        DataError, match=r"train\.npz: images\.npy: refused: it names posix\.system.*nothing of it was run"
    ):
        aerialmd.scenes(raw, options())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"bytes", "it holds a bytes"),
        ({"a": 1}, "it holds a dict"),
        ((1, 2), "it holds a tuple"),
        (np.zeros(2), "it holds a nested array"),
        (np.datetime64("2020-01-01"), "numpy scalar that is no number"),
        (1j, r"it names builtins\.complex"),
        (Path("a"), r"it names pathlib\."),
        (np.dtype("f4"), "it holds a nested dtype"),
        (getattr, r"it names builtins\.getattr"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_strings_numbers_and_none_are_admitted(tmp_path: Path, value: object, words: str) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=True, a=objects(value))
    with pytest.raises(DataError, match=words):
        read_npz(tmp_path / "a.npz")


def forged(path: Path, pickled: bytes, *, shape: tuple[int, ...] = (1,)) -> None:
    """An .npz file whose object array is `pickled`, whatever that is."""
    np.savez(path, allow_pickle=True, a=np.full(shape, None, object))
    import zipfile

    with zipfile.ZipFile(path) as archive:
        whole = archive.read("a.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", whole[:128] + pickled)


@pytest.mark.parametrize(
    "pickled",
    [
        b"cnumpy\ndtype\n(NNtb.",  # changes what stands for a function of numpy
        b"cnumpy._core.multiarray\nscalar\n(S'i8'\nS'x'\ntR.",
        b"cnumpy\nload\n(S'a'\ntR.",
        b"cnumpy.dtype\nmro\n.",
        pickle.dumps(["a"]),
        pickle.dumps(np.array(["a", "b"], object)),
        b"\x80\x04garbage",
        b"",
    ],
    ids=["build", "scalar", "load", "dotted", "list", "longer", "garbage", "empty"],
)
def test_forged_pickles_are_refused(tmp_path: Path, pickled: bytes) -> None:
    forged(tmp_path / "a.npz", pickled)
    with pytest.raises(DataError, match=r"a\.npz: a\.npy: (refused|its objects do not fill)"):
        read_npz(tmp_path / "a.npz")


def test_plain_object_arrays_come_through_unchanged(tmp_path: Path) -> None:
    values = np.array(
        [["a", None, 3], [2.5, np.str_("qüx"), np.float64(-1.5)], [np.int64(-4), True, np.bool_(0)]], object
    )
    np.savez(tmp_path / "a.npz", allow_pickle=True, rows=values, columns=np.asfortranarray(values), plain=np.arange(3))
    found = read_npz(tmp_path / "a.npz")
    assert found["rows"].tolist() == [["a", None, 3], [2.5, "qüx", -1.5], [-4, True, False]]
    assert found["columns"].tolist() == found["rows"].tolist() and found["plain"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": np.array([(0, 0, 1, 1.0)], RECORD)}, "pair 0 names image 1, which the index leaves empty"),
        ({"pairs": np.array([(0, 0, 7, 1.0)], RECORD)}, r"pair 0 names image 7, but there are images 0\.\.2"),
        ({"pairs": np.array([(0, 0, 2, np.nan)], RECORD)}, "the score of pair 0 is nan"),
        ({"pairs": np.zeros((3, 2))}, r"pairs are shape \(3, 2\); expected records of scene_id"),
        ({"pairs": np.array([("a", "b", "c", "d")], object)}, "pairs hold what is no number"),
        ({"images_scene_name": np.array(["0001"])}, "3 images, but 1 images_scene_name"),
        ({"pairs": np.array([], RECORD)}, "no pairs"),
    ],
    ids=["hole", "outside", "score", "shape", "words", "lengths", "none"],
)
def test_broken_indices_are_named(raw: Path, changes: dict[str, Any], words: str) -> None:
    write_index(raw / "train.npz", **changes)
    with pytest.raises(DataError, match=words):
        aerialmd.scenes(raw, options())


# --- broken folders -----------------------------------------------------------------------------------------------


def _camera(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        values = {"intrinsics": stored_K(SIZES[FRAME]), "cam2world": PLACES[FRAME], **changes}
        np.savez(folder / f"{FRAME}.npz", **{key: value for key, value in values.items() if value is not None})

    return write


def _lost(folder: Path) -> None:
    for kind in ("exr", "jpg"):
        (folder / f"{FRAME}.{kind}").unlink()


@pytest.mark.parametrize(
    ("breaking", "words"),
    [
        (
            lambda f: (f / f"{FRAME}.npz").unlink(),
            r"pairs image 0001_083\.jpeg, but its camera file is not there: 0001/0001_083",
        ),
        (lambda f: (f / f"{FRAME}.exr").unlink(), r"but its depth map is not there: 0001/0001_083\.jpeg\.exr"),
        (_lost, r"but its image is not there: 0001/0001_083\.jpeg\.jpg"),
        (_camera(cam2world=np.full((4, 4), np.nan)), r"0001_083\.jpeg\.npz: cam2world holds NaN or infinity"),
        (_camera(cam2world=None), r"\.npz: expected cam2world of shape \(4, 4\), found only intrinsics"),
        (_camera(intrinsics=np.zeros((3, 4))), r"expected intrinsics of shape \(3, 3\), found float64 \(3, 4\)"),
        (
            lambda f: write_exr(f / f"{FRAME}.exr", np.ones((27, 48), np.float32)),
            r"0001_083\.jpeg\.exr: 48x27 \(width x height\), but its image is 96x54; expected one size",
        ),
        (
            lambda f: write_exr(f / f"{FRAME}.exr", np.full(SIZES[FRAME], 5000, np.float32)),
            r"\.exr: not one pixel of depth is left within 2000 m.*options\.empty_depth: keep",
        ),
        (
            lambda f: write_png(f.parent / "seg/0001" / f"{FRAME}.png", np.zeros((10, 10), np.uint8)),
            r"0001_083\.jpeg\.png: 10x10 \(width x height\), but its image is 96x54",
        ),
        (lambda f: (f / f"{FRAME}.npz").write_bytes(b"cut"), r"\.npz: not a readable \.npz file"),
    ],
    ids=["no camera", "no depth", "no image", "NaN", "no pose", "K", "size", "empty", "mask size", "cut camera"],
)
def test_broken_folders_are_named(raw: Path, breaking: Callable[[Path], object], words: str) -> None:
    breaking(raw / "0001")
    with pytest.raises(DataError, match=words):
        read(raw)


def test_incomplete_images_can_be_left_out_and_empty_maps_kept(raw: Path) -> None:
    write_exr(raw / "0001" / f"{FRAME}.exr", np.zeros(SIZES[FRAME], np.float32))
    assert not read(raw, empty_depth="keep")[FRAME].depth.any()
    (raw / "0001" / f"{FRAME}.exr").unlink()
    assert list(read(raw, missing_files="drop")) == [PHOTO]
    (raw / "0001" / f"{PHOTO}.exr").unlink()
    with pytest.raises(DataError, match="2 of 2 frames have a file missing"):
        read(raw, missing_files="drop")


def test_folders_without_the_data_set_and_unknown_scenes_are_named(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"no AerialMegaDepth in it; expected an index such as train\.npz"):
        aerialmd.scenes(tmp_path / "other", options())
    with pytest.raises(DataError, match=r"0099: no such scene in the index\. There is: 0001"):
        read(raw, "0099")
    with pytest.raises(DataError, match=r"options\.only_scenes names 0044, which is not there\. There is: 0001"):
        aerialmd.scenes(raw, options(only_scenes=["0044"]))


# --- as published: COLMAP -----------------------------------------------------------------------------------------

MODEL = "data/0001/sfm_output_localization/sfm_superpoint+superglue/localized_dense_metric"


def quaternion(R: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation whose w is not near 0."""
    w = np.sqrt(1 + np.trace(R)) / 2
    return np.array([w, *(np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / (4 * w))])


@pytest.fixture
def colmap(tmp_path: Path) -> Path:
    folder = tmp_path / "colmap" / MODEL
    (folder / "sparse-txt").mkdir(parents=True)
    (folder / "depths").mkdir()
    cameras, images = ["# Camera list"], ["# Image list", "# with two lines of data per image:"]
    for number, tag in enumerate((PHOTO, FRAME), start=1):
        height, width = SIZES[tag]
        write_jpg(folder / "images" / tag, np.full((height, width, 3), 90, np.uint8))
        with h5py.File(folder / "depths" / f"{Path(tag).stem}.h5", "w") as stored:
            stored["depth"] = np.full((height, width), 40.0, np.float32)
        kind = f"SIMPLE_PINHOLE {width} {height} 70.5" if number == 1 else f"PINHOLE {width} {height} 70.5 71"
        cameras.append(f"{number} {kind} {width / 2} {height / 2}")
        cam_T_world = invert(PLACES[tag])
        numbers = " ".join(repr(float(x)) for x in (*quaternion(cam_T_world[:3, :3]), *cam_T_world[:3, 3]))
        # One image with points, one without: the second line is then empty.
        images += [f"{number} {numbers} {number} {tag}", "" if number == 2 else "1.0 2.0 -1 3.5 4.5 17"]
    (folder / "sparse-txt" / "cameras.txt").write_text("\n".join(cameras) + "\n")
    (folder / "sparse-txt" / "images.txt").write_text("\n".join(images) + "\n")
    return tmp_path / "colmap"


def test_a_colmap_model_gives_the_same_cameras(colmap: Path) -> None:
    assert aerialmd.scenes(colmap, options()) == ["0001"]
    views = read(colmap)
    for tag in (PHOTO, FRAME):
        np.testing.assert_allclose(views[tag].world_T_cam, PLACES[tag], atol=1e-12)
        assert views[tag].depth is not None and (views[tag].depth == 40).all()
    assert views[PHOTO].K.tolist() == [[70.5, 0, 23.5], [0, 70.5, 29.5], [0, 0, 1]]
    assert views[FRAME].K[:2].tolist() == [[70.5, 0, 47.5], [0, 71, 26.5]]
    assert aerialmd.pairs(colmap, "0001", options()) is None


@pytest.mark.parametrize("fault", ["cut", "named otherwise"])
def test_broken_depth_in_hdf5_is_named(colmap: Path, fault: str) -> None:
    file = colmap / MODEL / "depths" / f"{Path(PHOTO).stem}.h5"
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        with h5py.File(file, "w") as stored:
            stored["inverse_depth"] = np.ones(SIZES[PHOTO], np.float32)
    with pytest.raises(DataError, match=rf"{file.name}: no readable depth map"):
        read(colmap)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "cameras.txt",
            "SIMPLE_PINHOLE",
            "SIMPLE_RADIAL",
            "camera 1 SIMPLE_RADIAL with 3 parameters; expected SIMPLE_PINHOLE or",
        ),
        ("cameras.txt", "2 PINHOLE", "3 PINHOLE", r"image 0001_083\.jpeg has camera 2, which cameras\.txt lacks"),
        ("images.txt", f" 1 {PHOTO}", "", "is no image"),
    ],
    ids=["distortion", "camera", "cut"],
)
def test_broken_models_are_named(colmap: Path, file: str, old: str, new: str, words: str) -> None:
    path = colmap / MODEL / "sparse-txt" / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=words):
        read(colmap)


# --- the made data set, through the pipeline ----------------------------------------------------------------------

MADE = {"layout": "aerialmd", "scenes": ["0001", "0022"], "views": 10, "image_size": [120, 160], "seed": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    generate(Config.model_validate(MADE), out, workers=1)
    return out


def dataset(**changes: Any) -> DatasetConfig:
    values = {
        "format": "aerialmd",
        "source": {"kind": "folder", "path": "x"},
        "image_size": [112, 112],
        "depth_range": [1.0, 1000.0],
        "split": "seeded",
        **changes,
    }
    return DatasetConfig.model_validate(values)


@pytest.fixture(scope="module")
def parsed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parsed")
    parse_dataset("aerialmd", dataset(), raw=made, identity="a", out=out / "scenes", scratch=out / "scratch")
    return out / "scenes"


def test_scenes_of_mixed_sizes_become_canonical_with_their_pairs(parsed: Path, made: Path) -> None:
    scene = read_scene(parsed / "0022")
    assert scene.images.shape == (10, 112, 112, 3) and scene.pairs is not None and scene.depth is not None
    found = aerialmd.pairs(made, "0022", aerialmd.Options())
    assert found is not None
    for name, row in zip(scene.view_names, scene.pairs, strict=True):
        assert [(scene.view_names[other], score) for other, score in row] == found.get(name, [])
    aerial = [name.endswith(".jpeg") for name in scene.view_names]
    assert any(aerial[i] != aerial[other] for i, row in enumerate(scene.pairs) for other, _ in row)


def test_depths_of_metres_to_hundreds_of_metres_pass_the_check(parsed: Path, made: Path, tmp_path: Path) -> None:
    config = CheckConfig(min_baseline=0.1)
    check = check_dataset(parsed, config, out=tmp_path / "checks", dataset=dataset(), raw=made, workers=1)
    assert [scene.verdict for scene in check.scenes] == ["ok", "ok"]
    for scene in check.scenes:
        assert scene.depth is not None and scene.depth.nearest < 8 and scene.depth.farthest > 100
        assert scene.as_read is not None and scene.as_read.error is not None and scene.as_read.error < 0.005
        assert not scene.remarks
    assert (tmp_path / "checks/0022.png").exists() and (tmp_path / "checks/0022.ply").exists()


def test_inverted_poses_are_found_out_and_named(made: Path) -> None:
    wrong = {"poses": "world_to_camera", "only_scenes": ["0022"]}
    check = check_folder("aerialmd", made, options=wrong)
    assert [scene.verdict for scene in check.scenes] == ["wrong"]
    assert "with poses read as camera-to-world" in check.scenes[0].diagnosis


def test_depth_in_other_units_stops_the_graph(parsed: Path, made: Path, tmp_path: Path) -> None:
    shutil.copytree(parsed / "0001", tmp_path / "scenes" / "0001")
    np.save(tmp_path / "scenes" / "0001" / "depth.npy", np.load(parsed / "0001" / "depth.npy") / 8)
    with pytest.raises(PlumblineError, match=r"1 of 1 scenes are not true as read[^$]*with depth multiplied by 8"):
        check_dataset(tmp_path / "scenes", CheckConfig(), out=tmp_path / "out", dataset=dataset(), raw=made, workers=1)


# --- the made data set itself -------------------------------------------------------------------------------------


def moved_errors(first: View, second: View) -> np.ndarray:
    """Relative errors of the first view's depth moved into the second, where both have depth."""
    assert first.depth is not None and second.depth is not None
    assert first.world_T_cam is not None and second.world_T_cam is not None
    points = backproject(first.depth, first.K)[first.depth > 0]
    uv, z = project(transform(invert(second.world_T_cam) @ first.world_T_cam, points), second.K)
    u, v = (np.rint(np.nan_to_num(uv[:, axis], nan=-1)).astype(int) for axis in (0, 1))
    height, width = second.depth.shape
    seen = (z > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    met = second.depth[v[seen], u[seen]]
    return np.abs(met - z[seen])[met > 0] / z[seen][met > 0]


def test_depth_of_the_ground_and_of_the_air_agrees(made: Path) -> None:
    views, found = read(made, "0022"), aerialmd.pairs(made, "0022", options())
    assert found is not None
    mixed = [(a, b) for a in found for b, _ in found[a] if not a.endswith(".jpeg") and b.endswith(".jpeg")]
    assert len(mixed) >= 5
    for photo, frame in mixed[:5]:
        errors = moved_errors(views[photo], views[frame])
        assert len(errors) > 300 and np.median(errors) < 0.02
    axes = [views[name].world_T_cam[:3, 2] for name in mixed[0]]
    assert np.degrees(np.arccos(np.clip(axes[0] @ axes[1], -1, 1))) > 20


def test_names_files_and_sizes_are_those_of_the_data_set(made: Path) -> None:
    tags = [path.name.removesuffix(".exr") for path in (made / "0001").glob("*.exr")]
    photos = [tag for tag in tags if tag.endswith("_o.jpg.jpg")]
    frames = [tag for tag in tags if tag.startswith("0001_") and tag.endswith(".jpeg") and tag[5:8].isdigit()]
    assert len(photos) == len(frames) == 5 and len(tags) == 10
    for tag in tags:
        assert (made / "0001" / f"{tag}.jpg").exists() and (made / "seg/0001" / f"{tag}.png").exists()
        camera = np.load(made / "0001" / f"{tag}.npz")
        height, width = read_exr(made / "0001" / f"{tag}.exr").shape
        assert camera["intrinsics"][:2, 2].tolist() == [width / 2, height / 2]
    with OpenEXR.File(str(made / "0001" / f"{tags[0]}.exr"), separate_channels=True) as stored:
        assert list(stored.channels()) == ["Y"] and stored.channels()["Y"].pixels.dtype == np.float32


def test_both_index_files_hold_other_scenes_and_another_encoding(made: Path) -> None:
    train, val = (read_npz(made / name) for name in ("train.npz", "val.npz"))
    assert train["pairs"].dtype.names == ("scene_id", "im1_id", "im2_id", "score") and val["pairs"].dtype == object
    assert train["scenes"].tolist() == ["0001"] and val["scenes"].tolist() == ["0022"]
    assert train["images"][0] is None and (train["pairs"]["score"] >= 1).all()


def test_false_depth_lies_in_the_sky_alone(made: Path) -> None:
    with_sky, without = read(made, "0001", masks="none"), read(made, "0001")
    false = {name: (with_sky[name].depth > 0) & (without[name].depth == 0) for name in without}
    assert sum(mask.sum() for mask in false.values()) > 2000
    for name, mask in false.items():
        labels = aerialmd.read_png8(made / "seg/0001" / f"{name}.png")
        assert (labels[mask] == 2).all() and (without[name].depth[labels != 2] > 0).all()


def test_the_same_seed_gives_the_same_bytes_and_processes_change_nothing(tmp_path: Path) -> None:
    small = Config.model_validate({**MADE, "scenes": ["0036"], "views": 4, "image_size": [32, 48]})
    for folder, workers in (("here", 1), ("processes", 2)):
        generate(small, tmp_path / folder, workers=workers)
    files = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file())
    assert len(files) == 4 * 4 + 2
    assert all(
        (tmp_path / "here" / file).read_bytes() == (tmp_path / "processes" / file).read_bytes() for file in files
    )
