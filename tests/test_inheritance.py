"""Inherited competence: by hand, at its bounds, on a list of shifts that stays, within its error, and in the tables."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kdsearch as kd
from kdsearch.augment.operations import TABLE
from kdsearch.core.maths import generator
from kdsearch.probe import inheritance
from kdsearch.probe.inheritance import Inheritance, Ruler, Seen, calibration_error, sum_up
from kdsearch.probe.shifts import BINS, COMMON, HELD_OUT, OWN, Shifts
from kdsearch.study.preflight import preflight
from kdsearch.study.space import SearchSpace

TASK = kd.Classification.of(4)


class Level(nn.Module):
    """The class is the mean brightness, in four levels; an image is right unless `fails` says otherwise of its mean."""

    def __init__(self, fails: float = math.inf) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.fails = fails

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        place = (mean * 4).long().clamp(0, 3)
        logits = nn.functional.one_hot(place, 4).float() * 5 + 0 * self.weight
        return torch.where((mean > self.fails)[:, None], math.nan, logits)


def levels(count: int = 60, channels: int = 1) -> kd.data.ArrayData:
    labels = torch.arange(count) % 4
    noise = torch.rand(count, channels, 8, 8, generator=generator("levels")) * 0.1
    return kd.data.ArrayData((labels[:, None, None, None] + 0.45) / 4 + noise - 0.05, labels)


def ruler(teacher: nn.Module, data: kd.data.ArrayData | None = None, **given: object) -> Ruler:
    data = levels() if data is None else data
    return Ruler(kd.networks.Teacher(teacher), data, TASK, **given)  # type: ignore[arg-type]


def rights(rows: list[str]) -> Tensor:
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def seen(teacher: list[str], student: list[str]) -> Seen:
    nothing = torch.zeros(len(teacher), len(teacher[0]), dtype=torch.float64)
    return Seen(rights(teacher), rights(student), nothing, nothing, nothing)


def test_six_images_by_hand() -> None:
    """rotate 3 of 4, shear_x 2 of 4, jpeg 1 of 2; the fourth column does not count."""
    teacher = ["1111", "1111", "1101", "1101", "0000", "0001"]
    student = ["1011", "1100", "1100", "0010", "1110", "1111"]
    counts = rights(["1110"] * 6)
    found = sum_up(seen(teacher, student), counts, ["rotate", "shear_x", "jpeg", "elastic"])
    assert (found.common, found.held_out, found.views, found.images) == ((3 / 4 + 2 / 4) / 2, 1 / 2, 18, 6)
    assert found.inherited == (found.common + found.held_out) / 2 == 0.5625
    assert found.by_shift == {"rotate": 0.75, "shear_x": 0.5, "jpeg": 0.5}
    # image by image: weight 1/4 for each common shift, 1/2 for jpeg, over the teacher's 4, 4 and 2
    e = [
        0.25 * 0.25 / 4 - 0.25 * 0.5 / 4 + 0.5 * 0.5 / 2,
        0.25 * 0.25 / 4 + 0.25 * 0.5 / 4 - 0.5 * 0.5 / 2,
        0.25 * 0.25 / 4 + 0.25 * 0.5 / 4,
        -0.25 * 0.75 / 4 - 0.25 * 0.5 / 4,
    ]
    assert found.inherited_se == pytest.approx(math.sqrt(6 / 5 * sum(x * x for x in e)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_student_equal_to_its_teacher_has_inherited_all_of_it(channels: int) -> None:
    ask = ruler(Level(), levels(60, channels))
    for found in (ask.measure(Level()), ask.glance(Level())):
        assert (found.inherited, found.common, found.held_out, found.inherited_se) == (1, 1, 1, 0)
        assert found.kl == pytest.approx(0, abs=1e-6) and found.views > 0
        assert found.calibration_error == found.teacher_calibration_error
    assert ask.measure(Level()).clean == 1


def test_answers_that_are_no_number_are_wrong() -> None:
    found = ruler(Level()).measure(Level(fails=-1.0))
    assert (found.inherited, found.clean) == (0, 0)


def test_a_teacher_that_is_never_right_hands_over_nothing_that_is_defined() -> None:
    ask = ruler(Level(fails=-1.0))
    for found in (ask.measure(Level()), ask.glance(Level())):
        assert math.isnan(found.inherited) and math.isnan(found.inherited_se) and found.views == 0


def test_bins_in_which_the_teacher_is_wrong_on_most_images_do_not_count() -> None:
    found = ruler(Level()).measure(Level())
    assert "invert" not in found.by_shift and {"horizontal_flip", "elastic"} <= {*found.by_shift}
    assert 0 < found.views < 60 * 22


def test_no_space_moves_the_ruler() -> None:
    """What is left out is named; all other views stay, pixel by pixel, as do the limits of common operations."""
    known = SearchSpace.load("wide").limits
    whole, less = ruler(Level()), ruler(Level(), known=known)
    assert less.left_out == ("gaussian_blur", "gamma", "perspective") == less.measure(Level()).left_out
    assert not {*less.shifts.names} & {*less.left_out}
    assert {*whole.shifts.names} == {"clean", *COMMON, *HELD_OUT} - {"saturation"}
    images = levels().images
    views = dict(zip(whole.shifts.names, whole.shifts.apply(images, slice(0, 60)).unbind(1), strict=True))
    others = less.shifts.apply(images, slice(0, 60)).unbind(1)
    for name, view in zip(less.shifts.names, others, strict=True):
        assert torch.equal(view, views[name]), name
    assert not {*HELD_OUT} & {*SearchSpace.load("default").limits} and {*OWN}.isdisjoint(TABLE)
    assert dict(COMMON) == {name: TABLE[name].limit for name in SearchSpace.load("default").limits}


def test_the_list_of_shifts_is_that_of_its_version() -> None:
    """Pixels of version 1: whoever changes them gives the list another version."""
    place = torch.arange(4 * 3 * 12 * 10, dtype=torch.float64)
    images, weights = (
        (0.5 + 0.5 * torch.sin(place * 0.37)).view(4, 3, 12, 10),
        torch.cos(place * 0.11).view(4, 3, 12, 10),
    )
    drawn = Shifts.drawn([*COMMON, *HELD_OUT], 4, 3, 0)
    views = zip(drawn.names, drawn.apply(images, slice(0, 4)).unbind(1), strict=True)
    found = {name: ((view - images) * weights).sum().item() for name, view in views}
    assert found == pytest.approx(VERSION_1, abs=0.02)


VERSION_1 = {
    "clean": 0.0,
    "horizontal_flip": -1.14,
    "scale": -6.83,
    "shear_x": 0.74,
    "shear_y": -10.35,
    "rotate": 5.28,
    "translate_x": -0.55,
    "translate_y": -12.0,
    "perspective": 0.39,
    "brightness": 2.63,
    "contrast": -0.91,
    "saturation": 0.22,
    "gamma": -0.25,
    "equalize": 0.07,
    "solarize": -7.36,
    "posterize": -0.07,
    "invert": -3.66,
    "sharpness": -1.09,
    "gaussian_blur": -3.44,
    "noise": 1.2,
    "erase": 3.37,
    "jpeg": -1.13,
    "elastic": -0.69,
    "salt_and_pepper": 1.64,
}


def test_views_do_not_depend_on_the_batch() -> None:
    images, drawn = levels(12, 3).images, Shifts.drawn([*COMMON, *HELD_OUT], 12, 3, 5)
    whole = drawn.apply(images, slice(0, 12))
    for first, last in ((0, 1), (1, 7), (7, 12)):
        assert torch.allclose(drawn.apply(images[first:last], slice(first, last)), whole[first:last], atol=1e-6)
    assert whole.min() >= 0 and whole.max() <= 1 and torch.equal(whole[:, 0], images)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 9), (32, 40)])
def test_own_shifts_change_more_the_larger_they_are(name: str, height: int, width: int) -> None:
    x = torch.rand(4, 3, height, width, generator=generator("own", height))
    seeds, pixels = torch.arange(4), OWN[name].pixels
    assert pixels is not None
    sizes = (0.0, OWN[name].limit or 0.0, OWN[name].hard or 0.0)
    change = [(pixels(x, torch.full((4,), m), x.new_empty(4, 0), seeds) - x).abs().mean().item() for m in sizes]
    assert change[0] < 1e-3 < 0.005 < change[1] < change[2]
    one = x[..., :1, :1]  # an image of one pixel is one too
    assert pixels(one, torch.full((4,), sizes[1]), one.new_empty(4, 0), seeds).shape == one.shape


def test_each_image_is_in_one_bin_of_a_shift_and_each_bin_has_a_third() -> None:
    drawn = Shifts.drawn([*COMMON, *HELD_OUT], 60, 1, 0)
    at = drawn.names.index("rotate")
    assert drawn.bin[:, at].bincount().tolist() == [20] * BINS
    degrees = drawn.draw.magnitudes.view(60, -1)[:, at].abs()
    assert torch.equal((degrees / 10).long(), drawn.bin[:, at])


def test_a_glance_has_eight_views_of_an_image_half_of_them_held_out() -> None:
    ask = ruler(Level(), glanced=40)
    ask.glance(Level())
    assert ask._bank is not None
    row, column = ask._bank.row, ask._bank.column
    held_out = torch.tensor([name in HELD_OUT for name in ask.shifts.names])[column]
    assert len(row.unique()) <= 40 and row.bincount().max() <= 8
    assert row[held_out].bincount().max() <= 4 and row[~held_out].bincount().max() <= 4
    whole = ask.shifts.apply(levels().images[ask.places], slice(0, 60))
    assert torch.allclose(ask._bank.batch.images, whole[row, column], atol=1e-6)


def test_the_error_is_that_over_images() -> None:
    """Of 1,000 sets of 50 images whose views go together: intervals hold the truth in 95 of 100, but for their number.

    As if views were independent they hold it in far fewer.
    """
    names, random = ["rotate", "shear_x", "noise", "jpeg", "elastic"], generator("coverage")
    held = alone = 0
    truth, sets = 0.8, 1000
    for _ in range(sets):
        hard = torch.rand(50, 1, generator=random) < 0.2  # of such an image the student has nothing right
        teacher = torch.rand(50, 5, generator=random) < 0.9
        found = sum_up(
            Seen(teacher, ~hard & teacher, *[torch.zeros(50, 5)] * 3), torch.ones(50, 5, dtype=torch.bool), names
        )
        held += abs(found.inherited - truth) <= 1.96 * found.inherited_se
        one = math.sqrt(found.inherited * (1 - found.inherited) / teacher.sum().item())
        alone += abs(found.inherited - truth) <= 1.96 * one
    assert held / sets > 0.92 and alone / sets < 0.75


def test_calibration_is_the_gap_between_sure_and_right() -> None:
    sure = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = torch.tensor([True, True, True, False, True, False])
    assert calibration_error(sure, right) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert math.isnan(calibration_error(sure[:0], right[:0]))
    with_nan = torch.tensor([math.nan, 1.0])
    assert calibration_error(with_nan, torch.tensor([False, True])) == 0


@pytest.mark.parametrize(
    ("data", "given", "said"),
    [
        (levels(0), {}, "ruler: the data set is empty"),
        (levels(8, 4), {}, "ruler: images of 4 channels; allowed: 1 or 3"),
        (levels(8), {"images": 0}, "images is 0; allowed: whole numbers, 1 or more"),
        (levels(8), {"glanced": 0}, "glanced is 0; allowed: whole numbers, 1 or more"),
        (levels(8), {"glanced": 2.5}, "glanced is 2.5; allowed: whole numbers, 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(data: kd.data.ArrayData, given: dict[str, int], said: str) -> None:
    with pytest.raises(kd.KdsearchError, match=said):
        ruler(Level(), data, **given)


def test_large_images_and_many_classes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ruler(Level())
    found = whole.measure(Level())
    monkeypatch.setattr(inheritance, "ROOM", 8 * 4 * 64 * 7)  # bytes of the views of 7 images
    small = ruler(Level())
    assert (whole.glanced, small.glanced) == (60, 7)
    assert small.measure(Level()) == found
    assert small._answers is None and whole._answers is not None
    small.glance(Level())
    assert small._bank is not None and len(small._bank.row.unique()) == 7


def test_fewer_images_are_some_of_the_same_views() -> None:
    many, few = (Shifts.drawn([*COMMON, *HELD_OUT], count, 1, 0) for count in (50, 20))
    images = levels(50).images
    assert torch.equal(few.bin, many.bin[:20])
    assert torch.equal(few.apply(images[:20], slice(0, 20)), many.apply(images[:20], slice(0, 20)))
    whole, part = ruler(Level()), ruler(Level(), images=20)
    assert torch.equal(part.places, whole.places[:20])


def test_what_a_space_has_leaves_the_common_views_of_a_glance_where_they_are() -> None:
    whole, less = ruler(Level()), ruler(Level(), known=["gamma"])
    found = []
    for ask in (whole, less):
        assert ask.glance(Level()).left_out == ask.left_out
        assert ask._bank is not None
        names = [ask.shifts.names[column] for column in ask._bank.column.tolist()]
        places = zip(ask.places[ask._bank.row].tolist(), names, ask._bank.batch.images, strict=True)
        found.append({(place, name): image for place, name, image in places if name in COMMON})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(image, found[1][key]) for key, image in found[0].items())


def test_any_network_is_a_teacher_and_nobody_has_to_say_where_it_is() -> None:
    ask = kd.Ruler(Level(), levels())
    assert len(ask.task.class_names) == 4 and ask.device.type == "cpu" and ask.measure(Level()).inherited == 1
    assert Shifts.drawn(["jpeg"], 3, 1, 0).names == ("clean", "jpeg")


class Noisy(Level):
    """Random in evaluation mode too."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0 * torch.rand(1)


def test_a_base_that_has_a_held_out_shift_leaves_it_out(tiny_study: kd.Study, tmp_path: Path) -> None:
    blurred = kd.Policy({"gaussian_blur": 1.0}, 1)
    ready = preflight(replace(tiny_study, base=blurred), tmp_path).ready
    assert ready.ruler is not None and ready.ruler.left_out == ("gaussian_blur",)


def test_a_run_is_measured_after_each_epoch_and_whole_at_its_end(finished) -> None:
    tables = kd.frames(finished.folder)
    done = tables["trials"].query("state == 'COMPLETE'")
    assert done["inherited"].between(0, 1).all() and (done["inherited_se"] >= 0).all()
    assert done["shifts_left_out"].eq("[]").all() and done["shifts_version"].eq(1).all()
    both = done[["inherited_common", "inherited_held_out"]].mean(axis=1)
    assert (both - done["inherited"]).abs().max() < 1e-9
    assert tables["epochs"]["inherited"].between(0, 1).all() and (tables["epochs"]["kl"] >= 0).all()
    evaluations = tables["evaluations"].query("split != 'test'")
    assert evaluations["inherited"].between(0, 1).all() and evaluations["calibration_error"].between(0, 1).all()
    page = (finished.folder / "report.html").read_text()
    assert "inherited competence" in page


def test_a_folder_of_before_has_none(finished, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    for path in folder.rglob("result.json"):
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in kept.items() if name != "inheritance"}))
    kept = json.loads((folder / "confirmation.json").read_text())
    for row in kept["rows"]:
        for name in ("inherited", "inherited_se", "calibration_error", "kl"):
            row.pop(name)
    (folder / "confirmation.json").write_text(json.dumps(kept))
    tables = kd.frames(folder)
    assert tables["trials"]["inherited"].isna().all() and tables["evaluations"]["inherited"].isna().all()
    assert len(kd.analysis.plots.did_it_help(tables).axes) == 1
    kd.report(folder)


def test_measuring_leaves_a_student_and_all_generators_as_they_were() -> None:
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 4)).train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in student.state_dict().items()}
    ask = ruler(Level())
    first = ask.measure(student)
    ask.measure(Noisy())
    ask.glance(Noisy())
    assert torch.equal(before, torch.get_rng_state()) and student.training
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in state.items())
    assert first == ask.measure(student) and isinstance(first, Inheritance)
