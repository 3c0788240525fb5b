"""Search spaces: what a file may say, what it is refused for, and that what it names reaches the trials."""

from dataclasses import fields, replace

import pytest

import kdsearch as kd
from kdsearch.core.errors import KdsearchError
from kdsearch.losses.objectives import TABLE as OBJECTIVES
from kdsearch.losses.objectives import TST
from kdsearch.study.facts import search_identity
from kdsearch.study.preflight import preflight
from kdsearch.study.space import NUMBERS, POLICY, UNNAMED, WHOLE, SearchSpace, Settings

LEARNING = {"learning_rate": "0.1", "prior_strength": "0.3", "operations_per_image": "1", "interval": "3"}


def toml(objective: str = "", operations: str = "[operations.rotate]", **policy: str | None) -> str:
    """A space of one operation; None leaves a number of `LEARNING` out."""
    lines = [f"{name} = {value}" for name, value in {**LEARNING, **policy}.items() if value is not None]
    weights = f"[objective]\n{objective}\n" if objective else ""
    return "\n".join(["[policy]", *lines, weights + operations, ""])


@pytest.fixture
def load(tmp_path):
    """Loads a space from its text."""

    def read(text: str) -> SearchSpace:
        (tmp_path / "mine.toml").write_text(text)
        return SearchSpace.load(str(tmp_path / "mine.toml"))

    return read


def test_a_file_that_names_the_least_has_the_rest_as_the_study_says(load):
    space = load(toml())
    told = {"learning_rate": 0.1, "prior_strength": 0.3, "operations_per_image": 1, "interval": 3}
    assert space.numbers == told and space.pauses == () and not space.ranges
    rest = Settings(
        **told, pauses=(), passes=None, warm_up=0.1, probability=0.5, extent=0.5, floor=1.0, objective=dict(TST)
    )
    assert space.settings() == rest
    filled = space.with_defaults({"divergence": 0.5}, None)
    assert filled.settings() == replace(rest, floor=None, objective={"divergence": 0.5})
    assert filled.numbers == told


def test_what_the_file_names_comes_before_what_the_study_says(load):
    text = toml(
        "student_wrong = 0\nteacher_entropy = { low = 0.0, high = 1.0, default = 0.25 }",
        prior_strength="false",
        floor="{ low = 0.0, high = 1.0, default = 0.5 }",
        warm_up="0",
        probability="0.25",
        extent="0.75",
    )
    settings = load(text).with_defaults({"student_wrong": 2.0, "divergence": 3.0}, None).settings()
    assert settings.prior_strength is None and settings.floor == 0.5
    assert (settings.warm_up, settings.probability, settings.extent) == (0.0, 0.25, 0.75)
    assert settings.objective == {"student_wrong": 0.0, "divergence": 3.0, "teacher_entropy": 0.25}
    chosen = load(text).settings({"teacher_entropy": 0.75, "floor": 0.125})
    assert (chosen.objective["teacher_entropy"], chosen.floor) == (0.75, 0.125)


def test_false_switches_the_floor_off(load):
    assert load(toml(floor="false")).with_defaults(TST, 0.3).settings().floor is None


def test_phases_take_the_place_of_the_interval(load):
    space = load(
        toml(interval=None, pauses="[0.125, 0.375]", passes="{ low = 1, high = 30, log = true, default = 10 }")
    )
    settings = space.settings()
    assert (settings.interval, settings.pauses, settings.passes) == (None, (0.125, 0.375), 10)
    assert type(space.settings({"passes": 4.0}).passes) is int


def test_settings_as_flat_plain_values(load):
    flat = load(toml(interval=None, pauses="[0.125, 0.375]", passes="5", prior_strength="false")).settings().numbers()
    assert flat == {
        "learning_rate": 0.1, "prior_strength": None, "operations_per_image": 1, "interval": None, "passes": 5,
        "warm_up": 0.1, "probability": 0.5, "extent": 0.5, "floor": 1.0, "pauses": "0.125, 0.375", **TST,
    }  # fmt: skip
    assert load(toml()).settings().numbers()["pauses"] is None


def test_the_tables_of_numbers_are_those_of_the_settings_and_of_the_objectives():
    assert {f.name for f in fields(Settings)} == {*POLICY, "pauses", "objective"}
    assert set(NUMBERS) == {*POLICY, *OBJECTIVES} >= set(UNNAMED)
    assert {"operations_per_image", "interval", "passes", "flips"} == WHOLE


def test_all_operations_of_an_image_are_those_there_are(load):
    three = "[operations.rotate]\n[operations.invert]\n[operations.noise]"
    space = load(toml(operations_per_image="'all'", operations=three, flips="2"))
    assert space.settings().operations_per_image == 3 and space.drop(["noise"]).settings().operations_per_image == 2
    assert space.settings().flips == 2 == space.settings().numbers()["flips"]
    assert "policy.flips" not in load(toml()).fingerprint() and load(toml()).settings().flips is None


LIST = "a list of shares of the epochs"
SHARES = "shares of the epochs between 0 and 1, increasing"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["[operations] is missing", "[policy] is missing"]),
        (
            "[policy]\nlearning_rat = 1.0\n[operations.rotat]",
            [
                "[policy.learning_rate] is missing",
                "[policy.prior_strength] is missing",
                "[policy.operations_per_image] is missing",
                "[policy.learning_rat] unknown number 'learning_rat'; did you mean 'learning_rate'?",
                "[policy.interval] is missing; allowed in its place: pauses together with passes",
                "[operations.rotat] unknown operation 'rotat'; did you mean 'rotate'?",
            ],
        ),
        (toml(interval="2.5"), ["[policy.interval] must be whole numbers; got 2.5"]),
        (toml(interval="false"), ["[policy.interval] allowed: 1 or more; got false"]),
        (toml(interval="inf"), ["[policy.interval] input should be a finite number; got 'inf'"]),
        (toml(interval="'3'"), ["[policy.interval] allowed: 1 or more; got '3'"]),
        (toml(interval="'all'"), ["[policy.interval] allowed: 1 or more; got 'all'"]),
        (
            toml(operations_per_image="'al'"),
            ["[policy.operations_per_image] allowed: 1 to 1, the number of operations, or \"all\"; got 'al'"],
        ),
        (
            toml(flips="0.5"),
            ["[policy.flips] must be whole numbers; got 0.5", "[policy.flips] allowed: 1 or more; got 0.5"],
        ),
        (toml(interval="[0.5]"), ["[policy.interval] allowed: 1 or more; got [0.5]"]),
        (
            toml(interval="{ low = 5, high = 3, default = 4 }"),
            ["[policy.interval] needs low <= default <= high; got 5, 4, 3"],
        ),
        (
            toml(floor="{ low = 0, high = 3, default = 1, log = true }"),
            ["[policy.floor] a log range needs low > 0; got 0"],
        ),
        (
            toml(floor="{ low = 0, hihg = 3, default = 1 }"),
            [
                "[policy.floor.high] is missing",
                "[policy.floor.hihg] unknown field 'hihg'; did you mean 'high'?",
            ],
        ),
        (
            toml(operations_per_image="3"),
            ['[policy.operations_per_image] allowed: 1 to 1, the number of operations, or "all"; got 3'],
        ),
        (
            toml(prior_strength="0"),
            ["[policy.prior_strength] allowed: 1e-06 or more, or false to switch it off; got 0"],
        ),
        (
            toml(prior_strength="{ low = 0, high = 1, default = 0.3 }"),
            ["[policy.prior_strength] allowed: 1e-06 or more, or false to switch it off; got 0, 1, 0.3"],
        ),
        (
            toml(prior_strength="true"),
            ["[policy.prior_strength] allowed: 1e-06 or more, or false to switch it off; got true"],
        ),
        (toml(floor="-0.1"), ["[policy.floor] allowed: 0 or more, or false to switch it off; got -0.1"]),
        (toml(warm_up="0.95"), ["[policy.warm_up] allowed: 0 to 0.9; got 0.95"]),
        (toml(probability="1.0"), ["[policy.probability] allowed: 0.001 to 0.999; got 1"]),
        (toml(extent="0"), ["[policy.extent] allowed: 0.001 to 0.999; got 0"]),
        (toml("student_wrong = -1"), ["[objective.student_wrong] allowed: 0 or more; got -1"]),
        (
            toml("divergence = { low = -1, high = 1, default = 0 }\nteacher_entropy = false"),
            [
                "[objective.divergence] allowed: 0 or more; got -1, 1, 0",
                "[objective.teacher_entropy] allowed: 0 or more; got false",
            ],
        ),
        (
            toml("student_wron = 1"),
            ["[objective.student_wron] unknown term 'student_wron'; did you mean 'student_wrong'?"],
        ),
        (
            toml(pauses="[0.5]", passes="1"),
            ["[policy] allowed: interval, or pauses together with passes; got interval, pauses, passes"],
        ),
        (toml(passes="1"), ["[policy] allowed: interval, or pauses together with passes; got interval, passes"]),
        (
            toml(interval=None, pauses="[0.5]", passes="1", warm_up="0.2"),
            ["[policy.warm_up] has no part where there are pauses; leave it out"],
        ),
        (toml(interval=None, passes="1"), ["[policy.pauses] is missing; passes needs it"]),
        (toml(interval=None, pauses="[0.5]"), ["[policy.passes] is missing; pauses needs it"]),
        (toml(interval=None), ["[policy.interval] is missing; allowed in its place: pauses together with passes"]),
        (toml(interval=None, pauses="0.5", passes="1"), [f"[policy.pauses] allowed: {LIST}; got 0.5"]),
        (toml(interval=None, pauses="false", passes="1"), [f"[policy.pauses] allowed: {LIST}; got false"]),
        (
            toml(interval=None, pauses="{ low = 0, high = 1, default = 0.5 }", passes="0.5"),
            [
                "[policy.passes] must be whole numbers; got 0.5",
                "[policy.passes] allowed: 1 or more; got 0.5",
                f"[policy.pauses] allowed: {LIST}; got a range",
            ],
        ),
        (toml(interval=None, pauses="[]", passes="1"), [f"[policy.pauses] allowed: {SHARES}; got []"]),
        (toml(interval=None, pauses="[0.5, 0.5]", passes="1"), [f"[policy.pauses] allowed: {SHARES}; got [0.5, 0.5]"]),
        (
            toml(interval=None, pauses="[-0.5, 0.5]", passes="1"),
            [f"[policy.pauses] allowed: {SHARES}; got [-0.5, 0.5]"],
        ),
        (toml(interval=None, pauses="[0.5, 1.0]", passes="1"), [f"[policy.pauses] allowed: {SHARES}; got [0.5, 1.0]"]),
        (
            toml(interval=None, pauses="['a']", passes="1"),
            ["[policy.pauses.0] input should be a valid number; got 'a'"],
        ),
        (
            toml(operations="[operations.rotate]\nlimit = 200.0"),
            ["[operations.rotate] limit: more than 0, at most 180 degrees; got 200"],
        ),
        (
            toml(operations="[operations.invert]\nlimit = 1.0"),
            ["[operations.invert] has no magnitude, hence no limit; got 1"],
        ),
        (
            toml(operations="[operations.rotate]\nlimt = 20.0"),
            ["[operations.rotate.limt] unknown field 'limt'; did you mean 'limit'?"],
        ),
        ("objectives = 1\n" + toml(), ["[objectives] unknown field 'objectives'; did you mean 'objective'?"]),
    ],
)
def test_a_wrong_space_is_refused_with_all_its_problems_in_one_message(text, said, load, tmp_path):
    with pytest.raises(KdsearchError) as refused:
        load(text)
    count = "1 problem" if len(said) == 1 else f"{len(said)} problems"
    assert str(refused.value).splitlines() == [f"{tmp_path / 'mine.toml'}: {count}", *(f"  {line}" for line in said)]


def test_a_file_that_is_not_toml_is_named(load):
    with pytest.raises(KdsearchError, match=r"mine\.toml: not a TOML file: "):
        load("[policy")


# In a study


def ready_with(study, load, text, tmp_path):
    load(text)
    return preflight(replace(study, space=str(tmp_path / "mine.toml")), tmp_path)


def test_what_a_space_names_reaches_policy_and_policy_steps(tiny_study, load, tmp_path):
    text = toml("student_wrong = 0.25", probability="0.25", extent="0.75", floor="0.125")
    ready = ready_with(replace(tiny_study, objective={"divergence": 0.5}), load, text, tmp_path).ready
    settings = ready.space.settings()
    policy, steps = ready.policy(settings), ready.policy_steps(settings)
    assert policy.probability.tolist() == pytest.approx([0.25]) and policy.prior == (0.25, 0.75)
    assert policy.ranges()[1].tolist() == pytest.approx([0.75 * 30])
    assert ready.reference("start", settings).prior == (0.25, 0.75)
    assert (steps.interval, steps.learning_rate, steps.prior_strength, steps.floor) == (3, 0.1, 0.3, 0.125)
    assert steps.objective == {"divergence": 0.5, "student_wrong": 0.25}


def test_a_study_whose_weights_or_floor_are_not_allowed_is_refused(tiny_study, load, tmp_path):
    wrong = replace(tiny_study, objective={"student_wrong": -1.0, "divergenc": 1.0}, floor=-0.5)
    with pytest.raises(KdsearchError) as refused:
        preflight(wrong, tmp_path)
    assert str(refused.value).splitlines() == [
        "study tiny: 3 problems",
        "  objective: student_wrong is -1; allowed: 0 or more, the sign is in the term",
        "  objective: unknown term 'divergenc'; did you mean 'divergence'?",
        "  floor is -0.5; allowed: 0 or more, or None for no floor",
    ]
    with pytest.raises(
        KdsearchError, match=r"objective: no term has a weight; known: teacher_right, student_wrong, divergence"
    ):
        preflight(replace(tiny_study, objective={}), tmp_path)
    named = ready_with(replace(tiny_study, objective={}), load, toml("divergence = 1"), tmp_path).ready
    assert named.space.settings().objective == {"divergence": 1.0}


def test_weights_that_are_all_zero_are_no_objective(tiny_study, load, tmp_path):
    with pytest.raises(KdsearchError, match="objective: no term has a weight"):
        ready_with(tiny_study, load, toml("student_wrong = 0\nteacher_right = 0"), tmp_path)


def test_phases_that_do_not_fit_the_epochs_of_a_study_are_refused_before_anything_runs(tiny_study, load, tmp_path):
    with pytest.raises(KdsearchError, match=r"pauses 0\.95: with 3 epochs they come after epoch 3; allowed"):
        ready_with(tiny_study, load, toml(interval=None, pauses="[0.95]", passes="1"), tmp_path)


def test_only_a_prior_that_is_off_is_warned_of_before_anything_runs(tiny_study, load, tmp_path, capsys):
    assert ready_with(tiny_study, load, toml(floor="false"), tmp_path).warnings == ()
    (tmp_path / "mine.toml").write_text(toml(prior_strength="false"))
    budget = replace(tiny_study.budget, trials=1, epochs=1, steps=4, confirmation=0)
    kd.search(replace(tiny_study, space=str(tmp_path / "mine.toml"), budget=budget), out=tmp_path / "run")
    said = capsys.readouterr().out
    line = "warning: space mine: the prior is off, and without it every probability is best at 0 or 1\n"
    assert said[: said.index("identity:")].count("warning") == 1 and line in said
    assert said.index(line) < said.index("identity:")
    assert kd.PolicySpec.load(tmp_path / "run" / "trials" / "0000" / "policy.json").provenance["prior_strength"] is None


def test_every_number_of_a_trial_fixes_a_search(tiny_study, load, tmp_path):
    checked = ready_with(tiny_study, load, toml(), tmp_path)

    def fixed(space):
        return search_identity(replace(checked, ready=replace(checked.ready, space=space)))

    before = search_identity(checked)
    seen = [before]
    for text in (
        toml("student_wrong = 0.5"),
        toml("divergence = 0.0"),
        toml(floor="false"),
        toml(floor="0"),
        toml(floor="{ low = 0.0, high = 1.0, default = 0.3 }"),
        toml(prior_strength="false"),
        toml(warm_up="0.2"),
        toml(probability="0.4"),
        toml(extent="0.4"),
        toml(interval=None, pauses="[0.5]", passes="1"),
        toml(interval=None, pauses="[0.25]", passes="1"),
    ):
        after = fixed(load(text).with_defaults(tiny_study.objective, tiny_study.floor))
        assert after not in seen, text
        seen.append(after)
    assert fixed(load(toml()).with_defaults({"student_wrong": 1.0}, 1.0)) != before
    assert fixed(load(toml(floor="1.0")).with_defaults(TST, 9.0)) == before
    assert before["policy.floor"] == 1.0 and before["objective.student_wrong"] == 1.0
    assert not {"objective", "floor", "space"} & set(before)


def test_warm_up_phases_and_passes_of_a_space_reach_the_policy_steps(tiny_study, load, tmp_path):
    ready = ready_with(tiny_study, load, toml(warm_up="0.2"), tmp_path).ready
    steps = ready.policy_steps(ready.space.settings())
    assert (steps.interval, steps.warm_up, steps.pauses) == (3, 0.2, ())
    pauses = load(toml(interval=None, pauses="[0.1, 0.5]", passes="3", prior_strength="false")).with_defaults(TST, None)
    steps = ready.policy_steps(pauses.settings())
    assert (steps.pauses, steps.passes, steps.prior_strength, steps.floor) == ((0.1, 0.5), 3, None, None)


def test_a_search_chooses_weights_and_the_floor_and_shows_them_in_frames(tiny_study, load, tmp_path):
    searched = {"low": 0.0, "high": 2.0}
    text = toml(
        "student_wrong = { low = 0.0, high = 2.0, default = 0.5 }\ndivergence = 0.25",
        floor="{ low = 0.0, high = 2.0, default = 1.0 }",
        prior_strength="false",
    )
    load(text)
    budget = replace(tiny_study.budget, trials=3, epochs=1, steps=4, confirmation=0)
    study = replace(tiny_study, space=str(tmp_path / "mine.toml"), budget=budget)
    folder = kd.search(study, out=tmp_path / "run", quiet=True).folder
    params = kd.frames(folder)["params"]
    assert list(params["name"]) == ["floor", "student_wrong"] * 3
    assert list(params.query("run == 'trial 0'")["value"]) == [1.0, 0.5]
    for _, rows in params.groupby("name"):
        assert rows["value"].between(0, 2).all() and rows["value"].nunique() == 3
        assert rows[["low", "high"]].drop_duplicates().to_dict("records") == [searched]
    for number in range(3):
        told = kd.PolicySpec.load(folder / "trials" / f"{number:04d}" / "policy.json").provenance
        chosen = dict(params.query("trial == @number")[["name", "value"]].itertuples(index=False))
        assert {name: told[name] for name in chosen} == chosen
        assert (told["divergence"], told["teacher_right"], told["pauses"]) == (0.25, 1.0, None)
    (tmp_path / "mine.toml").write_text(text.replace("divergence = 0.25", "divergence = 0.5"))
    with pytest.raises(KdsearchError, match=r"differs in:\n  objective\.divergence: stored 0\.25, now 0\.5\n"):
        kd.search(study, out=folder, quiet=True)
