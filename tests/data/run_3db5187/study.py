"""Digits in seconds, as a study was written for 3db5187."""

from functools import partial

import torch
from torch import nn

import kdsearch as kd

train, validation, _ = kd.digits()


def train_teacher(teacher):
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for batch in kd.shuffled(train, 64, 150, 0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(batch.images), batch.target).backward()
        optimizer.step()


def student():
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 10))


study = kd.Study(
    name="then",
    train=train.subset(torch.arange(60)),
    search_validation=validation.subset(torch.arange(60)),
    teacher=kd.Recipe(lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)), train_teacher),
    teacher_saw="train",
    student=student,
    classes=10,
    space="space.toml",
    optimizer=partial(torch.optim.AdamW, lr=5e-2),
    budget=kd.Budget(trials=2, epochs=2, steps=4, batch=16, confirmation=1),
)
