"""The base view of a policy in pictures and in comparisons."""

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_pictures import THREE, _apart, enlarged, picture, policy, rows_of, words

import kdsearch as kd
from kdsearch.analysis.diff import other_differences
from kdsearch.analysis.sheet import GAP, contents
from kdsearch.augment.bases import base_of_parts
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import PolicySpec, Setting

MIRRORED = policy({"horizontal_flip": Setting(probability=1.0)})
INVERTED = {"invert": Setting(probability=1.0)}
SHIFTED = base_of_parts(["turn", "shift"]).freeze()


def over(base: PolicySpec | None, spec: PolicySpec) -> PolicySpec:
    return spec.model_copy(update={"base": base})


def test_draws_of_the_whole_policy_are_over_the_base_views_beside_them(digits_images):
    sheet = contents(over(MIRRORED, policy(INVERTED)), digits_images[:4])
    assert len(sheet.base) == len(sheet.drawn) == 7
    assert all(torch.equal(view, digits_images[:4].flip(-1)) for view in sheet.base)
    assert all(torch.equal(draw, 1 - digits_images[:4].flip(-1)) for draw in sheet.drawn)
    assert torch.equal(sheet.rows[0].tiles[0], 1 - digits_images[:4])  # an operation alone, on the original


def test_base_views_are_drawn_anew_and_leave_what_the_policy_draws_as_it_was(digits_images):
    spec = policy({"invert": Setting(probability=0.5)})
    bare, mirrored = (contents(over(base, spec), digits_images[:4]) for base in (None, MIRRORED))
    assert bare.base == []
    assert all(torch.equal(*pair) for pair in zip(mirrored.drawn, (draw.flip(-1) for draw in bare.drawn), strict=True))
    shifted = contents(over(SHIFTED, spec), digits_images[:4]).base
    assert len({tuple(view.flatten().tolist()) for view in shifted}) == len(shifted)


def test_each_draw_stands_under_its_base_view(digits_images):
    spec, pitch = over(SHIFTED, policy(INVERTED)), 128 + GAP
    shown, sheet = (look(spec, digits_images[:2]) for look in (kd.analysis.policy_sheet, contents))
    pixels = picture(shown)
    for column in (1, 7):
        base, second = sheet.base[column - 1], sheet.drawn[column - 1]
        tops = [rows_of(pixels, enlarged(view[1], 8), column, pitch) for view in (base, second)]
        assert [len(places) for places in tops] == [1, 1] and tops[1][0] == tops[0][0] + pitch
    text = words(shown)
    assert "the base view" in text and "every image, first; fill reflect" in text
    assert "rotate: rate 0.5, ±0 to 10 degrees" in text
    assert "the base view" not in words(kd.analysis.policy_sheet(over(None, spec), digits_images[:2]))


def test_no_text_about_a_large_base_view_covers_another(digits_images):
    base = kd.Policy(list(OPERATIONS), 8).freeze()
    figure = kd.analysis.policy_sheet(over(base, policy(INVERTED)), digits_images[:2])
    renderer = FigureCanvasAgg(figure).get_renderer()
    _apart(figure, [text.get_window_extent(renderer) for text in figure.axes[0].texts])


def test_differences_of_base_views_are_said():
    spec = policy(THREE)
    a, b = over(SHIFTED, spec), over(base_of_parts(["turn", "flip"], fill="zero", probability=0.25).freeze(), spec)
    assert other_differences(a, b) == [
        "base view, operations per image: 3 of 3 → 2 of 2",
        "base view, fill: reflect → zero",
        "base view, translate_x: rate 0.5, ±0 to 0.12 fraction of the width → never",
        "base view, translate_y: rate 0.5, ±0 to 0.12 fraction of the height → never",
        "base view, rotate: rate 0.5, ±0 to 10 degrees → rate 0.25, ±0 to 10 degrees",
        "base view, horizontal_flip: never → rate 0.25",
    ]
    none = "base view: none → 1 of 1 operation an image: horizontal_flip on 100 %"
    assert other_differences(spec, over(MIRRORED, spec)) == [none]
    assert other_differences(a, a) == other_differences(spec, spec) == []


def test_the_command_says_that_only_base_views_differ(tmp_path, monkeypatch, kdsearch):
    monkeypatch.chdir(tmp_path)
    for name, base in (("a", MIRRORED), ("b", None)):
        (tmp_path / f"{name}.json").write_text(over(base, policy(THREE)).to_json())
    assert kdsearch("diff", "a.json", "b.json").splitlines()[1:] == [
        "base view: 1 of 1 operation an image: horizontal_flip on 100 % → none",
        "no operation that the policy itself applies differs",
    ]
