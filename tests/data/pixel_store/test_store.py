import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dermalyze.data.pixel_store.builder import build_pixels
from dermalyze.data.pixel_store.store import PixelStore, Preprocessing, open_pixels, store_folder
from dermalyze.data.readers.dataset import ImageFile
from serving.errors import ConfigError, DataError

SMALL = Preprocessing(image_size=16, resize_mode="squash", resize_filter="bilinear")


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def noise(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder: Path, contents: list[bytes]) -> dict[str, ImageFile]:
    folder.mkdir(exist_ok=True)
    files = {}
    for number, data in enumerate(contents):
        path = folder / f"ISIC_{number:04d}.png"
        path.write_bytes(data)
        files[path.stem] = ImageFile(path, "", len(data), path.stat().st_mtime_ns)
    return files


def expected_pixels(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR))


def test_row_i_is_the_resized_image_i(tmp_path):
    images = [noise(seed) for seed in range(70)]
    files = write_images(tmp_path / "images", [encode(pixels) for pixels in images])
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=2)
    expected = np.stack([expected_pixels(pixels) for pixels in images])
    assert stored.store.pixels.dtype == np.uint8
    np.testing.assert_array_equal(stored.store.pixels, expected)
    assert [record.image_id for record in stored.records] == sorted(files)
    assert stored.thumbnails().shape == (70, 32, 32)
    assert sorted(path.name for path in stored.folder.iterdir()) == [
        "files.json",
        "images.json",
        "pixels.npy",
        "sums.npy",
        "thumbnails.npy",
    ]


def test_the_store_cannot_be_written_to(tmp_path):
    files = write_images(tmp_path / "images", [encode(noise(0))])
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    with pytest.raises(ValueError, match="read-only"):
        stored.store.pixels[0] = 0


@given(st.lists(st.integers(0, 6), max_size=20))
def test_a_batch_has_the_rows_in_the_order_asked_for(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "batch.npy"
    pixels = np.stack([noise(seed, 3, 3) for seed in range(7)])
    if not path.exists():
        np.save(path, pixels)
    batch = PixelStore(path).batch(np.array(rows, np.int64))
    np.testing.assert_array_equal(batch, pixels[rows] if rows else np.empty((0, 3, 3, 3), np.uint8))
    assert batch.flags.writeable


def test_broken_images_have_a_record_and_no_row(tmp_path):
    images = [noise(seed) for seed in range(6)]
    contents = [encode(pixels) for pixels in images]
    contents[1] = b"not an image"
    contents[4] = contents[4][: len(contents[4]) // 2]
    files = write_images(tmp_path / "images", contents)
    files["ISIC_0005"].path.unlink()
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=2)
    expected = np.stack([expected_pixels(images[number]) for number in (0, 2, 3)])
    np.testing.assert_array_equal(stored.store.pixels, expected)
    assert len(stored.thumbnails()) == 3
    assert [(r.problem, r.truncated) for r in stored.records] == [
        ("", False),
        ("not a JPEG or PNG image (12 bytes)", False),
        ("", False),
        ("", False),
        (
            f"cannot decode the image ({len(contents[4]):,} bytes): it is damaged or cut short",
            True,
        ),
        (f"cannot read {files['ISIC_0005'].path}: No such file or directory", False),
    ]
    assert not (stored.folder / "raw.npy").exists()


def test_a_damaged_jpeg_with_its_end_mark_is_not_called_cut_short(tmp_path):
    whole = encode(noise(0), "JPEG")
    header_gone = whole[:2] + b"\0" * 300 + whole[302:]
    files = write_images(tmp_path / "images", [header_gone, whole[:-40], whole])
    records = build_pixels(files, tmp_path / "out", SMALL, workers=1).records
    assert [bool(record.problem) for record in records] == [True, True, False]
    assert [record.truncated for record in records] == [False, True, False]


def test_the_folder_follows_the_files_and_the_preprocessing(tmp_path):
    files = write_images(tmp_path / "images", [encode(noise(0)), encode(noise(1))])
    other = ImageFile(files["ISIC_0001"].path, "", files["ISIC_0001"].size, 7)
    others = [
        Preprocessing(image_size=17, resize_mode="squash", resize_filter="bilinear"),
        Preprocessing(image_size=16, resize_mode="center_crop", resize_filter="bilinear"),
        Preprocessing(image_size=16, resize_mode="squash", resize_filter="bicubic"),
    ]
    names = {
        store_folder(files, tmp_path, SMALL).name,
        store_folder({**files, "ISIC_0001": other}, tmp_path, SMALL).name,
        store_folder({"ISIC_0000": files["ISIC_0000"]}, tmp_path, SMALL).name,
        *(store_folder(files, tmp_path, preprocessing).name for preprocessing in others),
    }
    assert len(names) == 6
    moved = {name: ImageFile(tmp_path, "x", f.size, f.stamp) for name, f in files.items()}
    assert store_folder(moved, tmp_path, SMALL) == store_folder(files, tmp_path, SMALL)


def test_a_store_from_before_profiles_were_converted_is_not_used(tmp_path, monkeypatch):
    files = write_images(tmp_path, [encode(noise(0))])
    monkeypatch.setattr("dermalyze.data.pixel_store.store.PREPROCESSING_VERSION", 1)
    build_pixels(files, tmp_path / "out", SMALL, workers=1)
    assert open_pixels(files, tmp_path / "out", SMALL) is not None
    monkeypatch.undo()
    assert open_pixels(files, tmp_path / "out", SMALL) is None


def test_a_store_of_changed_files_replaces_the_old_one_and_leaves_other_sizes(tmp_path):
    out = tmp_path / "out"
    files = write_images(tmp_path / "images", [encode(noise(0))])
    large = Preprocessing(image_size=20, resize_mode="squash", resize_filter="bilinear")
    kept = build_pixels(files, out, large, workers=1).folder
    old = build_pixels(files, out, SMALL, workers=1).folder
    files = write_images(tmp_path / "images", [encode(noise(0)), encode(noise(1))])
    new = build_pixels(files, out, SMALL, workers=1).folder
    assert sorted(out.iterdir()) == sorted([kept, new])
    assert old != new


def half_built(tmp_path: Path) -> tuple[dict[str, ImageFile], Path, list[np.ndarray]]:
    """Leave a store as a killed build would: 3 of 5 rows done, the journal's last line torn."""
    images = [noise(seed) for seed in range(5)]
    files = write_images(tmp_path / "images", [encode(pixels) for pixels in images])
    partial = store_folder(files, tmp_path / "out", SMALL)
    partial = partial.with_name(partial.name + ".partial")
    partial.mkdir(parents=True)
    raw = np.zeros((5, 16, 16, 3), np.uint8)
    lines = []
    for row in range(3):
        raw[row] = 10 + row  # not what decoding gives: shows who wrote the row
        words = raw[row].reshape(-1, 8).astype(object) @ [256**place for place in range(8)]
        check = (int(words.sum()) + zlib.crc32(bytes(1024))) % 2**64  # and of the thumbnail
        lines.append(json.dumps([row, check, f"ISIC_{row:04d}", "a", False, ""]))
    np.save(partial / "raw.npy", raw)
    (partial / "thumbnails.raw").write_bytes(bytes(3 * 1024))
    (partial / "journal.jsonl").write_text("\n".join(lines) + '\n[3,12,"AAA')
    return files, partial, images


def test_rows_in_the_journal_are_not_decoded_again(tmp_path):
    files, partial, images = half_built(tmp_path)
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    for row in range(3):
        assert (stored.store.pixels[row] == 10 + row).all()
    for row in (3, 4):
        np.testing.assert_array_equal(stored.store.pixels[row], expected_pixels(images[row]))
    assert not partial.exists()


def test_a_row_that_is_not_what_the_journal_says_is_decoded_again(tmp_path):
    files, partial, images = half_built(tmp_path)
    raw = np.load(partial / "raw.npy", mmap_mode="r+")
    raw[1, 0, 0, 0] ^= 1
    raw.flush()
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    assert (stored.store.pixels[0] == 10).all()
    np.testing.assert_array_equal(stored.store.pixels[1], expected_pixels(images[1]))


def test_a_build_killed_just_before_its_rename_is_finished(tmp_path):
    files, partial, _ = half_built(tmp_path)
    (partial / "raw.npy").rename(partial / "pixels.npy")
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    assert (stored.store.pixels[2] == 12).all()


@pytest.mark.parametrize("name", ["pixels.npy", "images.json"])
def test_a_damaged_store_counts_as_none_and_is_built_again(tmp_path, name):
    files = write_images(tmp_path / "images", [encode(noise(0)), encode(noise(1))])
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    path = stored.folder / name
    path.write_bytes(path.read_bytes()[:-200])
    assert open_pixels(files, tmp_path / "out", SMALL) is None
    again = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    np.testing.assert_array_equal(again.store.pixels[1], expected_pixels(noise(1)))


def test_a_store_that_lacks_a_record_counts_as_none(tmp_path):
    files = write_images(tmp_path / "images", [encode(noise(0)), encode(noise(1))])
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    path = stored.folder / "images.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    assert open_pixels(files, tmp_path / "out", SMALL) is None


def test_a_place_that_cannot_hold_the_store_is_one_sentence(tmp_path):
    files = write_images(tmp_path / "images", [encode(noise(0))])
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(DataError) as caught:
        build_pixels(files, tmp_path / "out", SMALL, workers=1)
    assert str(caught.value) == (
        f"cannot write 0.0 GB of pixels to {tmp_path}/out: not a directory; make room or pass "
        "another folder as --output, in training as data.prepared"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((8, "squash", "bicubic"), "data.image_size must be from 16 to 1024, got 8"),
        (
            (16, "stretch", "bicubic"),
            "data.resize_mode must be one of squash, center_crop, got 'stretch'",
        ),
        (
            (16, "squash", "auto"),
            "data.resize_filter must be one of bilinear, bicubic, lanczos, got 'auto'",
        ),
    ],
)
def test_preprocessing_out_of_range_is_refused(values, message):
    size, mode, filter_name = values
    with pytest.raises(ConfigError) as caught:
        Preprocessing(image_size=size, resize_mode=mode, resize_filter=filter_name)
    assert str(caught.value) == message


def flip_a_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def test_one_flipped_bit_among_the_pixels_is_named(tmp_path):
    files = write_images(tmp_path / "images", [encode(noise(seed)) for seed in range(5)])
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    digest = stored.verify()
    row_bytes = 16 * 16 * 3
    flip_a_bit(stored.folder / "pixels.npy", 128 + 2 * row_bytes + 7)  # behind the header
    opened = open_pixels(files, tmp_path / "out", SMALL)
    assert opened is not None
    with pytest.raises(DataError) as caught:
        opened.verify()
    assert str(caught.value) == (
        f"the pixels of 1 of 5 images in {stored.folder} are damaged, among them ISIC_0002; "
        "delete that folder, and they are decoded again"
    )
    flip_a_bit(stored.folder / "pixels.npy", 128 + 2 * row_bytes + 7)
    (stored.folder / "sums.npy").unlink()  # as in a store of an older version
    old = open_pixels(files, tmp_path / "out", SMALL)
    assert old is not None
    assert old.verify() == digest


def test_damaged_pixels_are_not_copied_into_a_new_store(tmp_path):
    files = write_images(tmp_path / "images", [encode(noise(seed)) for seed in range(5)])
    some = {name: files[name] for name in sorted(files)[:4]}
    stored = build_pixels(some, tmp_path / "out", SMALL, workers=1)
    flip_a_bit(stored.folder / "pixels.npy", 128 + 9)
    grown = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    fresh = build_pixels(files, tmp_path / "fresh", SMALL, workers=1)
    np.testing.assert_array_equal(grown.store.pixels, fresh.store.pixels)
