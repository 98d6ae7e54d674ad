"""params.yaml: numbers as DVC writes them, and errors that name the key."""

from pathlib import Path

import pytest
import yaml

from plumbline.config import DatasetConfig, Dumper, SuiteConfig, load_params, parse, parse_value, section
from plumbline.errors import ConfigError

DATASET = {
    "format": "dtu",
    "source": {"kind": "folder", "path": "x"},
    "image_size": [128, 160],
    "depth_range": [0.4, 0.9],
    "split": "mvsnet",
}


@pytest.mark.parametrize(
    ("text", "expected"), [("5e-05", 5e-5), ("1e-4", 1e-4), ("1.5", 1.5), (".5", 0.5), ("3", 3), ("'1e-4'", "1e-4")]
)
def test_numbers_are_read_as_dvc_writes_them(tmp_path: Path, text: str, expected: object) -> None:
    (tmp_path / "params.yaml").write_text(f"lr: {text}\n")
    value = load_params(tmp_path / "params.yaml")["lr"]
    assert value == expected
    assert type(value) is type(expected)


def test_names_that_look_like_numbers_stay_text() -> None:
    assert parse_value("20140112151017.txt") == "20140112151017.txt"


def test_what_is_written_reads_back_as_it_was() -> None:
    values = {
        "scenes": ["0001", "0008", "0017"],
        "lr": "5e-05",
        "name": "scan1",
        "steps": 8,
        "rate": 1e-4,
        "none": None,
    }
    values["steps"] = "Log in: accept the terms, then (see FILE) run it.\nThat is all."
    text = yaml.dump({**values, "again": values["scenes"]}, Dumper=Dumper, sort_keys=False)
    assert parse_value(text) == {**values, "again": values["scenes"]}
    assert "&" not in text and "name: scan1" in text


def test_a_section_is_typed_and_frozen() -> None:
    config = section({"datasets": {"dtu": DATASET}}, "datasets.dtu", DatasetConfig)
    assert config.image_size == (128, 160)
    with pytest.raises(ValueError, match="frozen"):
        config.image_size = (1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_sizes": [1, 2]}, r"datasets\.dtu\.image_sizes: unknown key\. Did you mean 'image_size'\?"),
        (
            {"format": "dtv"},
            r"datasets\.dtu\.format: Input should be 'dtu', 'sun3d', 'rgbd', 'aerialmd' or 're10k' \(found 'dtv'\)",
        ),
        ({"image_size": [4, 160]}, r"datasets\.dtu\.image_size\.0: Input should be greater than or equal to 8"),
        ({"depth_range": [0.9, 0.4]}, "expected 0 < nearest < farthest"),
    ],
)
def test_errors_name_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({**DATASET, **change}, DatasetConfig, where="datasets.dtu")


def test_missing_keys_and_near_misses() -> None:
    with pytest.raises(ConfigError, match=r"datasets\.dtu\.image_size: missing"):
        parse({k: v for k, v in DATASET.items() if k != "image_size"}, DatasetConfig, where="datasets.dtu")
    with pytest.raises(ConfigError, match=r"'dtv' is not in datasets\. Did you mean 'dtu'"):
        section({"datasets": {"dtu": DATASET}}, "datasets.dtv", DatasetConfig)
    with pytest.raises(ConfigError, match=r"no such file\. Run from the project's root"):
        load_params(Path("absent.yaml"))


def test_a_suite_tells_its_rules_apart() -> None:
    suite = parse({"dataset": "dtu", "sources": {"kind": "gap", "gap": 5}}, SuiteConfig, where="suites.x")
    assert suite.sources.kind == "gap"
    with pytest.raises(ConfigError, match=r"suites\.x\.sources\.gap\.count: unknown key"):
        parse({"dataset": "dtu", "sources": {"kind": "gap", "gap": 5, "count": 2}}, SuiteConfig, where="suites.x")
