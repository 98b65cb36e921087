"""Folders of pictures: class maps, order, resizing, and files that must not be trusted."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from robustkit.core.errors import UsageError
from robustkit.core.preprocessing import Preprocessing
from robustkit.data import open_data
from robustkit.images import read_image, resize_and_crop

HALF = (0.5, 0.5, 0.5)


def picture(path: Path, *, level: int = 0, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level,) * len(mode)).save(path)
    return path


def folders(root: Path, **counts: int) -> str:
    """A folder per class; the pictures of the k-th class are of gray level 10 k + place."""
    for k, (name, count) in enumerate(counts.items()):
        for place in range(count):
            picture(root / name / f"{place}.png", level=10 * k + place)
    return f"folder:{root}"


def levels(spec: str) -> list[int]:
    data = open_data(spec)
    x, _ = data.take(range(len(data)))
    return [round(float(v) * 255) for v in x[:, 0, 0, 0]]


def test_classes_are_the_sorted_folders_and_are_dealt_in_turn(tmp_path: Path) -> None:
    spec = folders(tmp_path, cat=3, dog=1, eel=2)
    data = open_data(spec)
    x, y = data.take(range(6))
    assert data.classes == ("cat", "dog", "eel")
    assert y.tolist() == [0, 1, 2, 0, 2, 0]
    assert levels(spec) == [0, 10, 20, 1, 21, 2]
    assert x.shape == (6, 3, 6, 8)
    assert x.dtype == torch.float32
    assert data.name == spec


def test_imagenet_identifiers_are_recognised(tmp_path: Path) -> None:
    data = open_data(folders(tmp_path, n02124075=1, n01440764=1))
    assert data.take([0, 1])[1].tolist() == [0, 285]
    assert data.classes is not None
    assert data.classes[285] == "Egyptian cat"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "dog\ncat\n"),
        ("classes.json", '["dog", "cat"]'),
        ("classes.json", '{"cat": 1, "dog": 0}'),
        ("classes.csv", "folder,index\ncat,1\ndog,0\n"),
    ],
)
def test_a_class_map_decides_the_numbers(tmp_path: Path, file: str, content: str) -> None:
    spec = folders(tmp_path, cat=1, dog=1)
    (tmp_path / file).write_text(content)
    data = open_data(spec)
    assert data.classes == ("dog", "cat")
    assert levels(spec) == [10, 0]


def test_csv_class_map_may_give_names(tmp_path: Path) -> None:
    spec = folders(tmp_path, a=1, b=1)
    (tmp_path / "classes.csv").write_text("folder,index,name\na,2,apple\nb,0,<b>\n")
    assert open_data(spec).classes == ("<b>", "1", "apple")


def test_labels_csv_lists_the_pictures(tmp_path: Path) -> None:
    for k in range(3):
        picture(tmp_path / "images" / f"{k}.png", level=k)
    (tmp_path / "labels.csv").write_text(
        "index,name,file\n4,four,images/2.png\n0,zero,images/0.png\n4,four,images/1.png\n"
    )
    data = open_data(f"folder:{tmp_path}")
    assert data.take([0, 1, 2])[1].tolist() == [0, 4, 4]
    assert levels(f"folder:{tmp_path}") == [0, 2, 1]
    assert data.classes == ("zero", "1", "2", "3", "four")


def test_resize_and_crop_is_torchvisions() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (301, 450, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    reference = v2.Compose([v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
        mine = resize_and_crop(turned, (224, 224), 0.875, "bicubic")
        assert np.array_equal(np.asarray(mine), np.asarray(reference(turned)))


def test_preprocessing_decides_size_and_channels(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png", size=(40, 30))
    picture(tmp_path / "a" / "1.png", size=(20, 50))
    gray = Preprocessing((0.5,), (0.5,), size=(16, 12), crop_pct=0.9)
    assert open_data(f"folder:{tmp_path}", preprocessing=gray).take([0, 1])[0].shape == (2, 1, 16, 12)
    colour = Preprocessing(HALF, HALF, size=(8, 8))
    assert open_data(f"folder:{tmp_path}", preprocessing=colour).take([0, 1])[0].shape == (2, 3, 8, 8)


def test_gray_pictures_stay_gray_without_a_network_that_says_otherwise(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png", level=51, mode="L")
    x, _ = open_data(f"folder:{tmp_path}").take([0])
    assert x.shape == (1, 1, 6, 8)
    assert float(x[0, 0, 0, 0]) == pytest.approx(0.2)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (6, 8)


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    spec = folders(tmp_path, a=1)
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / "._0.png").write_bytes(b"left by an archive")
    (tmp_path / ".hidden").mkdir()
    assert len(open_data(spec)) == 1


def test_the_fingerprint_follows_content_labels_and_size(tmp_path: Path) -> None:
    spec = folders(tmp_path, a=1, b=1)
    seen = {open_data(spec).fingerprint()}
    assert open_data(spec).fingerprint() in seen
    seen.add(open_data(spec, preprocessing=Preprocessing(HALF, HALF, size=(4, 4))).fingerprint())
    (tmp_path / "classes.txt").write_text("b\na\n")
    seen.add(open_data(spec).fingerprint())
    picture(tmp_path / "a" / "0.png", level=99)
    seen.add(open_data(spec).fingerprint())
    assert len(seen) == 4


def bomb(path: Path) -> Path:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_an_image_bomb_is_an_error_even_with_pillows_limit_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "bomb.png")
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UsageError, match=r"too large.*bomb\.png"):
            read_image(path)


def _gif(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path, format="GIF")


def _torn(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def _deep(path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, "too large"),
        (_gif, "not a picture"),
        (lambda path: path.write_text("hello"), "not a picture"),
        (lambda path: path.write_bytes(b""), "not a picture"),
        (_torn, "cannot be read"),
        (_deep, "more than 8 bits"),
        (lambda path: picture(path, size=(9, 9)), "different sizes"),
    ],
)
def test_a_bad_picture_is_named(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    spec = folders(tmp_path, a=1)
    make(tmp_path / "a" / "1.png")
    with pytest.raises(UsageError, match=message) as caught:
        open_data(spec).take([0, 1])
    assert "1.png" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no class folders"),
        ({"a/notes.txt": "x"}, "no pictures"),
        ({"labels.csv": "file\nx.png\n"}, "a column is missing"),
        ({"labels.csv": ""}, "a column is missing"),
        ({"labels.csv": "index,file\n0,x.png\n"}, "no such picture"),
        ({"labels.csv": "index,file\n0,../x.png\n"}, "leads out"),
        ({"labels.csv": "index,file\n0,/etc/hostname\n"}, "leads out"),
        ({"labels.csv": "index,file\n0.5,a/0.png\n", "a/0.png": ""}, "not a class number"),
        ({"labels.csv": "index,file\n0\n"}, "a value is missing"),
        ({"a/0.png": "", "classes.txt": "b\nc\n"}, "not in the class map"),
        ({"a/0.png": "", "classes.txt": "a\na\n"}, "listed twice"),
        ({"a/0.png": "", "classes.json": "{"}, "cannot be read"),
        ({"a/0.png": "", "classes.json": "3"}, "not a class map"),
        ({"a/0.png": "", "classes.json": '{"a": -1}'}, "not a class number"),
        ({"a/0.png": "", "classes.csv": "index\n1\n"}, "a column is missing"),
    ],
)
def test_a_bad_folder_gives_one_clear_message(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        open_data(f"folder:{tmp_path}")


def test_a_class_map_that_is_no_text_is_named(tmp_path: Path) -> None:
    spec = folders(tmp_path, a=1)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match=r"cannot be read.*classes\.txt"):
        open_data(spec)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_may_not_lead_out(tmp_path: Path, what: str) -> None:
    secret = picture(tmp_path / "elsewhere" / "secret.png")
    spec = folders(tmp_path / "root", a=1)
    target = secret if what == "file" else secret.parent
    (tmp_path / "root" / ("a/link.png" if what == "file" else "b")).symlink_to(target)
    with pytest.raises(UsageError, match="leads out"):
        open_data(spec)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    spec = folders(tmp_path, a=1)
    (tmp_path / "a" / "again.png").symlink_to(tmp_path / "a" / "0.png")
    assert len(open_data(spec)) == 2


def test_json_class_maps_of_many_classes(tmp_path: Path) -> None:
    spec = folders(tmp_path, zebra=1)
    (tmp_path / "classes.json").write_text(json.dumps({"zebra": 340, "horse": 339}))
    data = open_data(spec)
    assert data.take([0])[1].tolist() == [340]
    assert data.classes is not None
    assert data.classes[339:] == ("horse", "zebra")
