"""Selection.save: the files of a dataset repo, written whole, the same each time, and beside what others wrote."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image, get_dataset_config_names, load_dataset
from pools import Scorer, plain, pool
from test_manifest import BAD_CONFIGS, BAD_SPLITS

from hf_curate import Selection, load_curated, select
from hf_curate.errors import ConfigNameError, CurateError
from hf_curate.hub import files
from hf_curate.hub.manifest import shard_name


@pytest.fixture(scope="module")
def picked() -> Selection:
    return select(pool(), Scorer(), "20%")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loaded(folder: Path, config: str, split: str = "train") -> Dataset:
    return load_dataset(str(folder), config, split=split)  # type: ignore[return-value]


def test_plain_datasets_loads_what_was_saved(picked: Selection, tmp_path: Path) -> None:
    assert picked.save(tmp_path, "grace-20pct") == tmp_path
    again = loaded(tmp_path, "grace-20pct")
    assert again.to_list() == picked.dataset.to_list()
    assert again.features == picked.dataset.features
    saved = {**picked.manifest, "config_name": "grace-20pct", "split": "train"}
    assert sorted(tree(tmp_path)) == [
        "README.md",
        f"grace-20pct/{shard_name(saved, 0, 1)}",
        *(f"grace-20pct/train.{name}" for name in ("length.png", "manifest.json", "nested.png", "scores.png")),
        "grace-20pct/train.steps.png",
    ]
    assert picked.manifest["config_name"] is None  # the manifest of the file is a copy


def test_configs_and_splits_live_side_by_side(picked: Selection, tmp_path: Path) -> None:
    other = select(pool(), Scorer(), "10%", strategy="random")
    picked.save(tmp_path, "top")
    other.save(tmp_path, "top", split="validation")
    before = tree(tmp_path / "top")
    other.save(tmp_path, "random")
    assert tree(tmp_path / "top") == before
    assert sorted(get_dataset_config_names(str(tmp_path))) == ["random", "top"]
    assert loaded(tmp_path, "top")["source_row"][:] == picked.indices.tolist()
    assert loaded(tmp_path, "top", "validation")["source_row"][:] == other.indices.tolist()
    assert len(loaded(tmp_path, "random")) == 10
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert readme.count("hf_curate:begin config=") == readme.count("hf_curate:end config=") == 3
    assert readme.count("hf_curate:begin comparison") == readme.count("hf_curate:end comparison") == 1


@pytest.mark.parametrize(
    "name", ["20", "1e5", "null", "yes", "on", "0x1", "2024-01-01", "a.", "a..b", "test", "default"]
)
def test_names_that_yaml_reads_as_something_else_load_too(picked: Selection, tmp_path: Path, name: str) -> None:
    picked.save(tmp_path, name)
    picked.save(tmp_path, "other")
    assert len(loaded(tmp_path, name)) == 20


@pytest.mark.parametrize("split", ["a.b", "_", "1", "null", "yes", "test"])
def test_odd_split_names_load_too(picked: Selection, tmp_path: Path, split: str) -> None:
    picked.save(tmp_path, "c", split=split)
    assert len(loaded(tmp_path, "c", split)) == 20


def test_saving_twice_gives_the_same_bytes(picked: Selection, tmp_path: Path) -> None:
    picked.save(tmp_path / "a", "c")
    first = tree(tmp_path / "a")
    picked.save(tmp_path / "a", "c")
    select(pool(), Scorer(), "20%").save(tmp_path / "b", "c")
    assert tree(tmp_path / "a") == first == tree(tmp_path / "b")


def test_fewer_shards_than_before_remove_the_stale_ones_of_this_split_alone(
    picked: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SHARD_BYTES", 500)
    picked.save(tmp_path, "c")
    picked.save(tmp_path, "c", split="dev")
    many = sorted(path.name for path in (tmp_path / "c").glob("*.parquet"))
    count = len(many) // 2
    assert count > 2
    both = [{**picked.manifest, "config_name": "c", "split": split} for split in ("dev", "train")]
    assert many == [shard_name(saved, i, count) for saved in both for i in range(count)]
    assert loaded(tmp_path, "c")["source_row"][:] == picked.indices.tolist()
    strangers = ["train-notes.parquet", "train-00000-of-00001.parquet.bak", "notes.txt"]
    for name in strangers:
        (tmp_path / "c" / name).write_bytes(b"mine")
    monkeypatch.setattr(files, "SHARD_BYTES", 10**9)
    picked.save(tmp_path, "c")
    left = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert [name for name in left if name.startswith("train-0") and name.endswith("parquet")] == [
        shard_name(both[1], 0, 1)
    ]
    assert [name for name in left if name.startswith("dev-")] == many[:count]
    assert set(strangers) <= set(left)
    assert not [name for name in left if name.startswith(".")]


def test_what_people_wrote_in_the_readme_survives(picked: Selection, tmp_path: Path) -> None:
    human = (
        "---\nlicense: mit  # ours\npretty_name: 'Ünï'\nconfigs:\n- config_name: old\n  data_files: old/*.parquet\n"
    )
    human += "custom: {a: [1, 2]}\n---\n\n# Our data\r\n\nText — with *marks*.\n"
    (tmp_path / "README.md").write_bytes(human.encode())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x.parquet").write_bytes(b"theirs")
    picked.save(tmp_path, "c")
    text = (tmp_path / "README.md").read_bytes().decode()
    for line in (
        "license: mit  # ours",
        "pretty_name: 'Ünï'",
        "custom: {a: [1, 2]}",
        "# Our data\r",
        "Text — with *marks*.",
    ):
        assert line + "\n" in text
    assert "- config_name: old\n  data_files: old/*.parquet\n" in text
    assert (tmp_path / "old" / "x.parquet").read_bytes() == b"theirs"
    assert len(loaded(tmp_path, "c")) == 20


@pytest.mark.parametrize(("config", "split"), [*((c, "train") for c in BAD_CONFIGS), *(("c", s) for s in BAD_SPLITS)])
def test_a_bad_name_is_refused_before_anything_is_written(
    picked: Selection, tmp_path: Path, config: str, split: str
) -> None:
    folder = tmp_path / "repo"
    with pytest.raises(ConfigNameError):
        picked.save(folder, config, split=split)
    assert list(tmp_path.iterdir()) == []


def test_a_readme_that_cannot_be_read_or_edited_stops_before_anything_is_written(
    picked: Selection, tmp_path: Path
) -> None:
    for content in ("é".encode("latin-1"), b"---\n[1, 2]\n---\n", b"---\na: [\n---\n", b"---\nconfigs: 3\n---\n"):
        (tmp_path / "README.md").write_bytes(content)
        with pytest.raises(CurateError):
            picked.save(tmp_path, "c")
        assert tree(tmp_path) == {"README.md": content}


def test_a_folder_that_is_a_file_is_a_clear_error(picked: Selection, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(CurateError, match="'file' cannot be written") as caught:
        picked.save(tmp_path / "file", "c")
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "c").write_bytes(b"x")
    with pytest.raises(CurateError, match="cannot be written"):
        picked.save(tmp_path, "c")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_a_clear_error(picked: Selection, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CurateError, match="Permission denied"):
            picked.save(tmp_path, "c")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
def test_an_interrupted_save_leaves_what_was_there(
    picked: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    select(pool(), Scorer(), "10%").save(tmp_path, "c")
    before = tree(tmp_path)
    monkeypatch.setattr(files, "SHARD_BYTES", 500)
    calls, write = [], Dataset.to_parquet

    def half(self: Dataset, path: Path) -> int:
        calls.append(path)
        if len(calls) <= failing:
            return write(self, path)
        Path(path).write_bytes(b"PAR1half")
        raise error

    monkeypatch.setattr(Dataset, "to_parquet", half)
    with pytest.raises(CurateError if isinstance(error, OSError) else KeyboardInterrupt):
        picked.save(tmp_path, "c")
    assert len(calls) == failing + 1
    assert tree(tmp_path) == before
    assert len(load_curated(tmp_path, "c")) == 10


def test_the_readme_is_replaced_whole(picked: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_bytes(b"# theirs\n")
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "README" in self.name:
            write(self, data[:10])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CurateError, match="No space left"):
        picked.save(tmp_path, "c")
    assert (tmp_path / "README.md").read_bytes() == b"# theirs\n"


def test_images_travel_inside_the_parquet_and_no_path_of_this_machine_does(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "MARKER").mkdir()
    for i in range(4):
        pillow.new("RGB", (2, 2), (i, 0, 0)).save(tmp_path / "MARKER" / f"{i}.png")
    names = [str(tmp_path / "MARKER" / f"{i}.png") for i in range(3)] + [None]
    data = plain([1.0, 2.0, 3.0, 4.0], image=names).cast_column("image", Image())
    select(data, "score", 4).save(tmp_path / "repo", "c")
    for path in (tmp_path / "MARKER").iterdir():
        path.unlink()
    assert b"MARKER" not in b"".join(tree(tmp_path / "repo").values())
    again = loaded(tmp_path / "repo", "c")
    assert [image and image.getpixel((0, 0)) for image in again["image"][:]] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), None]
    [shard] = (tmp_path / "repo" / "c").glob("*.parquet")
    stored = pq.read_table(shard)["image"].to_pylist()
    assert [image and image["path"] for image in stored] == ["0.png", "1.png", "2.png", None]
    assert load_curated(tmp_path / "repo", "c").problems == []


def test_without_matplotlib_the_card_has_no_picture_and_the_log_says_why(
    picked: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    picked.save(tmp_path, "c")
    assert not list(tmp_path.rglob("*.png"))
    assert ".png" not in (tmp_path / "README.md").read_text("utf-8")
    assert "pip install 'hf_curate[plots]'" in caplog.text


def test_a_plot_that_fails_costs_no_data_and_no_other_plot(
    picked: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hf_curate.plots import draw

    real = draw.plot

    def fail(name: str, manifest: dict) -> bytes:
        if name == "length":
            raise RuntimeError("no ink\nat all")
        return real(name, manifest)

    monkeypatch.setattr(draw, "plot", fail)
    picked.save(tmp_path, "c")
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == [
        f"train.{name}.png" for name in ("nested", "scores", "steps")
    ]
    assert "train.length.png" not in (tmp_path / "README.md").read_text("utf-8")
    assert (
        "The plot 'length' could not be drawn (RuntimeError: no ink); the card is written without it." in caplog.text
    )
    assert load_curated(tmp_path, "c").problems == []


@pytest.mark.parametrize("lacking", ["confounds", "baselines", "rows.failed", "selector.strategy"])
def test_a_card_that_fails_costs_no_data(
    picked: Selection, tmp_path: Path, lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    part, _, key = lacking.partition(".")
    manifest = dict(picked.manifest)
    if key:
        manifest[part] = {name: value for name, value in manifest[part].items() if name != key}
    elif part == "baselines":
        manifest[part] = {"x": 3}
    else:
        del manifest[part]
    Selection(picked.dataset, picked.indices, manifest).save(tmp_path, "c")
    assert "The card of 'c' is a minimal one, the whole one could not be written" in caplog.text
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "How these rows were chosen is in `c/train.manifest.json`." in text
    assert loaded(tmp_path, "c").to_list() == picked.dataset.to_list()
    picked.save(tmp_path, "c")
    assert "### How it scales" in (tmp_path / "README.md").read_text("utf-8")


def test_plots_that_a_new_selection_lacks_are_removed_and_other_pictures_stay(
    picked: Selection, tmp_path: Path
) -> None:
    picked.save(tmp_path, "c")
    (tmp_path / "c" / "train.mine.png").write_bytes(b"mine")
    (tmp_path / "c" / "dev.steps.png").write_bytes(b"of another split")
    select(plain([1.0, 2.0, 3.0]), "score", 1).save(tmp_path, "c")
    there = {path.name for path in (tmp_path / "c").glob("*.png")}
    assert there == {"train.scores.png", "train.nested.png", "train.mine.png", "dev.steps.png"}


def test_a_folder_name_with_brackets_is_loaded_back(picked: Selection, tmp_path: Path) -> None:
    picked.save(tmp_path / "out[1]", "c")
    assert load_curated(tmp_path / "out[1]", "c").problems == []


def test_a_selection_of_many_rows_is_written_as_the_same_rows(tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": [str(i) for i in range(30_000)], "score": np.arange(30_000.0)})
    kept = select(data.shuffle(seed=0), "score", "50%")
    kept.save(tmp_path, "half")
    assert load_curated(tmp_path, "half").problems == []


def test_plain_datasets_loads_the_new_rows_after_a_second_save(tmp_path: Path) -> None:
    for scores in ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]):
        kept = select(plain(scores), "score", 1)
        kept.save(tmp_path, "c")
        assert loaded(tmp_path, "c")["source_row"][:] == kept.indices.tolist()


def test_plain_datasets_tells_folders_of_the_same_name_apart(tmp_path: Path) -> None:
    """`datasets` keys its cache for a folder by its last name and the patterns of the config, not by its path."""
    for parent, scores in (("x", [1.0, 2.0, 3.0]), ("y", [3.0, 2.0, 1.0])):
        kept = select(plain(scores), "score", 1)
        kept.save(tmp_path / parent / "curated", "c")
        assert loaded(tmp_path / parent / "curated", "c")["source_row"][:] == kept.indices.tolist()
