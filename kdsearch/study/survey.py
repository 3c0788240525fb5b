"""Every image of a study, looked at while the teacher runs over it: values, shapes, targets, what is in both splits."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from kdsearch.core.errors import KdsearchError, user_call
from kdsearch.core.values import Batch
from kdsearch.data.batches import batches_in_order
from kdsearch.data.items import MapStyle, Spawned
from kdsearch.networks.teachers import Teacher
from kdsearch.probe.evaluation import LEAST_BATCH, TeacherMeasurement, measure_teacher_batches
from kdsearch.study.fingerprint import digest_parts, image_keys, stable_repr
from kdsearch.tasks import Task

MOST_SHARED = 0.05  # of a split, that may be in another too; data sets have a few images twice


@dataclass(frozen=True)
class Survey:
    """What one split holds, and what the teacher knows of it."""

    known: TeacherMeasurement
    keys: Tensor  # (N,) int64, of the images, see `image_keys`
    digest: str  # of pixels and targets; where items change, of targets, their number and the `repr` of the data set
    repeats: bool  # are items the same whenever they are read under one seed?


def survey_split(
    name: str, data: MapStyle, first: Batch, teacher: Teacher, task: Task, batch: int, device: torch.device | str
) -> Survey:
    """Read a split once, run the teacher over it, look at every image and target.

    Args:
        name: Of the split, the subject of an error.
        first: Its first items as they were read before, on the host: what they are compared with.

    Raises:
        KdsearchError: an image of another shape than the first, values that are no numbers or not in [0, 1], targets
            that are not the task's, logits that are not finite; with the item.
    """
    keys, targets = list[Tensor](), list[Tensor]()

    def looked_at() -> Iterator[Batch]:
        for part in batches_in_order(data, max(batch, LEAST_BATCH), device):
            if found := wrong_images(part, first.images.shape[1:]) or wrong_targets(part, task):
                raise KdsearchError(found)
            keys.append(image_keys(part.images))
            targets.append(part.target.cpu())
            yield part

    try:
        known = measure_teacher_batches(teacher, looked_at(), task, device)
    except KdsearchError as error:
        raise KdsearchError(f"{name}: {error}") from None
    key = torch.cat(keys)
    return Survey(known, key, *digest_split(name, data, first, key, torch.cat(targets)))


def digest_split(name: str, data: MapStyle, first: Batch, keys: Tensor, targets: Tensor) -> tuple[str, bool]:
    """The digest of a split that was read, as `Survey` has it, and whether its items repeat.

    Args:
        first: Its first items as they were read another time.
        keys: (N,) int64, of all its images.
        targets: (N, ...), on the host.
    """
    size = len(first)
    same_images = torch.equal(keys[:size], image_keys(first.images))
    same_targets = torch.equal(targets[:size], first.target.cpu())
    parts: list[Tensor | str] = [str(len(keys)), *([targets] if same_targets else [])]
    with user_call(f"{name}: its repr()"):
        parts.append(keys if same_images else stable_repr(data))
    return digest_parts(*parts), same_images and same_targets


def wrong_images(batch: Batch, shape: torch.Size) -> str | None:
    """What keeps images from being those of a study, in words, with the first item that is wrong."""
    images = batch.images
    if images.shape[1:] != shape:
        found, allowed = tuple(images.shape[1:]), tuple(shape)
        return f"item {int(batch.ids[0])}: an image of {found} after ones of {allowed}; images of a data set are alike"
    if not images.numel():
        return f"item {int(batch.ids[0])}: an image of {tuple(shape)}, which has no pixels"
    low, high = (v.item() for v in torch.aminmax(images))
    if low >= 0 and high <= 1:  # NaN is neither
        return None
    flat = images.flatten(1)
    number = torch.isfinite(flat).all(1)
    wrong = ~number | (flat.amin(1) < 0) | (flat.amax(1) > 1)
    count, at = int(wrong.sum()), int(wrong.nonzero()[0])
    which = f"item {int(batch.ids[at])}" + (f" and {count - 1} more of the {len(batch)} around it" if count > 1 else "")
    if not number[at]:
        return f"{which}: an image contains NaN or infinity"
    values = f"{which}: image values from {flat[at].min():.3g} to {flat[at].max():.3g}; allowed: [0, 1]"
    if low >= 0 and 1 < high <= 255:
        return f"{values}: divide by 255, or give uint8 tensors"
    return (
        f"{values}, before normalisation (wrap a network that wants normalised images in kdsearch.networks.Normalised)"
    )


def wrong_targets(batch: Batch, task: Task) -> str | None:
    """What keeps targets from being the task's, in words, with the first item that is wrong."""
    if not (found := task.wrong(batch.target)):
        return None
    rows = range(len(batch))
    at = next((i for i in rows if task.wrong(batch.target[i : i + 1])), 0)
    return f"item {int(batch.ids[at])}: {task.wrong(batch.target[at : at + 1]) or found}"


def shared_items(one: MapStyle, other: MapStyle) -> float:
    """The share of the second data set's items that are items of the first: of one object, or files of one path."""
    there = set(_origins(one))
    own = _origins(other)
    return sum(origin in there for origin in own) / max(1, len(own))


def shared_images(one: Survey, other: Survey) -> float:
    """The share of the second split's images that are pixel for pixel in the first."""
    return torch.isin(other.keys, one.keys).double().mean().item()


def describe_overlap(share: float, how: str, split: str = "search_validation", other: str = "train") -> str:
    """What is to be said of a share of one split that is in another."""
    what = "learn from" if other == "train" else "were chosen by"
    who = "trials would be compared" if split == "search_validation" else "the winner would be confirmed"
    whose = "students" if other == "train" else "trials"
    return (
        f"{share:.1%} of {split}'s images are in {other} ({how}): {who} on what {whose} {what}; allowed: other images "
        "in each"
    )


def _origins(data: Any) -> list[Hashable]:
    """For each item which one of which data set, or which file, it is."""
    if isinstance(data, Spawned):
        return _origins(data.items)
    if isinstance(data, Subset):
        whole = _origins(data.dataset)
        return [whole[int(i)] for i in data.indices if -len(whole) <= int(i) < len(whole)]  # reading it tells of others
    if isinstance(data, ConcatDataset):
        return [origin for part in data.datasets for origin in _origins(part)]
    for attribute in ("files", "samples"):
        with user_call(f"{type(data).__name__}.{attribute}"):
            files = getattr(data, attribute, None)
        if isinstance(files, list | tuple) and len(files) == len(data):
            first = [file[0] if isinstance(file, list | tuple) and file else file for file in files]
            if all(isinstance(file, str | PathLike) for file in first):
                return [str(file) for file in first]
    return [(id(data), i) for i in range(len(data))]
