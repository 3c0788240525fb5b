"""What the teacher says of base views that come back is asked for once and looked up: nothing else changes."""

import gc
import io
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_segmentation import Segmentation
from torch import Tensor, nn
from torch.nn.functional import dropout

import kdsearch.distill.answers as answers
from kdsearch.augment.bases import as_base, base_of_parts
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.core.errors import Diverged, KdsearchError
from kdsearch.core.maths import generator
from kdsearch.core.values import Outputs, ViewBatch
from kdsearch.data.batches import ArrayData
from kdsearch.data.items import Spawned
from kdsearch.distill.answers import AnswerTable, AnswerTables, Versions, ask_all
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.distill.records import EpochRecord
from kdsearch.distill.views import Views
from kdsearch.losses.features import at, hint
from kdsearch.losses.logits import kd
from kdsearch.losses.loss import Loss
from kdsearch.networks.convnets import small_convnet
from kdsearch.networks.ensemble import Ensemble
from kdsearch.networks.teachers import Teacher
from kdsearch.probe.disagreement import Probe, plan_look
from kdsearch.probe.evaluation import TeacherMeasurement
from kdsearch.study.base_view import BaseView, find_base
from kdsearch.study.costs import estimate_seconds
from kdsearch.study.preflight import _decide_answers
from kdsearch.study.ready import Ready
from kdsearch.study.run import run_trial
from kdsearch.study.space import SearchSpace
from kdsearch.study.study import Budget, Study
from kdsearch.study.wiring import wrong_numbers
from kdsearch.tasks import Classification

TASK = Classification.of(10)
TRIAL = [16, 16, 8, 16]  # images on which it is tried whether answers may be looked up


def pictures(count: int, side: int = 8, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, side, side, generator=generator("pictures", count))


def data(count: int = 24) -> ArrayData:
    return ArrayData(pictures(count), torch.arange(count) % 10)


def network(width: int, channels: int = 1) -> nn.Module:
    torch.manual_seed(width)
    return small_convnet(width, channels=channels)


def knowing() -> nn.Module:
    """A teacher that tells images apart."""
    net = network(3)
    for module in net:  # type: ignore[union-attr]
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(pictures(64))
        net[-1].weight *= 20  # type: ignore[index, operator]
    return net


def counted(teacher: nn.Module) -> list[int]:
    """How many images the teacher is given in each forward, from now on."""
    sizes = list[int]()
    teacher.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    return sizes


def colours() -> Policy:
    torch.manual_seed(1)
    return Policy({"rotate": 15.0, "brightness": 0.4, "invert": None}, 2, fill="reflect")


def begun(
    teacher: nn.Module | None = None,
    policy: Policy | None = None,
    tables: AnswerTables | None = None,
    task: Any = TASK,
    student: nn.Module | None = None,
    **settings: Any,
) -> Distiller:
    made = student or network(2)
    return Distiller(Teacher(teacher or knowing()), made, policy, task, tables=tables, **settings)


def phase(**changes: Any) -> Phase:
    return replace(Phase((kd(),), epochs=1, steps=5, batch=8), **changes)


def numbers(record: EpochRecord) -> dict[str, float]:
    """What an epoch's student steps have measured of both networks."""
    named = ("supervised_loss", "distillation_loss", "teacher_accuracy", "teacher_clean_accuracy", "dual")
    return {**{name: getattr(record, name) for name in named}, **record.losses}


def weights(distiller: Distiller) -> list[Tensor]:
    return [value.clone() for value in distiller.student.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def compare(make: Callable[[AnswerTables | None], Distiller], how: Phase, items: Any) -> None:
    """The law: a run with the table equals one without to 1e-5 in the means of its first epoch."""
    found = []
    for tables in (None, AnswerTables(allowed=False)):
        distiller = make(tables)
        found.append(numbers(next(distiller.run(how, items, items))))
        assert distiller.tables.allowed is (tables is None), distiller.tables.reason
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5, equal_nan=True)


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "in parts": {"parts": 3},
    "tst": {"views": Views.named("tst")},
    "wang": {"views": Views.named("wang")},
    "base alone": {"views": Views(distillation="base")},
    "weak": {"views": Views(teacher="weak"), "parts": 2},
    "clean": {"views": Views(teacher="clean")},
    "second alone, clean": {"views": replace(Views.named("one"), teacher="clean")},
    "one": {"views": Views.named("one")},  # where it is the base view
    "versions": {"base": "turn_shift", "base_versions": 3},
    "versions, in parts": {"base": "turn_shift", "base_versions": 3, "parts": 4, "views": Views.named("tst")},
    "versions, of the image": {"base": "shift", "base_versions": 2, "views": Views(second_from="image")},
    "policy steps": {"policy_steps": PolicySteps(interval=2, warm_up=0.0), "base": "shift", "base_versions": 2},
    "layers": {"losses": (kd(), hint("0"), at("3"))},
}


PAIRS = [
    *((way, "policy") for way in WAYS if way != "one"),
    *((way, "identity") for way in ("default", "tst", "one", "versions")),
]


@pytest.mark.parametrize(("way", "second"), PAIRS)
def test_a_run_with_the_table_equals_one_without(way: str, second: str) -> None:
    if (way, second) in (("weak", "identity"), ("policy steps", "identity")):
        pytest.skip("needs a policy")
    policy = colours if second == "policy" else lambda: None
    compare(
        lambda tables: begun(policy=policy(), tables=tables),
        phase(**{"steps": 9 if "base" in WAYS[way] else 3, **WAYS[way]}),
        data(),
    )


def test_so_it_does_with_an_ensemble_and_with_masks() -> None:
    compare(lambda tables: begun(Ensemble([knowing(), network(4)]), colours(), tables), phase(), data())

    def dense(width: int) -> nn.Module:
        torch.manual_seed(width)
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 1))

    masks = ArrayData(pictures(24, channels=3), torch.randint(4, (24, 8, 8), generator=generator("masks")))
    task = Segmentation(4, ignore=9)
    for changes in ({}, {"base": "flip_shift", "base_versions": 2}):
        compare(lambda tables: begun(dense(5), colours(), tables, task, dense(2)), phase(steps=6, **changes), masks)


def test_a_permutation_of_places_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    look = AnswerTable.at
    monkeypatch.setattr(AnswerTable, "at", lambda table, rows: look(table, rows.roll(1)))
    for way in ("default", "versions", "clean"):
        with pytest.raises(AssertionError):
            compare(lambda tables: begun(policy=colours(), tables=tables), phase(steps=9, **WAYS[way]), data())


def test_the_teacher_is_asked_once_about_each_base_view() -> None:
    teacher, items = knowing(), data(300)
    sizes, distiller = counted(teacher), begun(teacher)
    list(distiller.run(phase(epochs=2, steps=3, batch=60), items, data()))
    assert sizes == [*TRIAL, 256, 44] and distiller.tables.allowed
    sizes.clear()
    list(begun(teacher, colours()).run(phase(steps=5, batch=60), items, data()))
    assert sizes == [*TRIAL, 256, 44, *[60] * 5]  # second views alone


def test_runs_share_one_table_and_seeds_of_versions_have_their_own() -> None:
    teacher, items, tables, shift = knowing(), data(), AnswerTables(runs=30), as_base("shift")
    held, sizes = Teacher(teacher), counted(teacher)

    def run(seed: int, base: Any = shift, **changes: Any) -> int:
        sizes.clear()
        how = phase(base=base, base_seed=seed, base_versions=base and 4, **{"steps": 1, **changes})
        list(Distiller(held, network(2), None, TASK, tables=tables).run(how, items, items))
        return sum(sizes)

    assert run(0) == sum(TRIAL) + 96
    assert run(0) == run(0, batch=12) == 0
    assert run(1) == 96 and run(0) == run(1) == 0
    assert run(0, base=None) == 24 and run(0, base=None) == run(1) == 0
    assert run(2) == 96 and run(1) == 0  # the two that were used last are kept
    assert run(2, losses=(kd(), hint("0"))) == 96 + 2  # with features; two for the shapes of layers


@pytest.mark.parametrize(("count", "versions"), [(300, 1), (10, 30), (3, 300), (600, 1), (10, 7), (128, 4), (257, 3)])
def test_tables_are_made_in_batches_of_one_size_in_the_order_of_ids_and_versions(count: int, versions: int) -> None:
    items, base, sizes = data(count), as_base("turn_shift"), list[int]()
    assert base is not None
    drawn = None if versions == 1 else Versions.drawn(base, versions, count, 5)

    def ask(images: Tensor) -> Outputs:
        sizes.append(len(images))
        return Outputs(images.flatten(1))

    table = ask_all(ask, items, drawn, "cpu")
    rows = count * versions
    assert sizes == [256] * (rows // 256) + [rows % 256] * (rows % 256 > 0)
    for place in (0, rows // 3, rows - 1):
        image, at_ = items.images[place // versions][None], torch.tensor([place])
        wanted = image if drawn is None else base.augment(drawn.draw.rows(at_), image).images
        torch.testing.assert_close(table.at(at_).logits, wanted.flatten(1), rtol=0, atol=1e-6)


def test_the_table_is_the_same_whatever_the_batch() -> None:
    made = []
    for batch in (5, 8):
        distiller = begun(policy=colours())
        distiller.prepare(phase(batch=batch, base="shift", base_versions=5, steps=100), data())
        assert distiller._table is not None
        made.append(distiller._table.outputs.logits)
    assert torch.equal(*made)


@pytest.mark.parametrize("ends", ["itself", "early", "by an error"])
def test_the_memory_of_a_table_is_freed_with_the_run(ends: str) -> None:
    distiller = begun(policy=colours(), student=network(2))
    run = distiller.run(phase(epochs=2, base="shift", base_versions=2, steps=3), data(), data())
    next(run)
    assert distiller._table is not None and distiller._versions is not None
    held = weakref.ref(distiller._table.outputs.logits), weakref.ref(distiller._versions.draw.seeds)
    if ends == "itself":
        list(run)
    elif ends == "by an error":
        next(distiller.student.parameters()).data.fill_(math.nan)
        with pytest.raises(Diverged):
            next(run)
    del run
    gc.collect()
    assert held[0]() is None and held[1]() is None


def test_a_run_that_was_left_takes_nothing_from_the_one_that_followed() -> None:
    distiller = begun()
    first, second = (distiller.run(phase(epochs=3), data(), data()) for _ in range(2))
    next(first)
    next(second)
    table = distiller._table
    first.close()
    assert distiller._table is table is not None


def resumed(monkeypatch: pytest.MonkeyPatch, memory: tuple[int, int], **changes: Any) -> list[Distiller]:
    """A whole run, and one that is begun with one memory and goes on from its state with another."""
    how = phase(epochs=2, steps=5, **changes)
    left = list(memory)
    monkeypatch.setattr(answers, "available_bytes", lambda device: left[0])
    whole, first, second = (begun(policy=colours()) for _ in range(3))
    list(whole.run(how, data(), data()))
    next(first.run(how, data(), data()))
    kept = io.BytesIO()
    torch.save(first.state(), kept)
    kept.seek(0)
    left[0] = memory[1]
    list(second.run(how, data(), data(), state=torch.load(kept, weights_only=True)))
    return [whole, second]


@pytest.mark.parametrize(
    ("memory", "changes"),
    [
        ((2**40, 2**40), {}),
        ((2**40, 9000), {"base": "shift", "base_versions": 3}),
        ((2**40, 0), {"parts": 2, "losses": (hint("0"),)}),
        ((0, 2**40), {}),
    ],
)
def test_a_run_goes_on_to_the_same_bits_whatever_memory_is_left(
    monkeypatch: pytest.MonkeyPatch, memory: tuple[int, int], changes: dict[str, Any]
) -> None:
    one, other = resumed(monkeypatch, memory, **changes)
    assert one.tables.allowed is other.tables.allowed is (memory[0] > 0)
    assert same(weights(one), weights(other))


def test_a_state_from_before_there_were_tables_goes_on_without() -> None:
    distiller = begun()
    next(distiller.run(phase(epochs=2), data(), data()))
    state = {name: value for name, value in distiller.state().items() if name != "answers_looked_up"}
    other = begun()
    list(other.run(phase(epochs=2), data(), data(), state=state))
    assert other.tables.allowed is False


class Own(nn.Module):
    """A network whose answers are made of those of another and of the images."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.answer = knowing(), answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(self.inner(images), images)


class Items:
    """A data set that is read item by item."""

    def __init__(self, change: Callable[[Tensor], Tensor] = Tensor.clone, *, target: float | None = None) -> None:
        self.change, self.target, self.all = change, target, data()

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = self.all[index]
        return self.change(image), int(label) if self.target is None else torch.tensor([0.5, self.target])


def only_of(size: int) -> Callable[[Tensor, Tensor], Tensor]:
    def answer(logits: Tensor, images: Tensor) -> Tensor:
        if len(images) not in (size, 2 * size):
            raise ValueError("of another size")
        return logits

    return answer


class Redrawn:
    """A transform with a generator of its own, which nobody seeds."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if torch.rand((), generator=self.random) < 0.5 else image


OBSTACLES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "batch statistics": (Own(lambda y, x: y - y.mean(0)), data(), {}, "depend on the other images of a batch"),
    "order": (Own(lambda y, x: y + torch.arange(len(y))[:, None]), data(), {}, "depend on the other images"),
    "dropout": (Own(lambda y, x: dropout(y, 0.2, training=True)), data(), {}, "otherwise when it is asked again"),
    "extras": (Own(lambda y, x: {"logits": y, "z": torch.rand(len(y))}), data(), {}, "otherwise when it is asked"),
    "items": (None, Items(lambda image: image * torch.rand(())), {}, "items of the data set are others each time"),
    "a base": (None, data(), {"base": FixedTransform(Redrawn()), "base_versions": 1}, "transform draws otherwise"),
    "views": (None, data(), {"base": "shift", "base_versions": 2}, "48 base views are more than the 40 that are"),
    "batches": (
        Own(only_of(10)),
        data(),
        {"batch": 10},
        "cannot be asked in batches of another size: teacher, called with",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_no_table_where_answers_do_not_come_back_and_the_run_is_as_before(name: str) -> None:
    teacher, items, changes, reason = OBSTACLES[name]
    found = []
    for tables in (None, AnswerTables(allowed=False)):
        distiller = begun(teacher, colours(), tables)
        for _ in distiller.run(phase(**changes), items, data()):
            pass
        assert distiller.tables.allowed is False and distiller._table is None
        found.append(weights(distiller))
        if tables is None:
            assert reason in str(distiller.tables.reason)
    assert name == "a base" or same(*found)


def test_batch_norm_that_never_stops_counting_is_found() -> None:
    class Live(nn.BatchNorm2d):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.batch_norm(images, None, None, training=True)

    teacher = network(3)
    teacher[1] = Live(3)  # type: ignore[index, operator]
    distiller = begun(teacher)
    list(distiller.run(phase(), data(), data()))
    assert "depend on the other images" in str(distiller.tables.reason)


def test_memory_is_asked_for_before_the_teacher_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what steps need is left to them."""
    teacher, tables = knowing(), AnswerTables(reserved=1000)
    sizes, needed = counted(teacher), 24 * 10 * 4
    for room, allowed in ((1000 + 4 * needed, True), (996 + 4 * needed, False), (500, False), (0, False)):
        tables.allowed = None
        monkeypatch.setattr(answers, "available_bytes", lambda device, room=room: room)
        distiller = begun(teacher, tables=tables)
        distiller.prepare(phase(), data())
        assert tables.allowed is allowed and (distiller._table is not None) is allowed
        assert sizes == TRIAL + [24] * allowed
        sizes.clear()
    assert "answers on 24 base views do not fit into memory: they take 0.0 GiB" in str(tables.reason)


def test_versions_that_memory_does_not_hold_are_refused_with_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    each = sum(value.nbytes for value in vars(base_of_parts(["shift"]).draw(24)).values() if isinstance(value, Tensor))
    monkeypatch.setattr(answers, "available_bytes", lambda device: 5 * each)
    run = begun().run(phase(base="shift", base_versions=6), data(), data())
    with pytest.raises(KdsearchError, match=r"6 of each of 24 images take 0.0 GiB; allowed: up to 5$"):
        next(run)
    made = ready(network(3), base="shift", base_versions=2).study
    for versions, allowed in ((5, "up to 1"), (1, "")):
        asked = replace(made, base_versions=versions)
        with pytest.raises(KdsearchError, match=allowed) if allowed else nullcontext():
            find_base(asked, Path("nowhere"), Teacher(network(3)), TASK, 1, device="cpu", found_on="")


@pytest.mark.parametrize(("base", "versions", "said"), [
    ("shift", 0, "base_versions is 0; allowed: whole numbers, 1 or more"),
    ("shift", 10**5, "base_versions is 100000; allowed: "),
    (None, 4, "base_versions is 4; allowed: None, as the base is None"),
])  # fmt: skip
def test_versions_that_are_none_are_refused_by_a_study(base: Any, versions: int, said: str) -> None:
    made = ready(network(3), base=base).study
    found = wrong_numbers(replace(made, base_versions=versions), SearchSpace.load("default"))
    assert any(said in text for text in found), found


def test_a_distiller_of_its_own_decides_at_each_run() -> None:
    distiller = begun()
    for steps, allowed in ((2, False), (3, True), (2, False)):
        list(distiller.run(phase(steps=steps), data(), data()))
        assert distiller.tables.allowed is allowed


def test_targets_with_what_is_no_number_are_the_same_ones() -> None:
    from kdsearch.data.batches import augments_itself

    assert not augments_itself(Items(target=math.nan), list(range(24)))
    assert augments_itself(Items(lambda image: image * torch.rand(())), list(range(24)))


def test_half_precision_is_kept_apart() -> None:
    teacher, tables, items = Teacher(network(3)), AnswerTables(), data()
    found = []
    for precision in ("float32", "bfloat16", "float32"):
        distiller = Distiller(teacher, network(2), None, TASK, precision=precision, tables=tables)  # type: ignore[arg-type]
        distiller.prepare(phase(), items)
        assert distiller._table is not None
        found.append(distiller._table)
        assert next(distiller.run(phase(), items, items)).distillation_loss > 0
    assert found[0] is found[2] and found[1].outputs.logits.dtype == torch.float32
    assert not torch.equal(found[0].outputs.logits, found[1].outputs.logits)


@pytest.mark.parametrize("count", [256, 300])
def test_what_a_teacher_returns_beside_its_logits_is_looked_up_too(count: int) -> None:
    """But what has as many rows as a batch by chance."""
    whole = torch.zeros(256)
    teacher = Own(lambda y, x: {"logits": y, "brightness": x.mean((1, 2, 3)), "sure": y.amax(1) > 0, "whole": whole})
    seen = []

    def watch(student: Outputs, teacher: Outputs, views: ViewBatch) -> Tensor:
        seen.append((teacher.extras, views))
        return (student.logits.mean(1) - teacher.extras["brightness"]).square()

    items = data(count)
    how = phase(losses=(Loss("watch", watch),), steps=5, batch=60)
    compare(lambda tables: begun(teacher, colours(), tables), how, items)
    extras, views = seen[0]
    assert {*extras} == {"brightness", "sure"} and extras["sure"].dtype == torch.bool
    torch.testing.assert_close(extras["brightness"], views.images.mean((1, 2, 3)))


def test_a_network_may_write_over_what_it_gave() -> None:
    room = torch.zeros(256, 1)
    table = ask_all(lambda images: Outputs(torch.mul(images.mean((1, 2, 3))[:, None], 1.0, out=room[: len(images)])),
                    ArrayData(pictures(600), torch.zeros(600).long()), None, "cpu")  # fmt: skip
    assert torch.equal(table.outputs.logits[:, 0], pictures(600).mean((1, 2, 3)))


def test_answers_that_are_no_numbers_end_every_run_that_looks_them_up() -> None:
    items, tables = data(), AnswerTables(runs=2)
    items.images[:] = 0.25 + 0.5 * items.images
    items.images[18:, :, 0, 0] = 1.0
    broken = Teacher(Own(lambda y, x: torch.where(x[:, 0, :1, 0] == 1.0, math.nan, y)))
    for _ in range(2):
        distiller = Distiller(broken, network(2), None, TASK, tables=tables)
        with pytest.raises(Diverged, match="the teacher's logits are not finite"):
            list(distiller.run(phase(), items, items))
        assert tables.allowed


def test_a_student_that_diverges_is_not_the_teachers_fault() -> None:
    """Of an image that no step has seen nothing is said."""
    items = data(1000)
    items.images[:] = 0.5
    items.images[-1] = 1.0
    teacher = Own(lambda y, x: torch.where(x[:, 0, :1, 0] == 1.0, math.nan, y))
    distiller = begun(teacher, tables=AnswerTables(runs=100))
    next(distiller.student.parameters()).data.fill_(math.nan)
    with pytest.raises(Diverged, match="a loss is not finite"):
        list(distiller.run(phase(steps=2), items, items))


def test_inside_inference_mode_a_table_is_made_as_outside() -> None:
    distiller = begun()
    with torch.inference_mode():
        distiller.prepare(phase(), data())
    assert distiller._table is not None and not distiller._table.outputs.logits.is_inference()


@pytest.mark.long
def test_readers_read_for_the_table() -> None:
    items = Spawned(Items(), 1)
    compare(lambda tables: begun(policy=colours(), tables=tables), phase(), items)


def test_items_that_are_read_one_by_one_have_a_table() -> None:
    compare(lambda tables: begun(policy=colours(), tables=tables), phase(), Items())


def ready(teacher: nn.Module, **changes: Any) -> Ready:
    """A study with its teacher, nothing looked at."""
    study = Study(
        name="asked",
        train=data(),
        search_validation=data(20),
        teacher=teacher,
        student=lambda: network(2),
        classes=10,
        budget=Budget(trials=1, epochs=2, steps=5, batch=8, policy_batch=5, confirmation=1),
        **changes,
    )
    base = BaseView(as_base(study.base) if study.base != "auto" else None, "", "")
    held, space = Teacher(teacher), SearchSpace.load("wide")
    probe = Probe(held, study.search_validation, TASK, {"invert": None})
    return Ready(study, TASK, held, space, TeacherMeasurement(0.9, 0.01, 2.0, 0.1), probe, 1, base_view=base)


@pytest.mark.parametrize("changes", [{"base": None}, {"base": "shift", "base_versions": 2},
                                     {"base": None, "views": Views.named("one")}])  # fmt: skip
def test_a_study_decides_before_it_asks_and_its_runs_share_the_answers(changes: dict[str, Any]) -> None:
    teacher = knowing()
    made, sizes = ready(teacher, **changes), counted(teacher)
    _decide_answers(made)
    assert made.tables.allowed and sizes == TRIAL
    sizes.clear()
    rows = len(made.study.train) * (made.study.base_versions or 1)
    for count in (rows, 0):
        run_trial(made, None, policy=None, run="identity")
        assert sum(sizes) == count
        sizes.clear()


def test_what_most_views_need_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers on 48 base views do not fit, those on 24 images would."""
    monkeypatch.setattr(answers, "available_bytes", lambda device: 4 * 30 * 10 * 4)
    made = ready(network(3), base="shift", base_versions=2, bare_reference=True)
    _decide_answers(made)
    assert made.tables.allowed is False and "48 base views do not fit" in str(made.tables.reason)
    bare = ready(network(3), base="shift", bare_reference=True)
    _decide_answers(bare)
    assert bare.tables.allowed is True
    fresh = ready(network(3), base="shift")
    _decide_answers(fresh)
    assert fresh.tables.allowed is None


def test_costs_are_those_of_steps_that_look_up_and_of_asking_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import kdsearch.study.costs as costs

    teacher = knowing()
    made = ready(teacher, base="shift", base_versions=3, views=Views(distillation="base"))
    _decide_answers(made)
    sizes = counted(teacher)
    batch = next(iter_batches(made.study.train, 16))
    clock = iter(range(10**6))
    monkeypatch.setattr(costs, "_finished", lambda device: float(next(clock)))  # each stretch takes a second
    _, plain = estimate_seconds(made, batch)
    assert 8 not in sizes and 48 in sizes  # no base view is asked about in a step
    made.tables.allowed = False
    _, without = estimate_seconds(made, batch)
    assert 8 in sizes
    references, each = len(made.references), 1.0 / 16
    assert plain - without == pytest.approx(2 * 3 * 24 * each / (1 + references + 2 + references))


def iter_batches(items: Any, size: int) -> Iterator[Any]:
    from kdsearch.data.batches import batches_in_order

    return batches_in_order(items, size)


def test_the_probe_asks_once_about_what_it_shows_every_student() -> None:
    teacher, validation, limits = knowing(), data(30), {"invert": None, "rotate": 30.0}
    sizes = counted(teacher)
    look = plan_look(limits, 30, 1000, images=20, bins=2)
    probes = [Probe(Teacher(teacher), validation, TASK, limits, look=look) for _ in range(2)]
    probes[1]._room = 0
    reports = []
    for probe in probes:
        sizes.clear()
        reports.append([probe.report(network(width), None) for width in (2, 4)])
        assert sum(sizes) == (30 + 3 * 20) * (1 if probe is probes[0] else 2)
    assert reports[0] == reports[1]
