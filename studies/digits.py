"""Handwritten digits: a convolutional teacher, and a student thirty times smaller that sees 200 images.

Few-shot distillation, where augmentation matters most. Real images that scikit-learn ships, 1x16x16; the teacher is
trained here, on 497 of the 797 training images alone, and kept in the run folder. The winner is confirmed on the other
300, which no teacher, student or trial has seen. A search never touches the test images.

Run:     kdsearch search digits      (about 4 minutes on 2 cores)
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import kdsearch as kd

torch.set_num_threads(1)  # networks this small gain nothing from more, and lose much on a busy machine
train, search_validation, test = kd.data.digits()
SEEN, CONFIRM = torch.arange(497), torch.arange(497, 797)  # of the training images


def teacher() -> nn.Module:
    return kd.networks.small_convnet(24)


def train_teacher(network: nn.Module) -> None:
    """600 steps of 64 images on 497 training images, mildly augmented: small turns, shifts and scalings."""
    mild = kd.Policy({"rotate": 15.0, "translate_x": 0.1, "translate_y": 0.1, "scale": 0.1}, 2, extent=0.999)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=600)
    torch.manual_seed(0)
    network.train()
    for batch in kd.data.shuffled(train.subset(SEEN), 64, 600, "teacher"):
        loss = cross_entropy(network(mild(batch.images)), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


study = kd.Study(
    name="digits",
    train=train.subset(torch.arange(200)),
    search_validation=search_validation,
    confirm=train.subset(CONFIRM),
    test=test,
    teacher=kd.Recipe(teacher, train_teacher),
    student=lambda: kd.networks.small_convnet(4),
    teacher_saw="train",
    classes=10,
    optimizer=partial(torch.optim.AdamW, lr=2e-2, weight_decay=1e-2, fused=True),
    budget=kd.Budget(trials=8, epochs=10, steps=30, batch=64, confirmation=4),
)
