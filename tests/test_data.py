"""Any map-style data set becomes the same batches."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from kdsearch.core.errors import KdsearchError
from kdsearch.data.batches import ArrayData, batches_in_order, place_data, shuffled
from kdsearch.data.loading import run_file

PIXELS = (np.arange(5 * 6 * 4 * 3) % 256).astype(np.uint8).reshape(5, 6, 4, 3)  # (N, H, W, C)
AS = {
    "PIL": lambda a: Image.fromarray(a),
    "uint8 array": lambda a: a,
    "float array": lambda a: a / 255,
    "uint8 tensor": lambda a: torch.from_numpy(a.copy()).movedim(-1, 0),
    "float tensor": lambda a: torch.from_numpy(a.copy()).movedim(-1, 0) / 255,
}


class Items:
    """A user's data set, with labels as numpy gives them."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        return AS[self.kind](PIXELS[index]), np.int64(index % 2)


ARRAY = ArrayData(torch.from_numpy(PIXELS.copy()).movedim(-1, 1), torch.arange(5) % 2)


@pytest.mark.parametrize("kind", AS)
def test_items_of_every_kind_become_float_images_in_0_1(kind):
    for mine, array in zip(batches_in_order(Items(kind), 2), batches_in_order(ARRAY, 2), strict=True):
        assert mine.images.dtype == torch.float32
        assert mine.target.dtype == torch.int64
        torch.testing.assert_close(mine.images, array.images)
        assert torch.equal(mine.target, array.target)
        assert torch.equal(mine.ids, array.ids)


def test_every_item_comes_once_in_order_and_its_id_is_its_position():
    batches = list(batches_in_order(ARRAY, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.ids for batch in batches]).tolist() == [0, 1, 2, 3, 4]


def test_shuffled_batches_are_full_whole_permutations_and_fixed_by_the_seed():
    batches = list(shuffled(Items("PIL"), 3, 10, 7))
    ids = torch.cat([batch.ids for batch in batches])
    assert [len(batch) for batch in batches] == [3] * 10
    assert ids.bincount().tolist() == [6] * 5
    assert all(sorted(ids[i : i + 5].tolist()) == [0, 1, 2, 3, 4] for i in range(0, 30, 5))
    assert torch.equal(ids, torch.cat([batch.ids for batch in shuffled(ARRAY, 3, 10, 7)]))
    assert not torch.equal(ids, torch.cat([batch.ids for batch in shuffled(ARRAY, 3, 10, 8)]))


def test_an_empty_data_set_is_named():
    with pytest.raises(KdsearchError, match="train: the data set is empty"):
        shuffled(ArrayData(torch.zeros(0, 1, 4, 4), torch.zeros(0)), 4, 1, 0)


STUDY = """
import os
import random
import sys
import numpy
import torch

class Noisy:
    def __init__(self, broken=None):
        self.broken = broken
    def __len__(self):
        return 6
    def __getitem__(self, index):
        if index == self.broken:
            raise ValueError("a torn picture")
        noise = torch.tensor([torch.rand(()).item(), random.random(), numpy.random.rand()])
        return torch.cat([noise, torch.tensor([float(os.getpid() % 1000)])]).view(1, 2, 2), index

def first(item):
    return item
"""


@pytest.fixture
def study_module(tmp_path):
    """A study file that was loaded by its path."""
    (tmp_path / "mine.py").write_text(STUDY)
    yield run_file(tmp_path / "mine.py")
    sys.path.remove(str(tmp_path))
    sys.modules.pop("kdsearch_study")


def read(batches):
    """Ids and pixels, a row an image; the last pixel of Noisy is the process."""
    return torch.cat([torch.cat([batch.ids[:, None], batch.images.flatten(1)], 1) for batch in batches])


def test_workers_know_the_classes_of_a_study_file_and_read_what_this_process_would(study_module):
    data = place_data(study_module.Noisy(), readers=2)
    here = read(shuffled(study_module.Noisy(), 3, 4, 7))
    there = read(shuffled(data, 3, 4, 7))
    assert torch.equal(there[:, :4], here[:, :4])
    assert len(here[:, 1].unique()) == len(here)  # each item another noise each time
    assert not torch.equal(read(shuffled(data, 3, 4, 8))[:, 1], here[:, 1])
    processes = there[:, 4].unique().tolist()
    assert len(processes) == 2 and os.getpid() % 1000 not in processes
    assert here[:, 4].unique().tolist() == [os.getpid() % 1000]
    assert read(shuffled(data, 3, 4, 7))[:, 4].unique().tolist() == processes  # they stay


def test_streams_that_are_open_together_or_left_early_do_not_meet(study_module):
    data = place_data(study_module.Noisy(), readers=1)
    list(shuffled(data, 2, 1, "before"))  # its workers wait for the next stream
    one, other = shuffled(data, 2, 6, "one"), shuffled(data, 2, 6, "other")
    mixed = [(next(one), next(other)) for _ in range(2)]
    expected = [list(shuffled(study_module.Noisy(), 2, 6, name))[:2] for name in ("one", "other")]
    for found, wanted in zip(zip(*mixed, strict=True), expected, strict=True):
        assert torch.equal(read(found)[:, :4], read(wanted)[:, :4])
    processes = {int(read(batches)[0, 4]) for batches in zip(*mixed, strict=True)}
    del one
    again = read(batches_in_order(data, 4))
    assert int(again[0, 4]) in processes  # those of the stream that was left wait for the next one
    assert torch.equal(again[:, :4], read(batches_in_order(study_module.Noisy(), 4))[:, :4])


def test_random_items_are_the_same_each_time_in_order(study_module):
    first, again = (read(batches_in_order(study_module.Noisy(), 2)) for _ in range(2))
    assert torch.equal(first, again) and len(first[:, 1].unique()) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_fails_is_named(study_module, workers):
    with pytest.raises(KdsearchError) as caught:
        list(batches_in_order(place_data(study_module.Noisy(broken=4), readers=workers), 2))
    line = 1 + STUDY.split("\n").index('            raise ValueError("a torn picture")')
    assert str(caught.value) == f"item 4 of Noisy: ValueError: a torn picture (mine.py, line {line})"


def test_what_cannot_reach_workers_is_named_with_a_cure():
    class Local(Items):
        pass

    with pytest.raises(KdsearchError, match=r"Local: cannot be sent to reader processes: .*Local.*readers=0"):
        next(batches_in_order(place_data(Local("PIL"), readers=1), 2))
    with pytest.raises(KdsearchError, match="readers is -1; allowed: 0 or more"):
        place_data(Items("PIL"), readers=-1)


def test_a_worker_that_ends_early_is_one_error(study_module, tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit(3)")  # in the child alone: here it is loaded
    with pytest.raises(KdsearchError, match=r"(?s)Noisy: data loading ended: .*exited unexpectedly.*readers=0"):
        next(batches_in_order(place_data(study_module.Noisy(), readers=1), 2))


def test_data_in_memory_uses_no_workers(monkeypatch):
    monkeypatch.setattr("kdsearch.data.items.DataLoader", None)
    assert len(list(batches_in_order(place_data(ARRAY, readers=2), 2))) == 3


def test_loading_takes_nothing_from_the_common_randomness():
    before = torch.random.get_rng_state()
    list(batches_in_order(Items("PIL"), 2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_of_different_shapes_are_named():
    class Growing(Items):
        def __getitem__(self, index):
            return torch.zeros(1, 4, 4 + index), 0

    with pytest.raises(KdsearchError, match=r"item 1: an image of \(1, 4, 5\) after one of \(1, 4, 4\)"):
        list(batches_in_order(Growing("PIL"), 2))
