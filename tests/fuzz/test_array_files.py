"""Arrays in .npz files: refused, or data that is batched and images that are shown."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from law import holds
from shares import inputs
from strategies import GOOD_ARRAYS, Array, Cut, Flip, Member, Npz, bomb, header, npz, npz_files

import kdsearch as kd

BOMBS = {"bomb": "3 GB", "bomb of 700 MB": "700 MB", "bomb that claims little": "|u1"}


def content(file: Npz | str) -> bytes:
    return npz(file) if isinstance(file, Npz) else bomb("images.npy", header(BOMBS[file]), 3 * 10**9)


@pytest.fixture(scope="module", autouse=True)
def warm(world):
    path = world.put("arrays.npz", npz(Npz(GOOD_ARRAYS)))
    next(kd.data.shuffled(kd.data.load_arrays(path), 2, 1, 0))
    kd.data.load_images(path)


@inputs("arrays")
@given(file=npz_files | st.sampled_from(sorted(BOMBS)), reader=st.sampled_from(["data", "split", "images"]))
@example("bomb", "data")
@example("bomb", "images")
@example("bomb of 700 MB", "data")
@example("bomb of 700 MB", "images")
@example(Npz(GOOD_ARRAYS), "data")
@example(Npz(GOOD_ARRAYS), "images")
@example(Npz(GOOD_ARRAYS, (Member(0, "encrypted"),)), "data")
@example(Npz(GOOD_ARRAYS, (Member(0, "patched"),)), "images")
@example(Npz(GOOD_ARRAYS, (Member(0, "called x/"),)), "images")
@example(Npz(GOOD_ARRAYS, (), True, (Flip(9000, 2),)), "data")
@example(Npz(GOOD_ARRAYS, (), True, (Cut(40000),)), "images")
@example(Npz((("images", Array("a million million", "()", "none")), GOOD_ARRAYS[1])), "data")
@example(Npz((("images", Array("torn", "()", "none")), GOOD_ARRAYS[1])), "data")
@example(Npz((("images", Array("digits", "()", "none")), GOOD_ARRAYS[1])), "images")
@example(Npz((("images", Array("deep", "()", "none")), GOOD_ARRAYS[1])), "images")
@example(Npz((("images", Array("objects", "()", "none")), GOOD_ARRAYS[1])), "images")
def test_any_file_of_arrays(world, file, reader):
    path = world.put("arrays.npz", content(file))
    with holds(world, "arrays") as outcome:
        if reader == "images":
            images = kd.data.load_images(path)
            assert images.ndim == 4
            assert images.dtype == torch.float32
            assert bool(((images >= 0) & (images <= 1)).all())
        else:
            data = kd.data.load_arrays(path, split="train" if reader == "split" else None)
            batch = next(kd.data.shuffled(data, 2, 1, 0))
            assert batch.images.shape[1] in (1, 3)
            assert len(batch.target) == 2
    if file == Npz(GOOD_ARRAYS) and reader != "split":
        assert outcome.refused is None
