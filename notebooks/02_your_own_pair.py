# %% [markdown]
# # Your own pair: a folder of images and a checkpoint
#
# The commonest case: images in class folders, a teacher in a `.pth` file, a student to be trained. The next cell
# makes both, so that the notebook runs as it is: 32-pixel pieces of two photographs that scikit-learn ships, and the
# checkpoint of a network that was trained on them. With your own, skip it and fill in three paths.

# %%
import os
from pathlib import Path

import PIL.Image
import torch
from sklearn.datasets import load_sample_images

import kdsearch as kd

SHORT = os.environ.get("KDSEARCH_SHORT") == "1"  # a few seconds, to see that all of it runs
torch.set_num_threads(1)
home = Path("pair")
for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
    pieces = [photograph[y : y + 32, x : x + 32] for y in range(0, 384, 32) for x in range(0, 640, 32)]
    for i, piece in enumerate(pieces):
        folder = home / ("train" if i % 2 else "val") / name
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(piece).save(folder / f"{i:03d}.jpg")


def network():
    return kd.networks.small_convnet(16, classes=2, channels=3)


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # as ImageNet's networks want their images
torch.manual_seed(0)
made = kd.networks.Normalised(network(), MEAN, STD)
optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
pieces = kd.data.in_memory(kd.data.image_folder(home / "train", size=32))
for batch in kd.data.shuffled(pieces, 64, 40 if SHORT else 200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(made(batch.images), batch.target).backward()
    optimizer.step()
weights = {f"module.{name}": tensor for name, tensor in made.network.state_dict().items()}
torch.save({"state_dict": weights}, home / "teacher.pth")

# %% [markdown]
# From here on all is as it would be with yours. The three paths:

# %%
TRAIN, VALIDATION, TEACHER = home / "train", home / "val", home / "teacher.pth"

# %% [markdown]
# Folders that fit into memory are read once; larger ones stay files, read by `kd.Study(readers=4)` processes. The
# classes are the folders. What a picture has transparent becomes black.

# %%
train = kd.data.image_folder(TRAIN, size=32)
train

# %% [markdown]
# The checkpoint may hold its weights under `state_dict` and with `module.` before their names. A network that wants
# normalised images is wrapped in `Normalised`, as everything else here has images in [0, 1]. A torchvision network
# with its weights is `kd.networks.torchvision_model("resnet18", classes=2, weights=TEACHER)`, its student one from
# `torchvision.models` or timm.

# %%
teacher = kd.networks.Normalised(kd.networks.load_weights(network(), TEACHER), MEAN, STD)
data = kd.data.in_memory(train)
study = kd.Study(
    name="own_pair",
    train=data.subset(torch.arange(0, len(data), 6)),  # few images: where augmentation matters most
    search_validation=kd.data.in_memory(kd.data.image_folder(VALIDATION, size=32)),
    teacher=teacher,
    student=lambda: kd.networks.small_convnet(4, classes=2, channels=3),
    classes=train.class_names,
    teacher_saw="train",
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-2),
    budget=kd.Budget(1, 1, 6, 32, 0, look_operations=1) if SHORT else kd.Budget(3, 8, 20, 32, 2),
)
study

# %% [markdown]
# Before anything is trained, the search looks at all of it: data, networks, memory and time, and refuses what cannot
# be meant in one sentence. It costs about (trials + 6 references + 8 confirmation runs a seed) x epochs x steps
# student steps.

# %%
result = kd.search(study)

# %%
result

# %%
kd.analysis.policy_sheet(result.best, study.train.images[[0, -1]], most=4)
