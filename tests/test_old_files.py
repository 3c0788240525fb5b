"""What 3db5187 wrote is read, or refused in one sentence.

`tests/data/run_3db5187` is the run folder that `kdsearch search study.py` of 3db5187 left, without its frames and page,
study.db in small pages; beside it lie the search space of that run, one with phases, and a policy searched with that.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

import kdsearch as kd
from kdsearch.augment.export import export
from kdsearch.augment.policy import Policy
from kdsearch.commands.search import search
from kdsearch.core.errors import KdsearchError
from kdsearch.core.sources import hash_source
from kdsearch.study.space import SearchSpace

THEN = Path(__file__).parent / "data" / "run_3db5187"
POLICIES = sorted(path.relative_to(THEN) for path in THEN.rglob("*policy.json"))


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def untouched():
    """The folder, which what reads it must leave as it is."""
    before = content(THEN)
    yield THEN
    assert content(THEN) == before


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the folder that may be written; the working directory, which the study file's paths begin from."""
    folder = shutil.copytree(THEN, tmp_path / "run")
    monkeypatch.chdir(folder)
    return folder


def test_the_frames_of_a_run_folder_of_then_are_whole(untouched):
    tables = kd.frames(untouched)
    counts = {name: len(table) for name, table in tables.items()}
    assert {name: counts[name] for name in ("studies", "trials", "params", "evaluations")} == {
        "studies": 1, "trials": 5, "params": 2, "evaluations": 5,
    }  # fmt: skip
    moments = sum(len(kd.PolicySpec.load(untouched / path).schedule) for path in POLICIES if path.name == "policy.json")
    assert counts["epochs"] == counts["losses"] == 5 * 2 and counts["policies"] == moments * 5
    assert tables["studies"]["best_value"].item() == pytest.approx(0.2) and not tables["trials"]["value"].isna().any()
    numbers = ["teacher_accuracy", "budget_trials", "budget_policy_batch", "complete"]
    assert tables["studies"][numbers].iloc[0].tolist() == [0.95, 2, 8, 2]
    regions = kd.regions(untouched)
    assert len(regions) > 20 and not regions["teacher_only_rate"].isna().any()


@pytest.mark.parametrize("path", POLICIES, ids=str)
def test_a_policy_of_then_is_read_and_exported(untouched, path, images):
    spec = kd.PolicySpec.load(untouched / path)
    assert json.loads(spec.to_json()) == json.loads((untouched / path).read_text())  # with all that was in it
    policy = Policy.from_spec(spec)
    assert policy.augment(policy.draw(4), images[:4]).images.shape == images[:4].shape
    for target in ("json", "torchvision", "kornia", "albumentations"):
        assert export(spec, target)


def test_the_commands_read_a_run_folder_of_then(untouched, kdsearch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "2 complete, 0 pruned, 0 failed" in kdsearch("status", untouched)
    assert "rotate" in kdsearch("regions", untouched)
    kdsearch("export", untouched, "--to", "torchvision", "-o", "policy.py")
    kdsearch("sheet", untouched, "--most", 2)
    assert "posterize" in kdsearch("diff", untouched, untouched / "trials" / "0001")
    kdsearch("trajectory", untouched)
    kdsearch("frames", untouched, "--to", "csv", "-o", "tables")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"policy.py", "sheet.png", "trajectory.png", "tables"}


def test_the_page_of_a_run_folder_of_then_is_written_anew(copied, kdsearch):
    kdsearch("report", copied, "--no-images")
    assert "misses an identity second view" in (copied / "report_without_images.html").read_text()


def test_the_policies_of_a_run_folder_of_then_are_ranked(untouched, tiny_study):
    table = kd.rank(tiny_study, untouched, most=20, views=1, quiet=True)
    assert {"trial 0", "trial 1"} <= set(table["policy"]) and not table["stddev_ratio"].isna().any()


def test_a_search_of_then_is_not_gone_on_with_and_says_who_wrote_it(copied, tiny_study):
    before = content(copied)
    with pytest.raises(KdsearchError, match=r"holds a search of a kdsearch 0\.1\.0 that .* another folder") as told:
        search(tiny_study, out=copied, quiet=True)
    assert "\n" not in str(told.value)
    assert {**before, "search.lock": ""} == {**content(copied), "search.lock": ""}


@pytest.mark.filterwarnings("ignore:kdsearch:FutureWarning")
@pytest.mark.filterwarnings("ignore:kdsearch")  # of the names of then
def test_the_study_file_of_a_run_folder_of_then_has_its_teacher_and_is_not_gone_on_with(copied, monkeypatch):
    def untrained(self, path):
        pytest.fail("a teacher was trained")

    monkeypatch.setattr("kdsearch.networks.teachers.Recipe._trained", untrained)
    assert "trial 1" in set(kd.rank("./study.py", copied, out=copied, most=20, views=1, quiet=True)["policy"])
    with pytest.raises(KdsearchError, match=r"holds a search of a kdsearch 0\.1\.0 that") as told:
        search("./study.py", out=copied, quiet=True)
    assert "\n" not in str(told.value)
    text = (copied / "study.py").read_text()
    (copied / "other.py").write_text(text.replace("lr=1e-2", "lr=2e-2"))
    with pytest.raises(KdsearchError, match="another recipe than the study's, or kept by a kdsearch that"):
        kd.rank("./other.py", copied, out=copied, quiet=True)


def test_a_search_space_of_then_is_read(untouched):
    space = SearchSpace.load(str(untouched / "space.toml"))
    assert space.settings().interval == 2 and space.settings().floor is None and space.limits["rotate"] == 20
    assert list(space.limits) == json.loads((untouched / "study.json").read_text())["operations"]


def test_phases_in_a_search_space_of_then_are_read_or_refused_with_the_cure(tmp_path):
    text = (THEN / "phases.toml").read_text()
    try:
        settings = SearchSpace.load(str(THEN / "phases.toml")).settings()
    except KdsearchError as error:
        assert "pauses" in str(error) and str(error).count("\n") <= 1
        cured = tmp_path / "cured.toml"
        cured.write_text(re.sub("(?m)^phases", "pauses", text))
        settings = SearchSpace.load(str(cured)).settings()
    assert (
        settings.passes == 2 and settings.interval is None and 0.34 in {*getattr(settings, "pauses", settings.pauses)}
    )


def made(module: str, rate: float) -> list:
    """A function, a class, an object, and a user's function that holds all three, as if they lived in a module."""
    names = {"__name__": module}
    exec(f"RATE = {rate}\nclass Net:\n    width = 3\ndef build(): return Net, RATE", names)
    own = [names["build"], names["Net"], names["Net"]()]
    return [*own, lambda: own]


def test_what_fixes_a_search_does_not_tell_where_in_kdsearch_a_thing_lives():
    one, other = ([hash_source(thing) for thing in made(module, 0.1)] for module in ("kdsearch.a", "kdsearch.b.c"))
    assert one == other and len({*one}) == len(one)
    assert hash_source(*made("mine", 0.1)) != hash_source(*made("mine", 0.2))  # a user's are followed
    assert hash_source(*made("mine", 0.1)[2:3]) != hash_source(*made("yours", 0.1)[2:3])
    assert hash_source(kd.Budget(trials=3)) != hash_source(kd.Budget(trials=4))
