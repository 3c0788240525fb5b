"""What is shipped: the digits study keeps what it promises, and the files travel inside the wheel."""

import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kdsearch as kd
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.core.errors import KdsearchError
from kdsearch.study import catalogue
from kdsearch.study.preflight import preflight
from kdsearch.study.space import SearchSpace
from kdsearch.study.study import load_study


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The shipped study made ready, and the folder its teacher is kept in."""
    folder = tmp_path_factory.mktemp("digits")
    study, _ = load_study("digits")
    return preflight(study, folder), folder


def test_the_digits_teacher_is_right_on_98_percent_of_test(digits):
    checked, _ = digits
    study = checked.ready.study
    assert len(study.train) == 200
    assert len(study.test) == len(study.search_validation) == 500
    assert kd.evaluate(checked.ready.teacher.network, study.test, checked.ready.task, 64, "cpu").value >= 0.98


def test_the_teacher_is_kept_with_its_recipe(digits, monkeypatch):
    checked, folder = digits
    recipe = checked.ready.study.teacher
    monkeypatch.setattr(kd.Recipe, "fingerprint", lambda self: "another")
    with pytest.raises(KdsearchError, match=r"teacher.safetensors was trained by another recipe"):
        recipe.load(folder / "teacher.safetensors")
    monkeypatch.undo()
    again = recipe.load(folder / "teacher.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in checked.ready.teacher.network.state_dict().items())


def test_torn_teacher_weights_are_named(digits, tmp_path):
    checked, folder = digits
    torn = tmp_path / "teacher.safetensors"
    torn.write_bytes((folder / "teacher.safetensors").read_bytes()[:1000])
    with pytest.raises(KdsearchError, match="not this teacher's weights"):
        checked.ready.study.teacher.load(torn)


def test_operations_without_effect_on_gray_images_are_dropped_with_the_reason(digits):
    checked, _ = digits
    assert checked.dropped == {"saturation": "needs 3 channels"}
    assert set(checked.ready.space.limits) == set(SearchSpace.load("default").limits) - {"saturation"}


def test_an_operation_that_changes_nothing_is_dropped(digits):
    from kdsearch.study.preflight import ineffective_operations

    images = torch.full((8, 3, 8, 8), 0.5)
    found = ineffective_operations(images, {"equalize": None, "saturation": 0.75, "invert": None, "brightness": 0.5})
    assert set(found) == {"equalize", "saturation", "invert"}  # .5 inverted is .5
    assert found["saturation"].startswith("changes pixels by 0.0")


@pytest.mark.parametrize("name", catalogue.shipped_names("search_spaces"))
def test_shipped_spaces_load_and_have_defaults_in_their_ranges(name):
    space = SearchSpace.load(name)
    assert space.summary
    settings = space.settings().numbers()
    for number, r in space.ranges.items():
        assert r.low <= settings[number] <= r.high


def test_shipped_spaces_stay_at_the_default_limits_and_the_widest_has_all():
    everything = {op.name: op.limit for op in OPERATIONS.values()}
    assert SearchSpace.load("wide").limits == everything
    assert SearchSpace.load("wide").fill == "reflect"
    default = SearchSpace.load("default")
    assert default.limits == {name: everything[name] for name in default.limits}
    assert len(default.limits) == 17 and default.fill == "zero"


def test_the_space_of_objectives_starts_as_the_default_one_does():
    default, objective = SearchSpace.load("default"), SearchSpace.load("objective")
    assert objective.limits == default.limits
    assert objective.settings().numbers() == {**default.settings().numbers(), "divergence": 0.0}
    assert list(objective.ranges) == [*default.ranges, "student_wrong", "divergence"]


def test_the_fill_of_a_space_reaches_policies_and_sweeps(tiny_study, tmp_path):
    path = tmp_path / "mine.toml"
    text = catalogue.find_shipped("search_spaces", "geometric").read_text()
    path.write_text('fill = "reflect"\n' + text)
    space = SearchSpace.load(str(path))
    assert space.fill == "reflect" and space.fingerprint()["fill"] == "reflect"
    ready = preflight(replace(tiny_study, space=str(path)), tmp_path).ready
    policies = [ready.policy(space.settings()), ready.reference("trivial", space.settings())]
    assert {policy.fill for policy in policies} == {ready.probe.fill} == {"reflect"}
    assert policies[0].freeze().fill == "reflect" and policies[0].draw(2).fill == "reflect"
    path.write_text('fill = "reflct"\n' + text)
    with pytest.raises(KdsearchError, match="unknown fill 'reflct'; did you mean 'reflect'"):
        SearchSpace.load(str(path))


def test_studies_and_spaces_are_inside_the_wheel(tmp_path):
    """Asked of the build backend itself, in this environment."""
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    root = Path(__file__).parent.parent
    wheel = next(builder.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"]))
    names = zipfile.ZipFile(wheel).namelist()
    for kind, suffix in catalogue.SUFFIX.items():
        for name in catalogue.shipped_names(kind):
            assert f"kdsearch/{kind}/{name}{suffix}" in names
    assert "kdsearch/analysis/templates/report.html" in names
    assert not [name for name in names if name.startswith(("studies", "tests", "results"))]
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_a_recipe_gives_the_same_teacher_whatever_was_drawn_before(tmp_path):
    def build():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(4, 2))

    def train(network):
        network(torch.rand(8, 1, 2, 2)).sum().backward()
        torch.optim.SGD(network.parameters(), lr=1.0).step()

    recipe = kd.Recipe(build, train)
    weights = []
    for name in ("a", "b"):
        torch.rand(len(weights) + 1)
        weights.append(recipe.load(tmp_path / f"{name}.safetensors").state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
