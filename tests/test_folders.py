"""Folders of pictures and files of arrays become data sets."""

import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.data.batches import batches_in_order

PIXELS = np.arange(5 * 6 * 4 * 3, dtype=np.uint8).reshape(5, 6, 4, 3)  # (N, H, W, C)


@pytest.fixture
def folder(tmp_path):
    """Two classes: a gray and a wide picture of cats, one of a dog deeper in its folder."""
    for name, shape, value in (
        ("cat/a.png", (20, 40, 3), 200),
        ("cat/b.JPG", (30, 10), 100),
        ("dog/2024/c.png", (16, 16, 3), 50),
    ):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.full(shape, value, np.uint8)
        if name.endswith("a.png"):
            picture[:, :10], picture[:, 30:] = 0, 0
        Image.fromarray(picture).save(path)
    (tmp_path / "data/dog/notes.txt").write_text("no picture")
    (tmp_path / "data/.cache").mkdir()
    (tmp_path / "data/dog/._c.png").write_bytes(b"what a Mac leaves")
    return tmp_path / "data"


def test_a_folder_of_class_folders_is_a_data_set_of_one_size(folder):
    data = kd.data.image_folder(folder, size=8)
    assert data.class_names == ("cat", "dog") and len(data) == 3
    items = list(data)
    assert [label for _, label in items] == [0, 0, 1]
    assert all(image.dtype == torch.uint8 and image.shape == (3, 8, 8) for image, _ in items)
    assert items[0][0].float().mean() > 190  # the middle of the wide one
    assert abs(items[1][0].float().mean() - 100) < 2
    batch = next(batches_in_order(data, 3))
    assert batch.images.shape == (3, 3, 8, 8) and batch.target.tolist() == [0, 0, 1]
    torch.testing.assert_close(batch.images[2], torch.full((3, 8, 8), 50 / 255))


def test_small_pictures_are_made_larger(folder):
    assert kd.data.image_folder(str(folder), size=33)[2][0].shape == (3, 33, 33)


def test_a_folder_gives_the_classes_and_files_of_torchvision(folder):
    (folder / "dog/._c.png").unlink()
    (folder / ".cache").rmdir()
    mine, theirs = kd.data.image_folder(folder, size=8), torchvision.datasets.ImageFolder(folder)
    assert list(mine.class_names) == theirs.classes
    assert [(str(file), label) for file, label in zip(mine.files, mine.labels, strict=True)] == theirs.samples


def test_items_of_a_torchvision_data_set_are_read_as_they_are(folder):
    (folder / "dog/._c.png").unlink()
    (folder / ".cache").rmdir()
    data = torchvision.datasets.ImageFolder(folder, transform=lambda image: image.resize((8, 8)))
    batch = next(batches_in_order(data, 3))
    assert batch.target.tolist() == [0, 0, 1]
    torch.testing.assert_close(batch.images[2], torch.full((3, 8, 8), 50 / 255))


def test_a_broken_picture_is_named_when_it_is_read(folder):
    broken = folder / "dog/z.png"
    broken.write_bytes((folder / "cat/a.png").read_bytes()[:60])
    data = kd.data.image_folder(folder, size=8)
    with pytest.raises(KdsearchError, match=f"^{re.escape(str(broken))}: cannot be read as an image"):
        data[3]
    with pytest.raises(KdsearchError, match=f"item 3 of ImageFolder: {re.escape(str(broken))}: cannot be read"):
        list(batches_in_order(data, 2))


def test_a_folder_without_classes_is_named(folder, tmp_path):
    with pytest.raises(KdsearchError, match=r"nowhere: no such folder"):
        kd.data.image_folder(tmp_path / "nowhere", size=8)
    with pytest.raises(KdsearchError, match=r"a.png: not a folder"):
        kd.data.image_folder(folder / "cat/a.png", size=8)
    with pytest.raises(KdsearchError, match=r"cat: no folders in it; needed: one folder of images for each class"):
        kd.data.image_folder(folder / "cat", size=8)
    with pytest.raises(KdsearchError, match=r"size is 0; allowed: 1 or more"):
        kd.data.image_folder(folder, size=0)
    (folder / "emu").mkdir()
    with pytest.raises(KdsearchError, match=r"data: no images in emu; read are .png"):
        kd.data.image_folder(folder, size=8)


# Arrays

LAYOUTS = {
    "NHWC": PIXELS,
    "NCHW": np.moveaxis(PIXELS, -1, 1),
    "NHW": PIXELS[..., 0],
    "NHW1": PIXELS[..., :1],
    "floats": PIXELS / 255,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("x", "y"), [("images", "labels"), ("x", "y"), ("data", "targets")])
def test_arrays_of_every_layout_and_name_are_data_in_memory(tmp_path, layout, x, y):
    array = LAYOUTS[layout]
    np.savez(tmp_path / "a.npz", **{x: array, y: np.arange(5, dtype=np.uint8)[:, None]})
    data = kd.data.load_arrays(tmp_path / "a.npz")
    expected = torch.from_numpy(PIXELS.copy()).movedim(-1, 1)
    expected = expected if layout in ("NHWC", "NCHW", "floats") else expected[:, :1]
    assert data.images.dtype == (torch.float32 if layout == "floats" else torch.uint8)
    torch.testing.assert_close(data.images, expected.float() / 255 if layout == "floats" else expected)
    assert data.labels.dtype == torch.int64 and data.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pictures": PIXELS, "y": np.arange(5)}, "no images in it, but pictures, y; allowed names: images, x, data"),
        ({"x": PIXELS}, "no labels in it, but x; allowed names: labels, y, targets"),
        ({"x": PIXELS.astype(int), "y": np.arange(5)}, r"images are int64 \(5, 6, 4, 3\); allowed: uint8, or floats"),
        ({"x": PIXELS[0, 0], "y": np.arange(5)}, r"images are uint8 \(4, 3\); allowed: \(N, H, W, C\)"),
        ({"x": PIXELS[:, :2, :, :2], "y": np.arange(5)}, r"images are uint8 \(5, 2, 4, 2\); allowed"),
        ({"x": PIXELS[:0], "y": np.arange(0)}, r"images are uint8 \(0, 6, 4, 3\); allowed"),
        ({"x": PIXELS / 100, "y": np.arange(5)}, r"images have values from 0 to .*; floats have to be in \[0, 1\]"),
        ({"x": PIXELS * np.nan, "y": np.arange(5)}, "images have values from nan to nan"),
        ({"x": PIXELS, "y": np.arange(4)}, r"labels are int64 \(4,\) for 5 images; allowed: \(5,\) or \(5, 1\)"),
        ({"x": PIXELS, "y": np.arange(5.0)}, r"labels are float64 \(5,\); allowed: integers from 0"),
        ({"x": PIXELS, "y": np.arange(5) - 1}, "labels from -1; allowed: integers from 0"),
        ({"x": np.array([object()]), "y": np.arange(5)}, "cannot be read as an .npz file of arrays: Object arrays"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(KdsearchError, match=said):
        kd.data.load_arrays(tmp_path / "a.npz")


def test_a_file_that_holds_no_arrays_is_named(tmp_path):
    with pytest.raises(KdsearchError, match=r"b.npz: no such file"):
        kd.data.load_arrays(tmp_path / "b.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(KdsearchError, match=r"torn.npz: cannot be read as an .npz file"):
        kd.data.load_arrays(tmp_path / "torn.npz")
    np.save(tmp_path / "one.npy", PIXELS)
    with pytest.raises(KdsearchError, match=r"one.npy: cannot be read as an .npz file"):
        kd.data.load_arrays(tmp_path / "one.npy")
