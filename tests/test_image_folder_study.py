"""The study to copy for one's own pictures runs on pictures, after nothing but its paths was filled in."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.study.catalogue import find_shipped
from kdsearch.study.study import load_study

COLOURS = {"cat": (200, 60, 60), "dog": (60, 200, 60), "ship": (60, 60, 200)}
PATHS = {"TRAIN": "train", "VALIDATION": "validation", "TEACHER": "teacher.pth"}
SHORTER = {  # how much is trained is not what is shown
    "SIDE = 64": "SIDE = 16",
    "resnet34": "resnet18",
    "readers=2": 'space="geometric"',
    "trials=8, epochs=10, steps=50, batch=32, confirmation=4": "1, 1, 1, 4, 0, look_operations=0",
}
MEAN, STD = (torch.tensor(v).view(-1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """JPEGs of three colours, noisy, of several sizes, and a teacher that tells them apart, as a trainer saves it."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 10)):
        for name, colour in COLOURS.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noisy = np.clip(np.array(colour) + random.normal(0, 30, (40 + i, 50, 3)), 0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i}.jpg")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3).eval()
    train = kd.data.image_folder("train", size=16)
    images = torch.stack([train[i][0] for i in range(len(train))]).float()
    labels = torch.tensor([int(train[i][1]) for i in range(len(train))])
    with torch.no_grad():  # the last layer alone, by least squares on what the untrained rest says of the images
        head, network.fc = network.fc, torch.nn.Identity()
        said = network((images / images.max() - MEAN) / STD)
        scale = said.std(0) + 1e-6
        said = torch.cat([(said - said.mean(0)) / scale, torch.ones(len(said), 1)], 1)
        solved = torch.linalg.lstsq(said.T @ said + torch.eye(513), said.T @ torch.eye(3)[labels]).solution * 20
        network.fc = head
        mean = network_mean(network, (images / images.max() - MEAN) / STD)
        head.weight.copy_(solved[:-1].T / scale)
        head.bias.copy_(solved[-1] - head.weight @ mean)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 90, "state_dict": state}, tmp_path / "teacher.pth")
    return tmp_path


def network_mean(network, images):
    """Mean of what the last layer of a resnet is given."""
    seen = []
    hook = network.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network(images)
    hook.remove()
    return seen[0].mean(0)


def test_it_runs_when_its_three_paths_are_filled_in(pictures, kdsearch):
    kdsearch("copy", "image_folder")
    text = (pictures / "image_folder.py").read_text()
    for name, path in PATHS.items():
        assert text.count(f'{name} = "path/to/{path}"') == 1
        text = text.replace(f'{name} = "path/to/{path}"', f'{name} = "{path}"')
    for long, short in SHORTER.items():
        assert text.count(long) == 1
        text = text.replace(long, short)
    (pictures / "image_folder.py").write_text(text)
    result = kd.search("./image_folder.py", quiet=True)
    trials = kd.frames(result.folder)["trials"]
    assert set(trials["state"]) == {"COMPLETE"} and "trial 0" in trials["run"].tolist()
    assert kd.frames(result.folder)["studies"]["classes"].tolist() == ['["cat", "dog", "ship"]']


def test_before_they_are_filled_in_it_names_the_first():
    with pytest.raises(KdsearchError, match=r"path/to/train: .*folder"):
        load_study(str(find_shipped("studies", "image_folder")))
