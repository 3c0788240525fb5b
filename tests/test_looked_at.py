"""What is looked at before anything is trained, and what a study may not be."""

import functools
import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

import kdsearch as kd
from kdsearch.core.errors import Diverged
from kdsearch.core.values import Outputs, ViewBatch
from kdsearch.data.batches import first_batch
from kdsearch.distill.phase import PolicySteps
from kdsearch.losses.logits import kd_loss
from kdsearch.losses.loss import Loss
from kdsearch.study.facts import search_identity
from kdsearch.study.fingerprint import image_keys, network_digest, student_digest
from kdsearch.study.preflight import check_inputs, make_ready, preflight
from kdsearch.study.study import Study, load_study
from kdsearch.study.survey import Survey, shared_items, survey_split
from kdsearch.study.wiring import names_of, study_task


def said_of(study: Study, tmp_path: Path | None = None) -> str:
    with pytest.raises(kd.KdsearchError) as caught:
        check_inputs(study) if tmp_path is None else preflight(study, tmp_path)
    said = str(caught.value)
    assert said.startswith("study")
    return said


class Named(Dataset):
    """Items of two classes or more, whose names the data set knows."""

    def __init__(self, names: Any, attribute: str = "classes") -> None:
        setattr(self, attribute, names)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), i / 40), i % 2


# Fields

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": [1, 2]}, "name is of type list; allowed: text"),
    "empty name": ({"name": " "}, "name ' ' has 1 letters; allowed: 1 to 100"),
    "long name": ({"name": "x" * 300}, "has 300 letters; allowed: 1 to 100"),
    "path as name": ({"name": "../x"}, "name '../x'; allowed: what can be the name of a folder"),
    "surrogate in name": ({"name": "a\ud800"}, r"name 'a\ud800'; allowed"),
    "control character in name": ({"name": "a\x1b[31m"}, r"name 'a\x1b[31m'; allowed"),
    "seed": ({"seed": int}, "seed is of type int; allowed: a whole number of 64 bits"),
    "large seed": ({"seed": 2**63}, "seed is 9223372036854775808; allowed: a whole number of 64 bits"),
    "budget": ({"budget": {"trials": 3}}, "budget is of type dict; allowed: a kdsearch.Budget"),
    "text in the budget": ({"budget": kd.Budget(batch="x")}, "budget.batch is 'x'; allowed: whole numbers, 2 or more"),
    "true in the budget": ({"budget": kd.Budget(trials=True)}, "budget.trials is True; allowed: whole numbers"),
    "half a step": ({"budget": kd.Budget(steps=2.5)}, "budget.steps is 2.5; allowed: whole numbers, 1 or more"),
    "endless": ({"budget": kd.Budget(steps=10**12)}, "budget.steps is 1000000000000; allowed: whole numbers, 1 to"),
    "endless policy steps": ({"budget": kd.Budget(policy_batch=10**400)}, "budget.policy_batch is 1000"),
    "views": ({"views": "tst"}, "views is 'tst'; allowed: a kdsearch.Views"),
    "objective": ({"objective": {"divergence": "1"}}, "objective is of type dict; allowed: weights of terms by name"),
    "floor": ({"floor": "0.3"}, "floor is '0.3'; allowed: a number of nats, or None"),
    "device": ({"device": 0}, "device is 0; allowed: text, such as 'cuda'"),
    "compiled": ({"compiled": 1}, "compiled is 1; allowed: True or False"),
    "readers": ({"readers": None}, "readers is None; allowed: a whole number"),
    "loss": ({"loss": "kd"}, "1 problem\n  loss is str; allowed: call it, as kdsearch.losses.kd()"),
    "another loss": (
        {"loss": len},
        "loss is builtin_function_or_method; allowed: one of kdsearch.losses, or a Loss",
    ),
    "no loss": ({"loss": []}, "loss is an empty list"),
    "space": ({"space": 3}, "space is 3; allowed: the name of a search space"),
    "classes as text": ({"classes": "cat"}, "classes is 'cat'; allowed: how many, or a list of their names"),
    "many classes": ({"classes": 2**64}, "classes: 18446744073709551616; allowed: 2 to 100000"),
    "one class": ({"classes": 1}, "classes: 1; allowed: 2 to 100000"),
    "true classes": ({"classes": True}, "classes is True; allowed: how many"),
    "two of one name": ({"classes": ["crane", "crane", "kite"]}, "classes 0 and 1 are both called 'crane'"),
    "no text": ({"classes": ["a", None]}, "the name of class 1 is None; allowed: text"),
    "surrogate": ({"classes": ["a", "\ud800"]}, r"the name of class 1 is '\ud800', which cannot be written"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_field_of_another_kind_is_one_sentence(what: str, tiny_study: Study) -> None:
    change, said = WRONG[what]
    assert said in said_of(replace(tiny_study, **change))


def test_a_search_says_so_too_before_it_makes_a_folder(tiny_study: Study, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for change in ({"name": [1, 2]}, {"name": "../x"}, {"budget": None}, {"seed": "1"}):
        with pytest.raises(kd.KdsearchError, match=next(iter(change))):
            kd.search(replace(tiny_study, **change), quiet=True)
    assert not [*tmp_path.iterdir()]


def test_numbers_of_policy_steps_are_counted_at_once_and_right() -> None:
    for steps in (PolicySteps(interval=3), PolicySteps(interval=7, warm_up=0.25), PolicySteps(pauses=(0.25, 0.5))):
        for epochs, size in ((4, 30), (10, 7), (6, 1)):
            turns = (steps.turns(epoch, epochs, size, 100, 64) for epoch in range(1, epochs + 1))
            assert steps.count(epochs, size, 100, 64) == sum(map(sum, turns))
    assert PolicySteps(interval=3).count(10**6, 10**7, 100, 64) == 3 * 10**12


# Classes


def test_classes_that_the_data_sets_have_in_another_order_or_number_are_refused(tiny_study: Study) -> None:
    cats = Named(("cat", "dog"))
    made = replace(tiny_study, train=cats, search_validation=Named(("cat", "dog")))
    assert study_task(replace(made, classes=2)).class_names == ("cat", "dog")  # not 0 and 1
    assert study_task(replace(made, classes=["Katze", "Hund"])).class_names == ("Katze", "Hund")
    assert "not those of train in its order, cat, dog (label 0 is 'cat' there, not 'dog')" in said_of(
        replace(made, classes=["dog", "cat"])
    )
    assert "classes: 3, but train has 2: cat, dog" in said_of(replace(made, classes=3))
    assert "3 names, but train has 2" in said_of(replace(made, classes=["a", "b", "c"]))
    more = replace(made, search_validation=Named(("cat", "cow", "dog"), "class_names"), classes=2)
    assert "train has 2 and search_validation 3, so that their labels mean different things" in said_of(more)
    assert "not in both: cow" in said_of(more)
    turned = replace(made, search_validation=Named(["dog", "cat"]), classes=2)
    assert "the same names in another order" in said_of(turned)


def test_names_of_classes_are_found_in_subsets_and_told_apart(tiny_study: Study) -> None:
    birds = Named([("crane", "bird"), ("crane", "bird")])  # as torchvision's ImageNet has them
    assert names_of("train", Subset(birds, [1])) == ("crane, bird", "crane, bird")
    made = replace(tiny_study, train=birds, search_validation=birds, classes=2)
    assert study_task(made).class_names == ("crane, bird (0)", "crane, bird (1)")
    for nothing in (Named(None), Named(3), Named([1, 2]), tiny_study.train):
        assert names_of("train", nothing) is None

    class Raising(Named):
        @property
        def class_names(self) -> Any:
            raise OSError("gone")

    with pytest.raises(kd.KdsearchError, match=r"train: its class names: OSError: gone \(test_looked_at.py, line"):
        names_of("train", Raising(None))


# Images


def spoilt(data: kd.data.ArrayData, item: int, value: float) -> kd.data.ArrayData:
    images = data.images.clone()
    images[item, 0, 3, 3] = value
    return kd.data.ArrayData(images, data.labels)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "item 80: an image contains NaN or infinity"),
        (float("-inf"), "item 80: an image contains NaN or infinity"),
        (200.0, "item 80: image values from 0 to 200; allowed: [0, 1]: divide by 255, or give uint8 tensors"),
        (-2.0, "item 80: image values from -2 to 1; allowed: [0, 1], before normalisation (wrap a network"),
    ],
)
@pytest.mark.parametrize("split", ["train", "search_validation"])
def test_one_pixel_of_any_image_is_looked_at(
    value: float, said: str, split: str, tiny_study: Any, tmp_path: Any
) -> None:
    study = replace(tiny_study, **{split: spoilt(getattr(tiny_study, split), 80, value)})
    found = re.sub(r"to 0\.\d+;", "to 1;", said_of(study, tmp_path))
    assert f"{split}: {said}" in found


def test_an_image_of_another_shape_is_named_wherever_it_stands(tiny_study: Study, tmp_path: Path) -> None:
    items = [(image, int(label)) for image, label in zip(*vars(tiny_study.train).values(), strict=True)]
    items += [(torch.rand(1, 8, 8), 1)]
    said = said_of(replace(tiny_study, train=items, budget=replace(tiny_study.budget, batch=2)), tmp_path)
    assert "train: item 100: " in said and "(1, 8, 8)" in said and "(1, 16, 16)" in said


class Sick(nn.Module):
    """NaN where an image is as told."""

    def __init__(self, network: nn.Module, ill: Any) -> None:
        super().__init__()
        self.network, self.ill = network, ill

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).masked_fill(self.ill(images)[:, None], float("nan"))


def test_a_teacher_that_is_no_number_somewhere_is_said_to_be(tiny_study: Study, tmp_path: Path) -> None:
    item = tiny_study.search_validation.images[90]
    once = Sick(tiny_study.teacher, lambda x: (x == item).flatten(1).all(1))
    said = said_of(replace(tiny_study, teacher=once), tmp_path)
    assert "search_validation: the teacher's logits are not finite on item 90" in said
    kept = torch.cat([tiny_study.train.images, tiny_study.search_validation.images]).flatten(1).sum(1)
    bright = Sick(tiny_study.teacher, lambda x: x.flatten(1).sum(1) > kept.max() + 1)  # as inverted digits are
    said = said_of(replace(tiny_study, teacher=bright), tmp_path)
    assert re.search(r"the teacher's logits are not finite on images after \w+, which the search would show it", said)


def test_a_run_that_a_teacher_spoils_later_says_that_it_was_the_teacher(tiny_study: Study) -> None:
    ill = Sick(tiny_study.teacher, lambda x: torch.arange(len(x)) == 0)
    phase = kd.Phase((kd.losses.kd(),), epochs=1, steps=2, batch=8)
    for teacher, said in ((ill, "epoch 1: the teacher's logits are not finite"), (tiny_study.teacher, None)):
        distiller = kd.Distiller(
            kd.networks.Teacher(teacher),
            kd.networks.small_convnet(2),
            None,
            kd.Classification.of(10),
            optimizer=exploding,
        )
        with pytest.raises(Diverged, match=said or "epoch 1: a loss is not finite"):
            list(distiller.run(phase, tiny_study.train, tiny_study.search_validation))


def exploding(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e30)


# What is in both splits


def test_items_of_one_object_and_one_file_are_the_same(tmp_path: Path) -> None:
    whole = Named(("cat", "dog"))
    assert shared_items(whole, whole) == 1 and shared_items(whole, Named(("cat", "dog"))) == 0
    assert shared_items(Subset(whole, range(20)), Subset(whole, range(20, 40))) == 0
    assert shared_items(Subset(whole, range(20)), Subset(whole, range(10, 30))) == 0.5
    assert shared_items(ConcatDataset([Named(("a", "b")), whole]), Subset(Subset(whole, [3, 4]), [1])) == 1
    files = [Named(("cat", "dog")) for _ in range(2)]
    for data in files:
        data.samples = [(f"images/{i}.png", 0) for i in range(40)]  # as torchvision's ImageFolder has them
    assert shared_items(*files) == 1


def test_search_validation_that_is_in_train_is_refused_and_a_few_twins_are_said(
    tiny_study: Study, tmp_path: Path
) -> None:
    train, validation = tiny_study.train, tiny_study.search_validation
    said = "100.0% of search_validation's images are in train (the same {}): trials would be compared on what students"
    assert said.format("items") in said_of(replace(tiny_study, train=validation), tmp_path)
    copy = kd.data.ArrayData(validation.images.clone(), validation.labels)
    assert said.format("pixels") in said_of(replace(tiny_study, train=copy), tmp_path)
    twins = kd.data.ArrayData(
        torch.cat([train.images, validation.images[:2]]), torch.cat([train.labels, copy.labels[:2]])
    )
    (warning,) = preflight(replace(tiny_study, train=twins), tmp_path).warnings
    assert warning.startswith("2.0% of search_validation's images are in train (the same pixels)")


# Which study it is


def test_keys_of_images_change_with_any_bit_and_nothing_else() -> None:
    images = torch.rand(5, 3, 7, 9)
    keys = image_keys(images)
    assert torch.equal(keys[2:4], image_keys(images[2:4])) and len(keys.unique()) == 5
    assert torch.equal(keys, image_keys(images.contiguous(memory_format=torch.channels_last)))
    other = images.clone()
    other[3, 2, 6, 8] = torch.nextafter(other[3, 2, 6, 8], torch.tensor(2.0))
    assert (image_keys(other) != keys).tolist() == [False, False, False, True, False]
    assert (image_keys(images.transpose(2, 3)) != keys).all()
    assert image_keys(torch.zeros(2, 1, 3, 1, dtype=torch.uint8)).tolist() == [0, 0]  # 3 bytes are no whole word


def halved(logits: Tensor) -> Tensor:
    return logits / 2


def bent(logits: Tensor) -> Tensor:
    return logits.relu()


def small(layer: Any = nn.ReLU, p: float = 0.0, momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), layer(), nn.BatchNorm1d(4, momentum=momentum), nn.Dropout(p))


def test_a_student_is_known_by_its_layers_their_numbers_and_its_start() -> None:
    fixed = nn.Linear(64, 3).state_dict()

    def loaded(value: float) -> nn.Module:
        network = nn.Linear(64, 3)
        network.load_state_dict({**fixed, "bias": fixed["bias"] + value})
        return network

    class Mine(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return halved(super().forward(images))

    class Same(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return bent(super().forward(images))

    class Changed(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).tanh()

    for kind in (Same, Changed):
        kind.__name__ = "Mine"
    made = [small, partial(small, nn.Tanh), partial(small, p=0.5), partial(small, momentum=0.9),
            partial(loaded, 0.0), partial(loaded, 1.0), *(partial(kind, 64, 3) for kind in (Mine, Same, Changed)),
            ]  # fmt: skip
    digests = [student_digest(factory) for factory in made]
    assert len({*digests}) == len(made)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert digests == [student_digest(factory) for factory in made]
    assert torch.equal(torch.get_rng_state(), before)
    random = torch.Generator()
    own = partial(lambda: nn.Linear(4, 3).requires_grad_(random.seed() > 0))  # its start is another each time, or not
    assert student_digest(own) == student_digest(own)
    means = [network_digest(kd.networks.Normalised(small(), [mean], [1.0])) for mean in (0.1, 0.2)]
    assert means[0] != means[1]


class Jittered(Dataset):
    """Items that are others each time, whatever is seeded."""

    def __init__(self, data: kd.data.ArrayData) -> None:
        self.data, self.read = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        image, label = self.data[i]
        return (image * (1 - self.read % 7 / 100)), label


def accuracy_twice(logits: Tensor, labels: Tensor) -> float:
    return 2 * (logits.argmax(1) == labels).double().mean().item()


def content(data: Any, study: Study) -> Survey:
    task = kd.Classification.of(study.classes)
    return survey_split("train", data, first_batch(data, 64), kd.networks.Teacher(study.teacher), task, 32, "cpu")


def test_other_students_losses_and_metrics_are_another_search(tiny_study: Study, tmp_path: Path) -> None:
    def own(change: float) -> kd.Loss:
        return kd.Loss("mine", lambda student, teacher, views: change * (student.logits - teacher.logits).norm(1))

    checked = preflight(tiny_study, tmp_path)

    def kind(**change: Any) -> dict[str, Any]:
        return search_identity(replace(checked, ready=replace(checked.ready, study=replace(tiny_study, **change))))

    before = kind()
    assert before == kind() and before["train images and labels"] == content(tiny_study.train, tiny_study).digest
    for change, differs in (
        ({"student": lambda: nn.Sequential(kd.networks.small_convnet(2), nn.Dropout(0.1))}, "student"),
        ({"loss": own(1.0)}, "code of the losses"),
        ({"metric": accuracy_twice}, "code of the metric"),
    ):
        after = kind(**change)
        assert differs in {key for key in after if after[key] != before[key]}
    assert kind(loss=own(1.0)) == kind(loss=own(1.0)) != kind(loss=own(2.0))


def test_other_images_and_labels_have_another_content(tiny_study: Study) -> None:
    train = tiny_study.train
    changed = [train, replace(train, images=train.images * 0.5), replace(train, labels=train.labels.roll(1)),
               train.subset(torch.arange(99)), train.subset(torch.arange(99, -1, -1))]  # fmt: skip
    assert len({content(data, tiny_study).digest for data in changed}) == len(changed)
    copy = [(image.clone(), int(label)) for image, label in zip(train.images, train.labels, strict=True)]
    assert content(copy, tiny_study).digest == content(train, tiny_study).digest


def test_items_that_change_count_by_labels_number_and_repr(tiny_study: Study) -> None:
    train = tiny_study.train
    one, again, fewer = (content(Jittered(data), tiny_study) for data in (train, train, train.subset(torch.arange(99))))
    assert not one.repeats and one.digest == again.digest != fewer.digest
    relabelled = content(Jittered(replace(train, labels=train.labels.roll(1))), tiny_study)
    assert relabelled.digest != one.digest
    assert content(train, tiny_study).repeats


def test_items_that_change_are_said(tiny_study: Study, tmp_path: Path) -> None:
    *_, doubt = make_ready(replace(tiny_study, train=Jittered(tiny_study.train)), check_inputs(tiny_study), tmp_path)
    assert doubt[0].startswith("train: its items are others each time they are read")


# A weak teacher, and a policy that never learns


def test_a_weak_teacher_on_few_images_is_doubted_and_not_refused(tiny_study: Study, tmp_path: Path) -> None:
    data = tiny_study.search_validation
    right = kd.networks.Teacher(tiny_study.teacher)(data.images).logits.argmax(1) == data.labels
    rows = right.nonzero()[:12, 0]
    labels = torch.cat([data.labels[rows][:3], (data.labels[rows][3:] + torch.arange(1, 10)) % 10])
    weak = kd.data.ArrayData(data.images[rows], labels)  # right on 3 of 12, of ten classes
    warnings = preflight(replace(tiny_study, search_validation=weak), tmp_path).warnings
    assert (
        "the teacher is right on 25.0% of search-validation, chance is 10.0%: of 12 images that is too few"
        in warnings[0]
    )
    none = replace(weak, labels=(data.labels[rows] + torch.arange(12) % 9 + 1) % 10)
    assert "chance is 10.0%: 1 problem" in said_of(replace(tiny_study, search_validation=none), tmp_path)


def test_a_budget_without_a_policy_step_is_said(tiny_study: Study, tmp_path: Path) -> None:
    short = replace(tiny_study, budget=replace(tiny_study.budget, epochs=1, steps=2))
    assert "the policy never learns: no policy step in 2 student steps, with one every 3" in " ".join(
        preflight(short, tmp_path).warnings
    )


# The floor


@pytest.mark.long
def test_default_runs_of_the_digits_study_end_inside_the_floor(tmp_path: Path) -> None:
    """At a rate of .1 of the dual variable they ended .1 to .2 nats over it."""
    ready = preflight(load_study("digits")[0], tmp_path).ready
    steps = ready.policy_steps(ready.space.settings())
    over = []
    for seed in range(3):
        torch.manual_seed(seed)
        distiller = kd.Distiller(
            ready.teacher,
            ready.student(),
            ready.policy(ready.space.settings()),
            ready.task,
            optimizer=ready.study.optimizer,
            seed=seed,
            clean_loss=ready.clean.loss,
        )
        records = list(distiller.run(ready.phase(steps), ready.study.train, ready.study.search_validation))
        over += [record.floor_violation for record in records[-3:]]
    assert sum(over) / len(over) < 0


# Other cases of the same kinds


class Scaled(nn.Module):
    """A student with a value, a method and a function of its own that its `repr` does not show."""

    def __init__(self, scale: float = 1.0, squash: Any = torch.tanh) -> None:
        super().__init__()
        self.layer, self.scale, self.squash = nn.Linear(4, 3), scale, squash

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images)

    def head(self, images: Tensor) -> Tensor:
        return self.squash(self.layer(images)) * self.scale


class OtherHead(Scaled):
    def head(self, images: Tensor) -> Tensor:
        return self.layer(images) * self.scale


OtherHead.__name__, OtherHead.__qualname__ = "Scaled", "Scaled"


class Hooked(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.layer.register_forward_hook(lambda module, given, result: result * 2)


Hooked.__name__, Hooked.__qualname__ = "Scaled", "Scaled"


def test_a_student_is_known_by_its_methods_values_hooks_and_frozen_weights() -> None:
    made = [Scaled, partial(Scaled, 2.0), partial(Scaled, squash=torch.relu), partial(Scaled, squash=bent), OtherHead,
            Hooked, lambda: Scaled().requires_grad_(False)]  # fmt: skip
    digests = [student_digest(factory) for factory in made]
    assert len({*digests}) == len(made) and digests == [student_digest(factory) for factory in made]
    log = logging.Logger("one")
    logged = student_digest(partial(Scaled, squash=log))
    log.setLevel(logging.DEBUG)
    assert student_digest(partial(Scaled, squash=log)) == logged
    counted = iter(range(9))
    assert student_digest(lambda: Scaled(next(counted))) == student_digest(lambda: Scaled(next(counted)))


class Still(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        pass


def test_an_optimizer_is_known_by_its_groups_and_its_code(tiny_study: Study, tmp_path: Path) -> None:
    def grouped(weights: slice, **numbers: float) -> Any:
        return lambda given: torch.optim.SGD([{"params": [*given][weights], **numbers}], lr=0.01)

    whole = slice(None)
    made = [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.SGD, lr=0.2), grouped(whole), grouped(whole, lr=0.3),
            grouped(slice(2)), grouped(slice(2, None)), partial(Still, lr=0.1)]  # fmt: skip
    checked = preflight(tiny_study, tmp_path)
    known = []
    for optimizer in made:
        study = replace(checked.ready.study, optimizer=optimizer)
        known.append(search_identity(replace(checked, ready=replace(checked.ready, study=study)))["optimizer"])
    assert len({*known}) == len(made)


def test_items_without_pixels_and_what_lists_its_files_oddly(tiny_study: Study, tmp_path: Path) -> None:
    data = tiny_study.train
    empty = kd.data.ArrayData(torch.zeros(100, 1, 0, 8), data.labels)
    assert "item 0: an image of (1, 0, 8), which has no pixels" in said_of(replace(tiny_study, train=empty))
    beyond = Subset(data, [*range(80), 1000])
    assert "train: item 80 of Subset: IndexError" in said_of(replace(tiny_study, train=beyond), tmp_path)
    items = Named(["a", "b"])
    for files in (torch.zeros(40, 3), np.array(["a.png"] * 40)):
        items.files = files
        assert shared_items(items, items) == 1.0


def test_a_search_is_told_its_device_sampler_and_storage_in_words(tiny_study: Study, tmp_path: Path) -> None:
    for given, said in (
        ({"device": torch.device("cpu")}, "device is of type device; allowed: text"),
        ({"device": 3}, "device is 3; allowed: text"),
        ({"sampler": ["tpe"]}, "unknown sampler"),
        ({"storage": 3}, "storage '3' is not a URL"),
    ):
        with pytest.raises(kd.KdsearchError, match=said):
            kd.search(tiny_study, out=tmp_path / "run", quiet=True, **given)
    assert not (tmp_path / "run").exists()


def test_losses_that_fail_or_weigh_nothing_sensible_are_one_sentence(tiny_study: Study, tmp_path: Path) -> None:
    def own(what: Any, name: Any = "own") -> kd.Loss:
        return kd.Loss(name, lambda student, teacher, views: what(student))

    for what, said in (
        (lambda student: 1 / 0, "loss own: ZeroDivisionError: division by zero"),
        (lambda student: None, "loss own: it gave NoneType; allowed: a tensor"),
        (lambda student: student.logits.sum(1) * float("nan"), "first training step are not finite"),
    ):
        assert said in said_of(replace(tiny_study, loss=own(what)), tmp_path)
    kl = kd.losses.kd()
    for weight in (float("nan"), -1.0, "x", kd.losses.Ramp(0.0, float("inf"))):
        assert "its weight is" in said_of(replace(tiny_study, loss=kl.times(weight)))
    assert "loss is called 3; allowed: text" in said_of(replace(tiny_study, loss=own(len, 3)))


class Narrow(nn.Module):
    """Fewer logits for many images than for two."""

    def __init__(self) -> None:
        super().__init__()
        self.network = kd.networks.small_convnet(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[:, : 10 if len(images) <= 2 else 7]


def test_a_student_that_gives_other_classes_later_on_is_one_sentence(tiny_study: Study, tmp_path: Path) -> None:
    assert "student: 7 logits; the task has 10 classes" in said_of(replace(tiny_study, student=Narrow), tmp_path)


def test_a_teacher_that_knows_which_class_is_frequent_alone_is_told(tiny_study: Study, tmp_path: Path) -> None:
    data, teacher = tiny_study.search_validation, kd.networks.Teacher(tiny_study.teacher)
    answers = teacher(data.images).logits.argmax(1)
    rows = torch.cat([(answers == 3).nonzero()[:9, 0], (answers != 3).nonzero()[:1, 0]])
    frequent = kd.data.ArrayData(data.images[rows], torch.full((len(rows),), 3))
    warnings = " ".join(preflight(replace(tiny_study, search_validation=frequent), tmp_path).warnings)
    assert "always answering 'digit 3' is on 100.0%: it may know nothing but which class is frequent" in warnings


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_of_8_bits_are_the_same_numbers_on_any_device() -> None:
    data = kd.data.ArrayData(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), torch.zeros(1, dtype=torch.long))
    assert torch.equal(first_batch(data, 1).images, first_batch(data, 1, "cuda").images.cpu())


def test_losses_are_told_apart_by_all_that_makes_them(tiny_study: Study, tmp_path: Path) -> None:
    def wrapped(factor: float) -> Loss:
        @functools.wraps(kd_loss)
        def function(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
            return factor * kd_loss(student.logits, teacher.logits)

        return Loss("mine", function)

    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

    found = preflight(tiny_study, tmp_path)

    def hashed(loss: Loss) -> str:
        ready = replace(found.ready, study=replace(found.ready.study, loss=loss))
        return search_identity(replace(found, ready=ready))["code of the losses"]

    kd2, kd9 = (replace(kd.losses.kd(t), name="one name") for t in (2.0, 9.0))
    assert hashed(kd2) == hashed(replace(kd.losses.kd(2.0), name="one name")) != hashed(kd9)
    assert hashed(kd.losses.kd(2.0)) != hashed(kd.losses.kd(2.0000000001))
    assert hashed(replace(kd2, relational=True)) != hashed(kd2)
    assert hashed(wrapped(1.0)) == hashed(wrapped(1.0)) != hashed(wrapped(2.0))
    assert hashed(Loss("mine", Scaled(1.0))) == hashed(Loss("mine", Scaled(1.0))) != hashed(Loss("mine", Scaled(2.0)))


def test_probabilities_in_the_place_of_logits_are_told(tiny_study: Study, tmp_path: Path) -> None:
    def soft(network: nn.Module) -> nn.Module:
        return nn.Sequential(network, nn.Softmax(1))

    def warnings_of(study: Study) -> str:
        return "\n".join(preflight(study, tmp_path).warnings)

    plain = tiny_study.student
    told = warnings_of(replace(tiny_study, student=lambda: soft(plain())))
    assert "student: its logits are 0 or more and sum to 1" in told and "teacher: its logits" not in told
    assert "its logits are 0 or more" not in warnings_of(tiny_study)
