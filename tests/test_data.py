"""Any map-style data set becomes the same batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdsearch.data import ArrayData, in_order, shuffled
from kdsearch.errors import KdsearchError

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
    for mine, array in zip(in_order(Items(kind), 2), in_order(ARRAY, 2), strict=True):
        assert mine.images.dtype == torch.float32
        assert mine.target.dtype == torch.int64
        torch.testing.assert_close(mine.images, array.images)
        assert torch.equal(mine.target, array.target)
        assert torch.equal(mine.ids, array.ids)


def test_every_item_comes_once_in_order_and_its_id_is_its_position():
    batches = list(in_order(ARRAY, 2))
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
