"""A pair that warns: CIFAR-10 at 16 gray pixels, a teacher that is right on 55 % of the test images.

Such a teacher knows little around the data that could be handed over. A study file for the benchmarks that take one:

    python benchmarks/variants.py --study benchmarks/cifar10_gray.py --seeds 600 8 --rows learned,rand_augment,...

Data:    cifar10.npz in the folder `data`, or the one that KDSEARCH_DATA names.
         The teacher is trained here, in a minute.
"""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy

import kdsearch as kd

torch.set_num_threads(1)
FOLDER = Path(os.environ.get("KDSEARCH_DATA", "data"))
TEACHER_STEPS = 7 * 250  # of 64 images: 7 epochs


def gray(data: kd.data.ArrayData) -> kd.data.ArrayData:
    """The mean of colours and of each 2 x 2 pixels, (N, 1, 16, 16) float in [0, 1]."""
    return kd.data.ArrayData(avg_pool2d(data.images / 255, 2).mean(1, keepdim=True), data.labels)


def teacher() -> nn.Module:
    return kd.networks.small_convnet(28)


def train_teacher(network: nn.Module) -> None:
    """7 epochs on 16,000 training images as they are."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=TEACHER_STEPS)
    torch.manual_seed(0)
    network.train()
    for batch in kd.data.shuffled(seen, 64, TEACHER_STEPS, "teacher"):
        loss = cross_entropy(network(batch.images), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


images = kd.data.load_arrays(FOLDER / "cifar10.npz", split="train")
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
seen = gray(images.subset(order[:16_000]))

study = kd.Study(
    name="cifar10_gray",
    train=seen.subset(torch.arange(1_000)),
    search_validation=gray(images.subset(order[16_000:17_000])),
    test=gray(kd.data.load_arrays(FOLDER / "cifar10.npz", split="test")).subset(torch.arange(4_000)),
    teacher=kd.Recipe(teacher, train_teacher),
    student=partial(kd.networks.small_convnet, 6),
    teacher_saw="train",
    classes=10,
    optimizer=partial(torch.optim.AdamW, lr=2e-2, weight_decay=1e-2, fused=True),
    budget=kd.Budget(trials=8, epochs=10, steps=90, batch=64, confirmation=3),
)
