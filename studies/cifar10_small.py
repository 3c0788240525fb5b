"""CIFAR-10 at 16 x 16 pixels: a ResNet-20 that has seen 50,000 images, and a network a tenth its size that sees 2,000.

Few-shot distillation on natural images in colour, small enough for one core. The teacher is right on 80.7 % of the test
images. It has seen those that search-validation is carved from, so that disagreement there is measured on memory:
tables are marked, and what counts is the test set.

Data:    cifar10.npz (x_train, y_train, x_test, y_test) in the folder `data`, or the one that KDSEARCH_DATA names, or
         what torchvision downloads into it; cifar10_16px_resnet20.npz there is the teacher, otherwise trained here in
         12 minutes of one core and kept in the run folder.
Run:     kdsearch search cifar10_small      (about an hour on one core)
"""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy

import kdsearch as kd

torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much on a busy machine
FOLDER = Path(os.environ.get("KDSEARCH_DATA", "data"))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEACHER_STEPS = 14 * 390  # of 128 images: 14 epochs


def cifar10(split: str) -> kd.data.ArrayData:
    """The split "train" or "test", (N, 3, 32, 32) uint8."""
    if (FOLDER / "cifar10.npz").exists():
        return kd.data.load_arrays(FOLDER / "cifar10.npz", split=split)
    from torchvision.datasets import CIFAR10

    return kd.data.in_memory(CIFAR10(FOLDER, train=split == "train", download=True))


def half_size(data: kd.data.ArrayData) -> kd.data.ArrayData:
    """The mean of each 2 x 2 pixels, (N, 3, 16, 16) float in [0, 1]."""
    return kd.data.ArrayData(avg_pool2d(data.images / 255, 2), data.labels)


def resnet() -> nn.Module:
    return kd.networks.cifar_resnet(20)


def train_teacher(network: nn.Module) -> None:
    """14 epochs on all 50,000 training images, mildly augmented: flips, small shifts and scalings."""
    limits = {"horizontal_flip": None, "translate_x": 0.12, "translate_y": 0.12, "scale": 0.1}
    mild = kd.Policy(limits, 4, extent=0.999, fill="reflect")
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=5e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=TEACHER_STEPS)
    torch.manual_seed(0)
    network.train()
    for batch in kd.data.shuffled(seen, 128, TEACHER_STEPS, "teacher"):
        loss = cross_entropy(network(mild(avg_pool2d(batch.images, 2))), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def teacher() -> nn.Module | kd.Recipe:
    path = FOLDER / "cifar10_16px_resnet20.npz"
    return kd.networks.load_weights(resnet(), path) if path.exists() else kd.Recipe(resnet, train_teacher)


seen = cifar10("train")
order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))

study = kd.Study(
    name="cifar10_small",
    train=half_size(seen.subset(order[1_000:3_000])),
    search_validation=half_size(seen.subset(order[:1_000])),
    test=half_size(cifar10("test")),
    teacher=teacher(),
    student=partial(kd.networks.small_convnet, 16, channels=3),
    teacher_saw="both",
    classes=CLASSES,
    optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-2, fused=True),
    budget=kd.Budget(trials=8, epochs=12, steps=150, batch=64, confirmation=4),
)
