"""CIFAR-10: a ResNet-56 that is right on 93.39 % of the test images, and a ResNet-20 with a third of its weights.

The teacher is a published checkpoint. It has seen all 50,000 training images, those that search-validation is carved
from included, so that disagreement there is measured on memory: tables are marked, and what counts is the test set.

Without a GPU 3 trials on 10,000 images, 3 epochs each (`--trials 8 --epochs 8` for a longer search); with one 20 trials
on 45,000 images, 20 epochs each.

Data:    cifar10.npz (x_train, y_train, x_test, y_test) and cifar10_resnet56.npz in the folder `data`, or the one that
         KDSEARCH_DATA names; what is not there is downloaded into it.
Run:     kdsearch search cifar10_resnet56_resnet20
"""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

import kdsearch as kd

GPU = torch.cuda.is_available()
FOLDER = Path(os.environ.get("KDSEARCH_DATA", "data"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # that the checkpoint was trained with
CHECKPOINT = (  # Idelbayev, Proper ResNet implementation for CIFAR10/CIFAR100 in PyTorch; 93.39 % is its own figure
    "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet56-4bfd9763.th"
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(split: str) -> kd.data.ArrayData:
    """The split "train" or "test", (N, 3, 32, 32) uint8."""
    if (FOLDER / "cifar10.npz").exists():
        return kd.data.load_arrays(FOLDER / "cifar10.npz", split=split)
    from torchvision.datasets import CIFAR10

    return kd.data.in_memory(CIFAR10(FOLDER, train=split == "train", download=True))


def resnet(depth: int) -> nn.Module:
    return kd.networks.Normalised(kd.networks.cifar_resnet(depth), MEAN, STD)


def teacher() -> nn.Module:
    path = FOLDER / "cifar10_resnet56.npz"
    if not path.exists():
        path = path.with_suffix(".th")
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(CHECKPOINT, str(path), hash_prefix="4bfd9763")
    return kd.networks.load_weights(resnet(56), path)


seen = cifar10("train")
order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))
validation = 5_000 if GPU else 1_000

study = kd.Study(
    name="cifar10_resnet56_resnet20",
    train=seen.subset(order[5_000 : None if GPU else 15_000]),
    search_validation=seen.subset(order[:validation]),
    test=cifar10("test"),
    teacher=teacher(),
    student=partial(resnet, 20),
    teacher_saw="both",
    classes=CLASSES,
    optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    device="cuda" if GPU else "cpu",
    precision="bfloat16" if GPU else "float32",
    budget=kd.Budget(
        trials=20 if GPU else 3,
        epochs=20 if GPU else 3,
        steps=351 if GPU else 78,  # the training images once
        batch=128,
        confirmation=3 if GPU else 0,
    ),
)
