"""Scores of policies by the teacher alone: every number by hand, the closed form against the paper's procedure."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import kdsearch as kd
from kdsearch.analysis import plots
from kdsearch.analysis.frames import MEASURED, SCORES
from kdsearch.commands.rank import explain_ranking, gather
from kdsearch.core.errors import KdsearchError
from kdsearch.networks.teachers import weights_hash
from kdsearch.probe import scores
from kdsearch.probe.scores import Baseline, _variance, stddev_ratio
from kdsearch.study.catalogue import find_shipped

THREE = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]]  # probabilities; their mean is 1/3 each


class Reader(nn.Module):
    """A teacher that reads its probabilities off the pixels of images (1, 1, K)."""

    def forward(self, images):
        return images.double().flatten(1).clamp(min=1e-300).log()


def written(probabilities, labels) -> kd.data.ArrayData:
    """Images that `Reader` reads these probabilities from."""
    return kd.data.ArrayData(torch.tensor(probabilities)[:, None, None], torch.tensor(labels))


def baseline(data: kd.data.ArrayData, **how) -> Baseline:
    return Baseline.of(kd.networks.Teacher(Reader()), data, kd.Classification.of(data.images.shape[-1]), **how)


def pixels(change) -> kd.FixedTransform:
    return kd.FixedTransform(change, takes="float")


swap = pixels(lambda image: image[..., [1, 0, 2]])
jitter = pixels(lambda image: torch.softmax(3 * image + 0.7 * torch.randn_like(image), -1))


def mean_se(values) -> list:
    values = np.asarray(values)
    return [pytest.approx(values.mean(), abs=1e-6), pytest.approx(values.std(ddof=1) / len(values) ** 0.5, abs=1e-6)]


@pytest.fixture(scope="module")
def many():
    """A baseline of 300 images of 5 classes, of every certainty."""
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(5, (300,), generator=random)
    logits = torch.randn(300, 5, generator=random) + 2.5 * nn.functional.one_hot(labels, 5)
    return baseline(written(logits.softmax(1).tolist(), labels.tolist()))


@pytest.fixture(scope="module")
def real(teacher):
    data, _, _ = kd.data.digits()
    return Baseline.of(kd.networks.Teacher(teacher()), data, kd.Classification.of(10))


def test_all_numbers_by_hand():
    score = scores.score_policy(swap, baseline(written(THREE, [1, 1, 1])), views=1)
    seen = [[0.2, 0.7, 0.1], [0.6, 0.1, 0.3], [0.2, 0.2, 0.6]]
    assert (score.images, score.views) == (3, 1)
    assert list(score.teacher_accuracy) == mean_se([1, 0, 0])
    assert list(score.teacher_confidence) == mean_se([0.7, 0.6, 0.6])
    assert list(score.agreement) == mean_se([0, 0, 1])
    assert list(score.teacher_loss) == mean_se([-math.log(0.7), -math.log(0.1), -math.log(0.2)])
    assert list(score.teacher_loss_rise) == mean_se([math.log(0.2 / 0.7), math.log(0.6 / 0.1), 0])
    assert score.teacher_loss_rise.value == pytest.approx(math.log(12 / 7) / 3)
    assert list(score.teacher_entropy) == mean_se([-sum(p * math.log(p) for p in row) for row in seen])
    # q is (.45 .45 .1), (.35 .35 .3), (.2 .2 .6); its squared distances from its mean, (1/3 1/3 1/3), and those of p:
    q, p = np.array([0.49, 0.01, 0.64]) / 6, np.array([1.24, 0.76, 0.64]) / 6
    assert score.stddev_ratio.value == pytest.approx(math.sqrt(0.095 / 0.22))
    slope = math.sqrt(0.095 / 0.22) / 2 * (q / 0.095 - p / 0.22)
    assert score.stddev_ratio.se == pytest.approx(slope.std(ddof=1) / math.sqrt(3), rel=1e-5)


def test_an_identical_view_is_exactly_one_and_free_of_error(real):
    score = scores.score_policy(None, real)
    for same in (score, scores.score_policy(kd.Policy({"rotate": 30.0}, 1, probability=1e-12), real)):
        assert same.stddev_ratio == pytest.approx((1.0, 0.0), abs=1e-9)
        assert same.teacher_loss_rise == pytest.approx((0.0, 0.0), abs=1e-9)
        assert same.agreement == (1.0, 0.0)
    assert score.stddev_ratio == (1.0, 0.0)
    assert score.teacher_loss_rise == (0.0, 0.0)
    right, *_ = kd.evaluate(real.teacher.network, real.data, real.task, 256, "cpu")
    assert score.teacher_accuracy.value == pytest.approx(right)


@pytest.mark.parametrize("labels", [range(4), [0, 1, 2, 3] * 5, [0, 0, 0, 1, 2, 3]], ids=["each", "five", "unbalanced"])
@pytest.mark.parametrize("constant", [[0.25] * 4, [0.97, 0.01, 0.01, 0.01]], ids=["knows nothing", "is sure"])
def test_a_constant_teacher_is_the_degenerate_optimum_of_one_half(labels, constant):
    data = written(torch.eye(4)[list(labels)].tolist(), list(labels))
    score = scores.score_policy(
        pixels(lambda image: torch.tensor(constant).expand_as(image)), baseline(data), floor=0.3
    )
    assert score.stddev_ratio.value == pytest.approx(0.5)
    assert score.stddev_ratio.se == pytest.approx(0.0, abs=1e-9)
    assert not score.keeps_floor


def test_the_variance_has_no_bias():
    """Its mean over all pairs of images is that over all of them; the square of a mean would be too large."""
    random = torch.Generator().manual_seed(0)
    clean = torch.randn(7, 4, generator=random, dtype=torch.float64).softmax(1)
    views = torch.randn(3, 7, 4, generator=random, dtype=torch.float64).softmax(2)
    q = ((clean + views) / 2).numpy()
    crossed = np.einsum("vik,wjk->ij", q, q) / 9
    by_hand = (q**2).sum(2).mean() - (crossed.sum() - np.trace(crossed)) / 42
    assert _variance(torch.from_numpy(q))[0].item() == pytest.approx(by_hand)
    pairs = [_variance(torch.from_numpy(q[:, list(pair)]))[0].item() for pair in combinations(range(7), 2)]
    assert np.mean(pairs) == pytest.approx(by_hand)
    variance = clean.numpy().var(axis=0, ddof=1).sum()
    assert stddev_ratio(clean, views).value == pytest.approx(math.sqrt(by_hand / variance))


def test_the_closed_form_is_the_procedure_of_the_paper(real):
    """Sets of 64 images with their views, rows averaged, standard deviation over 4000 sets, mean over classes."""
    policy, n, sets = kd.presets.trivial(["rotate", "translate_y", "solarize", "noise"]), 64, 4000
    clean = real.answers.probabilities.numpy()
    views = []
    for i in range(20):
        images = policy.augment(policy.draw(len(clean), torch.Generator().manual_seed(i)), real.data.images).images
        views.append(real.teacher(images).logits.double().softmax(1).numpy())
    random, views = np.random.default_rng(0), np.stack(views)
    rows, draws = random.integers(len(clean), size=(sets, n)), random.integers(20, size=(sets, n))

    def t_stddev(second):
        means = np.concatenate([clean[rows], second], axis=1).mean(1)  # (sets, K)
        return means.std(axis=0, ddof=1).mean()

    simulated = t_stddev(views[draws, rows]) / t_stddev(clean[rows])
    score = scores.score_policy(policy, real, views=2).stddev_ratio
    assert score.value < 0.95
    assert simulated == pytest.approx(score.value, abs=3 * score.se)
    assert 3 * score.se < 0.02  # so that this says something


def test_standard_errors_are_those_of_a_bootstrap_over_images(many):
    score = scores.score_policy(jitter, many, views=3)
    seen = [jitter.augment(jitter.draw(300, torch.Generator().manual_seed(i)), many.data.images).images[:, 0, 0] for i
            in range(3)]  # fmt: skip
    clean, views = many.answers.probabilities, torch.stack(seen).double()
    rise = -views.log()[:, torch.arange(300), many.data.labels] - many.answers.loss
    random, found = np.random.default_rng(0), []
    for _ in range(1500):
        index = torch.from_numpy(random.integers(300, size=300))
        found.append((stddev_ratio(clean[index], views[:, index]).value, rise[:, index].mean().item()))
    ratio_se, rise_se = np.std(found, axis=0)
    assert stddev_ratio(clean, views).se == pytest.approx(ratio_se, rel=0.1)
    assert score.stddev_ratio.se == pytest.approx(ratio_se, rel=0.15)
    assert score.teacher_loss_rise.se == pytest.approx(rise_se, rel=0.15)


def test_the_same_view_again_makes_no_error_smaller(many):
    """The views of an image are no independent images."""
    blunt = pixels(lambda image: (image + 0.2) / 2)
    once, often = (scores.score_policy(blunt, many, views=views) for views in (1, 4))
    for name in MEASURED:
        assert getattr(once, name) == pytest.approx(getattr(often, name)), name


def test_scores_do_not_depend_on_the_batch_size_but_on_the_seed(real):
    few = kd.data.ArrayData(real.data.images[:150], real.data.labels[:150])
    policy = kd.Policy(["rotate", "noise", "erase", "brightness"], 3)
    one, other = (
        scores.score_policy(policy, Baseline.of(real.teacher, few, real.task, batch=batch), seed=3)
        for batch in (7, 150)
    )
    for name in MEASURED:
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-6), name
    assert (
        scores.score_policy(policy, Baseline.of(real.teacher, few, real.task), seed=4).teacher_loss != one.teacher_loss
    )


def test_nothing_of_the_teacher_or_policy_changes(real):
    policy = kd.presets.trivial(["rotate", "noise"])
    before = weights_hash(real.teacher.network), weights_hash(policy)
    scores.score_policy(policy, real)
    assert (weights_hash(real.teacher.network), weights_hash(policy)) == before


def test_the_floor_is_on_the_rise_and_may_be_absent():
    three = baseline(written(THREE, [1, 1, 1]))
    rise = math.log(12 / 7) / 3  # by hand above: .1797
    for floor, keeps in ((rise + 1e-3, True), (rise - 1e-3, False), (None, True)):
        score = scores.score_policy(swap, three, floor=floor)
        assert (score.keeps_floor, score.floor) == (keeps, floor)


def test_a_teacher_that_says_the_same_of_all_images_has_no_ratio():
    same = baseline(written([[0.5, 0.5]] * 4, [0, 1, 0, 1]))
    assert math.isnan(scores.score_policy(swap_two, same).stddev_ratio.value)


swap_two = pixels(lambda image: image.flip(-1))


class Broken(nn.Module):
    def forward(self, images):
        return torch.full((len(images), 3), math.inf)


def test_bad_input_of_scores_is_refused():
    data = written(THREE, [0, 1, 2])
    with pytest.raises(KdsearchError, match="1 images; needed: 2 or more"):
        baseline(data.subset(torch.tensor([0])))
    with pytest.raises(KdsearchError, match="0 views of each image; allowed: 1 or more"):
        scores.score_policy(swap, baseline(data), views=0)
    with pytest.raises(KdsearchError, match="logits are not finite"):
        Baseline.of(kd.networks.Teacher(Broken()), data, kd.Classification.of(3))


def no_student():
    raise AssertionError("a student was made")


@pytest.fixture(scope="module")
def ranked(tiny_study, tmp_path_factory):
    return kd.rank(replace(tiny_study, student=no_student), out=tmp_path_factory.mktemp("rank"), quiet=True)


def test_references_and_each_operation_are_ranked_without_a_student(ranked, finished):
    tables = kd.frames(finished.folder)
    operations = json.loads(tables["studies"]["operations"].iloc[0])
    kinds = dict(zip(ranked["policy"], ranked["kind"], strict=True))
    assert kinds == dict.fromkeys(("identity", "trivial", "rand_augment", "start"), "reference") | dict.fromkeys(
        operations, "operation"
    )
    assert {column: str(dtype) for column, dtype in ranked.dtypes.items()} == dict(SCORES)
    assert ranked[[*MEASURED, *(f"{name}_se" for name in MEASURED)]].notna().all(axis=None)
    assert set(ranked["split"]) == {"train"}
    assert set(ranked["images"]) == {100}


def test_those_that_keep_the_floor_come_first_by_their_ratio(ranked):
    keeps = ranked["teacher_loss_rise"] <= 1.0
    assert keeps.any()
    assert not keeps.all()
    assert list(ranked["keeps_floor"]) == list(keeps) == sorted(keeps, reverse=True)
    for rows in (ranked[keeps], ranked[~keeps]):
        assert rows["stddev_ratio"].is_monotonic_increasing
    assert ranked[~keeps]["stddev_ratio"].min() < ranked[keeps]["stddev_ratio"].min()


def test_the_floor_is_that_of_the_space_where_it_names_one(tiny_study, tmp_path):
    text = find_shipped("search_spaces", "geometric").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("[policy]\n", "[policy]\nfloor = 2.5\n"))
    table = kd.rank(replace(tiny_study, space=str(tmp_path / "mine.toml")), out=tmp_path, quiet=True)
    assert set(table["floor"]) == {2.5}


def test_policies_are_what_a_search_trains_with(ranked, tiny_study):
    from kdsearch.study.space import SearchSpace

    limits = {name: limit for name, limit in SearchSpace.load("default").limits.items() if name != "saturation"}
    at = Baseline.of(kd.networks.Teacher(tiny_study.teacher), tiny_study.train, kd.Classification.of(10))
    wanted = {
        "start": kd.Policy(limits, 16, probability=0.2),
        "rand_augment": kd.presets.rand_augment(limits),
        "trivial": kd.presets.trivial(limits),
        "rotate": kd.presets.trivial({"rotate": 30.0}),
        "invert": pixels(lambda image: 1 - image),
        "identity": None,
    }
    rows = ranked.set_index("policy")
    for name, policy in wanted.items():
        score = scores.score_policy(policy, at, floor=1.0)
        for number in MEASURED:
            pair = rows.loc[name, [number, f"{number}_se"]].tolist()
            assert pair == pytest.approx(list(getattr(score, number)), abs=1e-6), (name, number)


def test_yours_are_ranked_with_them(finished, tiny_study, tmp_path):
    spec = kd.PolicySpec.load(finished.folder / "trials" / "0000" / "policy.json")
    mine = {
        "spec": spec,
        "file": finished.folder / "trials" / "0000",
        "live": kd.Policy.from_spec(spec),
        "none": None,
        "blank": kd.FixedTransform(torch.zeros_like),
    }
    table = kd.rank(tiny_study, mine, out=tmp_path, quiet=True).set_index("policy")
    assert set(table.index[table["kind"] == "given"]) == set(mine)
    for name in ("file", "live"):
        pd.testing.assert_series_equal(table.loc[name], table.loc["spec"], check_names=False)
    assert table.loc["none", "stddev_ratio"] == 1
    assert table.loc["blank", "stddev_ratio"] == pytest.approx(0.5, abs=1e-6)
    assert table.loc["spec", "stddev_ratio"] != table.loc["start", "stddev_ratio"]
    trials = kd.rank(tiny_study, finished.folder, out=tmp_path, quiet=True).set_index("policy")
    assert set(trials.index[trials["kind"] == "given"]) == {"trial 0", "trial 1"}
    pd.testing.assert_series_equal(trials.loc["trial 0"], table.loc["spec"], check_names=False)


def test_names_of_files_and_folders_and_the_average(finished):
    folder, file = finished.folder, finished.folder / "trials" / "0001" / "policy.json"
    assert list(gather([file, folder, file.parent])) == [str(file), "trial 0", "trial 1", str(file.parent)]
    other = folder / ".." / folder.name
    assert list(gather([folder, str(other)])) == [f"{path} trial {i}" for path in (folder, other) for i in (0, 1)]
    spec = kd.PolicySpec.load(file)
    for which in ("final", "average"):
        assert gather([file], which)[str(file)].snapshot(1.0).settings == pytest.approx(
            kd.Policy.from_spec(spec, which).snapshot(1.0).settings
        )
    assert spec.final != spec.average


def test_the_images_are_those_asked_for(tiny_study, tmp_path):
    validation, fewer = (
        kd.rank(tiny_study, out=tmp_path, quiet=True, views=3, **how)
        for how in ({"split": "search-validation"}, {"most": 40})
    )
    right, *_ = kd.evaluate(tiny_study.teacher, tiny_study.search_validation, kd.Classification.of(10), 256, "cpu")
    clean = validation.set_index("policy").loc["identity"]
    assert clean["teacher_accuracy"] == pytest.approx(right)
    assert (clean["split"], clean["views"]) == ("search-validation", 3)
    assert set(fewer["images"]) == {40}

    looked_at = set()

    class Own:  # a data set of another kind
        def __len__(self):
            return 100

        def __getitem__(self, index):
            looked_at.add(index)
            return tiny_study.train[index]

    same = kd.rank(replace(tiny_study, train=Own()), out=tmp_path, quiet=True, views=3, most=40)
    pd.testing.assert_frame_equal(same, fewer)
    assert len(looked_at - set(range(64))) < 36  # beside the first few, the subset alone
    first = tiny_study.train.subset(torch.arange(40))
    of_first = kd.rank(replace(tiny_study, train=first), out=tmp_path, quiet=True, views=3).set_index("policy")
    assert of_first.loc["trivial", "teacher_loss"] != fewer.set_index("policy").loc["trivial", "teacher_loss"]


def test_a_recipe_is_trained_once_for_ranking_and_search(tiny_study, teacher, tmp_path):
    from kdsearch.study.preflight import preflight

    trained = []

    def train(network):
        trained.append(1)
        network.load_state_dict(teacher().state_dict())

    study = replace(tiny_study, teacher=kd.Recipe(lambda: kd.networks.small_convnet(8), train))
    ranked = kd.rank(study, out=tmp_path / "run", quiet=True)
    pd.testing.assert_frame_equal(kd.rank(study, out=tmp_path / "run", quiet=True), ranked)
    preflight(study, tmp_path / "run")
    assert trained == [1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["teacher.safetensors"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"split": "test"}, "unknown split 'test'; "),
        ({"split": "trains"}, "unknown split 'trains'; did you mean 'train'"),
        (
            {"policies": {"start": None, "rotate": None}},
            "(?s)2 problems.*'start' is the name of.*'rotate'",
        ),
        ({"policies": {"mine": print}}, "'mine' is of type builtin_function.*allowed: Policy, PolicySpec"),
        ({"policies": ["nowhere.json"]}, "cannot read the policy nowhere.json"),
        ({"policies": "empty"}, "empty is not a run folder"),
        ({"policies": ["mine.json", "mine.json"]}, "mine.json is given twice"),
        ({"policies": "mine.json", "which": "last"}, "unknown part of a policy 'last'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"most": 1}, "at most 1 images; allowed: .* 2 images or more"),
        ({"views": 0}, "0 views, .*; allowed: 1 view or more"),
    ],
    ids=str,
)
def test_bad_input_of_rank_is_one_message(how, said, tiny_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("mine.json").write_text(kd.Policy(["rotate"], 1).freeze().to_json())
    untrained = kd.Recipe(lambda: kd.networks.small_convnet(8), lambda network: pytest.fail("a teacher was trained"))
    with pytest.raises(KdsearchError, match=said):
        kd.rank(replace(tiny_study, teacher=untrained), quiet=True, **how)


def test_the_sentence_says_what_the_order_means(ranked):
    said = explain_ranking(ranked)
    assert "at most the floor of 1 nat come first" in said
    assert "no student was trained" in said
    close = ranked[(ranked["teacher_loss_rise"] - 1.0).abs() < 2 * ranked["teacher_loss_rise_se"]]["policy"]
    assert said.endswith(f"Within two standard errors of the floor: {', '.join(close)}.")
    assert 0 < len(close) < len(ranked)
    free = explain_ranking(ranked.assign(floor=math.nan))
    assert "floor" not in free
    assert free.startswith("Order: the smaller T. stddev ratio first")


def test_the_picture_has_the_rows_of_the_table(ranked):
    figure = plots.plot_scores(ranked)
    ratio, rise = figure.axes
    assert [label.get_text() for label in ratio.get_yticklabels()] == list(ranked["policy"])
    assert ratio.get_ylim() == (len(ranked) - 0.5, -0.5)  # downwards
    for axes, column in ((ratio, "stddev_ratio"), (rise, "teacher_loss_rise")):
        points = [bar.lines[0] for bar in axes.containers]
        assert [point.get_xdata()[0] for point in points] == pytest.approx(list(ranked[column]))
        assert [point.get_ydata()[0] for point in points] == list(range(len(ranked)))
        assert [point.get_markerfacecolor() != "white" for point in points] == list(ranked["keeps_floor"])
        widths = [np.ptp(bar.lines[2][0].get_segments()[0][:, 0]) / 2 for bar in axes.containers]
        assert widths == pytest.approx(list(ranked[f"{column}_se"]))
    assert [line.get_xdata()[0] for line in rise.lines if line.get_linestyle() == ":"] == [1.0]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["reference", "operation", "over the floor of 1 nat"]
    free = plots.plot_scores(ranked.assign(floor=math.nan, keeps_floor=True))
    assert [text.get_text() for text in free.legends[0].get_texts()] == ["reference", "operation"]


FILE = """
import torch
import kdsearch as kd
images = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 5))
with torch.no_grad():
    teacher[1].weight.copy_(torch.randn(5, 256, generator=torch.Generator().manual_seed(0)))
    data = kd.data.ArrayData(images, teacher(images).argmax(1))
def student():
    raise AssertionError("a student was made")
study = kd.Study(name="mine", train=data, search_validation=data, teacher=teacher, student=student, classes=5,
                 space="geometric", floor={floor})
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A study file, and a policy file beside it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILE.format(floor=0.3))
    Path("free.py").write_text(FILE.format(floor=None))
    Path("policy.json").write_text(kd.Policy(["rotate"], 1).freeze().to_json())


def test_the_command_prints_the_table_and_what_it_means(mine, kdsearch):
    out = kdsearch("rank", "./mine.py", "policy.json", "--views", 1, "--table", "t.csv", "--picture", "p.png")
    lines = out.splitlines()
    table = pd.read_csv("t.csv")
    assert lines[0] == "13 policies on 64 of the 64 training images of study mine, 1 draw for each image"
    head = next(i for i, line in enumerate(lines) if line.startswith("policy  "))
    shown = [line.split() for line in lines[head + 1 : head + 14]]
    assert [words[0] for words in shown] == list(table["policy"])
    assert [words[1] for words in shown] == ["kept" if keeps else "broken" for keeps in table["keeps_floor"]]
    for words, row in zip(shown, table.to_dict("records"), strict=True):
        assert words[2:5] == [f"{row['stddev_ratio']:.3f}", "±", f"{row['stddev_ratio_se']:.3f}"]
        assert words[8] == f"{100 * row['teacher_accuracy']:.1f}"
    assert "no student was trained" in out
    assert "policy.json" in set(table["policy"])
    assert lines[-2:] == ["t.csv", "p.png"]
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"
    assert not Path("runs").exists()


def test_the_command_without_floor_on_other_images(mine, kdsearch):
    out = kdsearch("rank", "./free.py", "--on", "search-validation", "--most", 32, "--table", "t.parquet")
    assert "12 policies on 32 of the 64 search-validation images of study mine, 2 draws" in out
    assert "kept" not in out
    table = pd.read_parquet("t.parquet")
    assert {column: str(dtype) for column, dtype in table.dtypes.items()} == dict(SCORES)
    assert table["stddev_ratio"].is_monotonic_increasing
    assert set(table["split"]) == {"search-validation"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit"], "unknown study 'digit'; did you mean 'digits'?"),
        (["./mine.py", "--table", "t.txt"], "t.txt: a table's name ends in .csv or .parquet; got '.txt'"),
        (["./mine.py", "--picture", "p.doc"], "p.doc: a picture's name ends in"),
        (["./mine.py", "--on", "test"], "'test' is not one of 'train', 'search-validation'"),
        (["./mine.py", "mine.py"], "mine.py: not a JSON policy"),
        (["./mine.py", "--table", "nowhere/t.csv"], "cannot write nowhere/t.csv"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_of_the_command(arguments, said, mine, kdsearch, tmp_path):
    before = set(tmp_path.iterdir())
    message = " ".join(kdsearch("rank", *arguments, code=2).replace("│", " ").split())
    assert said in message
    assert "Traceback" not in message
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before
