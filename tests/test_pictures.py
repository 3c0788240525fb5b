"""Pictures and tables of policies: what is on them, not only that they are there."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import kdsearch as kd
from kdsearch.analysis import plots
from kdsearch.analysis.diff import other_differences
from kdsearch.analysis.sheet import GAP, LEFT, contents
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.spec import PolicySpec, Setting, Snapshot
from kdsearch.data.images import photographs

THREE = {
    "rotate": Setting(probability=0.25, low=2.0, high=10.0),
    "solarize": Setting(probability=0.75, low=0.25, high=0.75),
    "invert": Setting(probability=0.5),
}


def policy(*moments: dict[str, Setting], n: int = 1, fill: str = "zero", **limits: float) -> PolicySpec:
    """A policy with the given settings over training."""
    at = [1.0] if len(moments) == 1 else [i / (len(moments) - 1) for i in range(len(moments))]
    schedule = [Snapshot(progress=p, settings=settings) for p, settings in zip(at, moments, strict=True)]
    return kd.Policy({name: limits.get(name) for name in moments[0]}, n, fill=fill).freeze(schedule)


def whole(probability: float = 0.5) -> PolicySpec:
    """All operations there are."""
    return kd.Policy(list(OPERATIONS), 4, probability=probability).freeze()


@pytest.fixture
def gray(digits_images):
    return digits_images[:4]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def picture(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def rows_of(sheet: np.ndarray, tile: np.ndarray, column: int, pitch: int) -> list[int]:
    """Where in a column of a sheet a tile is, from the top."""
    strip = sheet[:, LEFT + column * pitch :][:, : tile.shape[1]]
    return [y for y in range(len(strip) - len(tile) + 1) if np.array_equal(strip[y : y + len(tile)], tile)]


def enlarged(image: torch.Tensor, times: int) -> np.ndarray:
    """(1, H, W) as RGB bytes, every pixel `times` as large."""
    pixels = (image[0] * 255).round().to(torch.uint8).numpy()
    return np.kron(pixels, np.ones((times, times), np.uint8))[..., None].repeat(3, -1)


def test_tiles_are_the_operation_at_the_stated_magnitudes(gray, force):
    rows = {row.operation: row for row in contents(policy(THREE), gray).rows}
    turned = [kd.operations.apply(force({"rotate": m}, 4), gray).images for m in (2.0, 6.0, 10.0)]
    assert all(torch.equal(tile, other) for tile, other in zip(rows["rotate"].tiles, turned, strict=True))
    for tile, m in zip(rows["solarize"].tiles, (0.25, 0.5, 0.75), strict=True):
        assert torch.equal(tile, torch.where(gray >= 1 - m, 1 - gray, gray))
    (inverted,) = rows["invert"].tiles
    assert torch.equal(inverted, 1 - gray)
    assert rows["rotate"].text == "probability 0.25, rate 0.083\n±2 to 10 degrees"
    assert rows["solarize"].text == "probability 0.75, rate 0.25\n0.25 to 0.75 share of the value range inverted"
    assert rows["invert"].text == "probability 0.50, rate 0.17"


def test_the_magnitude_alone_changes_along_a_row(photos):
    """The erased rectangle grows around one place, the noise is one field made stronger."""
    settings = {
        "erase": Setting(probability=1, low=0.25, high=0.5),
        "noise": Setting(probability=1, low=0.01, high=0.03),
    }
    rows = {row.operation: row for row in contents(policy(settings), photos[:2] * 0.5 + 0.25).rows}
    low, middle, high = ((tile == 0).all(1) for tile in rows["erase"].tiles)
    assert (low <= middle).all()
    assert (middle < high).any()
    assert (low.sum((1, 2)) <= 64).all()  # a quarter of each side of 32
    low, _, high = (tile - (photos[:2] * 0.5 + 0.25) for tile in rows["noise"].tiles)
    torch.testing.assert_close(high, 3 * low, atol=1e-5, rtol=0)


def test_the_most_frequent_comes_first_and_the_rest_is_named(gray):
    settings = {
        **THREE,
        "saturation": Setting(probability=0.9, low=0.1, high=0.2),
        "equalize": Setting(probability=0.0),
    }
    sheet = contents(policy(settings), gray, most=2)
    assert [row.operation for row in sheet.rows] == ["solarize", "invert"]
    assert sheet.left_out == [
        "never applied: equalize",
        "no effect on gray images: saturation",
        "not drawn here: rotate (rate 0.05)",
    ]


def test_the_average_is_drawn_when_asked_for(gray, force):
    earlier = {**THREE, "rotate": Setting(probability=1.0, low=0.0, high=30.0)}
    spec = policy(earlier, earlier, THREE)  # the average is that of the last two
    rows = {row.operation: row for row in contents(spec, gray, which="average").rows}
    assert rows["rotate"].text == "probability 0.62, rate 0.21\n±1 to 20 degrees"
    highest = kd.operations.apply(force({"rotate": 20.0}, 4), gray).images
    assert torch.equal(rows["rotate"].tiles[2], highest)
    assert "average policy" in words(kd.analysis.policy_sheet(spec, gray, which="average"))[0]


def test_small_images_are_on_the_sheet_enlarged_pixel_by_pixel(gray, force):
    spec = policy(THREE)
    sheet = picture(kd.analysis.policy_sheet(spec, gray))
    pitch = 128 + GAP
    places = [rows_of(sheet, enlarged(gray[0], 8), 0, pitch), rows_of(sheet, enlarged(gray[1], 8), 4, pitch)]
    assert len(places[0]) == 4  # three operations and the draws
    assert places[1][:3] == places[0][:3]  # a draw may leave the second image as it is
    turned = kd.operations.apply(force({"rotate": 10.0}, 4), gray).images
    assert rows_of(sheet, enlarged(turned[0], 8), 3, pitch) == [places[0][2]]
    assert rows_of(sheet, enlarged(turned[1], 8), 7, pitch) == [places[0][2]]
    drawn = contents(spec, gray).drawn
    for k, draw in enumerate(drawn):
        assert places[0][3] in rows_of(sheet, enlarged(draw[0], 8), k + 1, pitch)
    assert rows_of(sheet, enlarged(drawn[6][3], 8), 7, pitch)[-1] == places[0][3] + 3 * pitch


def test_more_than_four_images_are_no_longer_sheet(digits_images):
    figures = [kd.analysis.policy_sheet(policy(THREE), digits_images[:n]) for n in (4, 9)]
    assert np.array_equal(*(picture(figure) for figure in figures))


def test_draws_are_of_the_whole_policy(gray):
    certain = {"horizontal_flip": Setting(probability=1.0), "invert": Setting(probability=1.0)}
    sheet = contents(policy(certain, n=2), gray)
    assert all(torch.equal(draw, 1 - gray.flip(-1)) for draw in sheet.drawn)
    assert len(contents(policy(THREE), gray[:1]).drawn) == 12


@pytest.mark.parametrize("kind", ["gray", "photographs", "one", "narrow"])
def test_no_text_of_a_sheet_is_cut_or_covers_another(kind, gray):
    tall = torch.rand(2, 3, 200, 20, generator=torch.Generator().manual_seed(0))
    images = {"gray": gray, "photographs": photographs(), "one": gray[:1], "narrow": tall}[kind]
    figure = kd.analysis.policy_sheet(whole(), images)
    renderer = FigureCanvasAgg(figure).get_renderer()
    assert {name for name in OPERATIONS if OPERATIONS[name].suits(images.shape[1])} <= set(words(figure))
    _apart(figure, [text.get_window_extent(renderer) for text in figure.axes[0].texts])
    height, width, _ = picture(figure).shape
    assert (width, height) == pytest.approx(tuple(figure.get_size_inches() * figure.dpi))
    inside = [text for text in figure.axes[0].texts if text.get_position()[0] < LEFT and text.get_fontsize() > 7]
    labels = [text.get_window_extent(renderer).x1 for text in inside if text.get_color() == "#222222"]
    assert max(labels) <= LEFT


def _apart(figure, boxes):
    """Boxes of text inside the figure, none over another."""
    width, height = figure.get_size_inches() * figure.dpi
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
        for other in boxes[:i]:
            assert min(box.x1, other.x1) <= max(box.x0, other.x0) or min(box.y1, other.y1) - max(box.y0, other.y0) < 2


def test_the_difference_of_two_policies_by_hand():
    settings = {
        "rotate": Setting(probability=0.5, low=5.0, high=25.0),
        "erase": Setting(probability=0.25, low=0, high=0.5),
    }
    table = kd.analysis.policy_diff(policy(THREE), policy({**settings, "invert": Setting(probability=0.5)}, n=3))
    assert list(table["operation"]) == ["solarize", "rotate", "invert", "erase"]
    rows = table.set_index("operation")
    assert rows["only_in"].fillna("both").to_dict() == {
        "solarize": "a",
        "rotate": "both",
        "invert": "both",
        "erase": "b",
    }
    assert rows["change"].to_dict() == pytest.approx({"solarize": 0.75, "rotate": 0.5, "invert": 1 / 3, "erase": 0.25})
    assert rows.loc["rotate", ["probability_a", "probability_b", "probability_difference"]].tolist() == [
        0.25,
        0.5,
        0.25,
    ]
    assert rows.loc["rotate", ["rate_a", "rate_b", "rate_difference"]].tolist() == pytest.approx(
        [1 / 12, 1 / 2, 5 / 12]
    )
    assert rows.loc["rotate", ["low_difference", "high_difference", "limit"]].tolist() == [3.0, 15.0, 30.0]
    assert rows.loc["solarize", "probability_difference"] == -0.75
    assert rows.loc[["solarize"], ["probability_b", "rate_b", "high_b", "high_difference"]].isna().all(axis=None)


def test_a_range_that_never_applies_is_no_change():
    never = {**THREE, "rotate": Setting(probability=0.0, low=0.0, high=1.0)}
    also = {**THREE, "rotate": Setting(probability=0.0, low=0.0, high=30.0)}
    assert kd.analysis.policy_diff(policy(never), policy(also))["change"].max() == 0


def test_other_differences_are_said():
    a, b = policy(THREE), policy(THREE, n=2, fill="reflect", rotate=45.0)
    assert other_differences(a, b) == [
        "operations per image: 1 of 3 → 2 of 3",
        "fill: zero → reflect",
        "limit of rotate: 30 → 45 degrees",
    ]
    assert other_differences(a, a) == []


def test_the_picture_of_a_difference_shows_both_in_the_order_of_the_table():
    a = policy(THREE)
    b = policy({"rotate": Setting(probability=0.5, low=5.0, high=25.0)})
    figure = plots.plot_diff(kd.analysis.policy_diff(a, b), ("mine", "yours"))
    chance, reach = figure.axes
    assert chance.get_ylim() == (2.5, -0.5)  # downwards
    assert [label.get_text() for label in chance.get_yticklabels()] == ["solarize", "rotate", "invert"]
    points = {
        (line.get_marker(), *line.get_xdata(), *line.get_ydata()) for line in chance.lines if len(line.get_xdata()) == 1
    }
    assert points == {("o", 0.75, 0), ("x", 0, 0), ("o", 0.25, 1), ("s", 0.5, 1), ("o", 0.5, 2), ("x", 0, 2)}
    spans = [list(line.get_xdata()) for line in reach.lines if not np.isnan(line.get_xdata()).any()]
    assert spans == [pytest.approx(s) for s in ([0.25 / 0.8, 0.75 / 0.8], [2 / 30, 1 / 3], [5 / 30, 25 / 30])]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["mine", "yours", "does not have the operation"]
    long = plots.plot_diff(kd.analysis.policy_diff(a, b), ("/home/" * 40 + "mine", "/home/" * 40 + "yours")).legends[0]
    long.figure.draw_without_rendering()
    box = long.get_window_extent()
    assert box.x0 > 0
    assert box.x1 < long.figure.bbox.width
    assert long.get_texts()[1].get_text().endswith("/home/yours")
    assert words(figure) == ["no magnitude"]


def test_a_trajectory_shows_every_moment_and_the_end_with_its_unit():
    start = {**THREE, "rotate": Setting(probability=0.5, low=1.0, high=15.0)}
    spec = policy(start, start, THREE)
    frame = kd.analysis.policy_frame(spec)
    assert frame.query("operation == 'rotate'")[["progress", "probability", "high"]].to_numpy().tolist() == [
        [0.0, 0.5, 15.0],
        [0.5, 0.5, 15.0],
        [1.0, 0.25, 10.0],
    ]
    assert set(frame["rate"].tail(3).round(6)) == {0.083333, 0.25, 0.166667}
    figure = plots.plot_trajectory(frame)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["rotate", "solarize", "invert"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.5, 0.5, 0.25]
    assert words(figure)[0] == "probability 0.25 at the end\n±2 to 10 degrees"
    assert "(fixed)" not in "".join(words(figure))
    held = plots.plot_trajectory(kd.analysis.policy_frame(kd.Policy.from_spec(spec).freeze()))
    assert ["(fixed)" in text for text in words(held)] == [True, True, False]


@pytest.fixture
def folder(tmp_path, monkeypatch, gray):
    """A place with policies, and a trial's folder with the images it kept."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(policy(THREE).to_json())
    Path("b.json").write_text(policy({"rotate": Setting(probability=0.5, low=5.0, high=25.0)}).to_json())
    trial = tmp_path / "trial"
    trial.mkdir()
    (trial / "policy.json").write_text(policy(THREE, THREE).to_json())
    np.savez(trial / "samples.npz", original=(gray[:1] * 255).round().to(torch.uint8).movedim(1, -1).numpy())
    return tmp_path


def test_sheet_draws_the_images_the_run_kept(folder, kdsearch, gray):
    assert kdsearch("sheet", "trial") == "sheet.png\n"
    sheet = np.asarray(PIL.Image.open("sheet.png").convert("RGB"))
    assert len(rows_of(sheet, enlarged(gray[0], 8), 0, 134)) == 7  # 3 operations, 4 rows of draws
    kdsearch("sheet", "trial/policy.json", "--most", 1, "-o", "again.png")
    again = np.asarray(PIL.Image.open("again.png").convert("RGB"))
    assert len(rows_of(again, enlarged(gray[0], 8), 0, 134)) == 5


def test_sheet_draws_your_images_or_two_photographs(folder, kdsearch):
    PIL.Image.new("RGB", (16, 16), (10, 200, 30)).save("mine.png")
    kdsearch("sheet", "trial", "--images", "mine.png")
    sheet = np.asarray(PIL.Image.open("sheet.png").convert("RGB"))
    assert (sheet[:, LEFT + 64] == (10, 200, 30)).all(-1).sum() >= 7 * 128
    kdsearch("sheet", "a.json", "-o", "photographs.pdf")
    assert Path("photographs.pdf").read_bytes().startswith(b"%PDF")
    assert photographs().shape == (2, 3, 149, 224)


def test_diff_says_what_differs_the_largest_change_first(folder, kdsearch):
    lines = [" ".join(line.split()) for line in kdsearch("diff", "a.json", "b.json", "-o", "diff.png").splitlines()]
    assert lines == [
        "a.json → b.json (difference)",
        "operations per image: 1 of 3 → 1 of 1",
        "operation probability rate low high unit",
        "solarize 0.75 → none 0.25 → none 0.25 → none 0.75 → none share of the value range inverted",
        "rotate 0.25 → 0.5 (+0.25) 0.083 → 0.5 (+0.42) 2 → 5 (+3) 10 → 25 (+15) degrees",
        "invert 0.5 → none 0.17 → none",
        "diff.png",
    ]
    assert PIL.Image.open("diff.png").size[0] > 1000
    assert kdsearch("diff", "a.json", "trial").splitlines()[1:] == [
        "no operation that the policy itself applies differs"
    ]


def test_trajectory_is_drawn_or_there_is_nothing_to_draw(folder, kdsearch):
    assert kdsearch("trajectory", "trial") == "trajectory.png\n"
    assert PIL.Image.open("trajectory.png").size[0] > 800
    assert "a.json: the policy has one moment only" in kdsearch("trajectory", "a.json", "-o", "none.png", code=2)
    assert not Path("none.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sheet", "nowhere.json"], "cannot read the policy nowhere.json"),
        (["sheet", "."], ". is not a run folder"),
        (["sheet", "a.json", "--images", "nowhere"], "nowhere: no such file or folder"),
        (["sheet", "a.json", "--images", "empty"], "empty: no images in this folder; read are .png .jpg"),
        (["sheet", "a.json", "--images", "a.json"], "a.json: its name ends in '.json'; allowed: a folder of images"),
        (["sheet", "a.json", "--images", "torn.png"], "torn.png: cannot be read as an image"),
        (["sheet", "a.json", "--images", "torn.npz"], "torn.npz: cannot be read as an .npz file"),
        (["sheet", "a.json", "--images", "wrong.npz"], "wrong.npz: no images in it: objects of Python objects, "
         "which are not read; labels int64 (5,); whole int64 (5, 8, 8, 3); allowed: uint8 or float in [0, 1]"),
        (["sheet", "a.json", "--images", "big.npz"], "big.npz: x: values from 0 to 255; floats have to be in [0, 1]"),
        (["sheet", "a.json", "-o", "no/sheet.png"], "cannot write no/sheet.png: No such file"),
        (["sheet", "a.json", "-o", "sheet.xyz"], "sheet.xyz: a picture's name ends in ."),
        (["diff", "a.json", "nowhere.json"], "cannot read the policy nowhere.json"),
        (["diff", "a.json", "b.json", "-o", "no/diff.png"], "cannot write no/diff.png: No such file"),
        (["trajectory", "trial", "-o", "trajectory"], "trajectory: a picture's name ends in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_message(arguments, said, folder, kdsearch):
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("none")
    whole = io.BytesIO()
    PIL.Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(whole, "png")
    Path("torn.png").write_bytes(whole.getvalue()[:60])
    Path("torn.npz").write_bytes(b"PK\x03\x04 torn")
    objects = np.array([{}], dtype=object)
    np.savez("wrong.npz", objects=objects, labels=np.arange(5), whole=np.zeros((5, 8, 8, 3), dtype=np.int64))
    np.savez("big.npz", x=np.linspace(0, 255, 64, dtype=np.float32).reshape(1, 8, 8, 1))
    message = kdsearch(*arguments, code=2)
    assert said in message.removeprefix("kdsearch: ")
    assert "Traceback" not in message


def test_images_neither_gray_nor_rgb_are_refused():
    with pytest.raises(kd.KdsearchError, match=r"need \(N, 1 or 3, H, W\); got \(1, 2, 8, 8\)"):
        kd.analysis.policy_sheet(policy(THREE), torch.zeros(1, 2, 8, 8))
    with pytest.raises(kd.KdsearchError, match=r"values from 0 to 2"):
        kd.analysis.policy_sheet(policy(THREE), 2 * torch.eye(8)[None, None])


def test_a_folder_gives_its_first_images_in_one_size(tmp_path):
    for i, (width, height) in enumerate([(448, 224), (100, 300), (40, 40), (30, 60), (20, 20)]):
        PIL.Image.new("RGB", (width, height), (50 * i, 0, 0)).save(tmp_path / f"{i}.{'PNG' if i % 2 else 'bmp'}")
    (tmp_path / "readme.txt").write_text("not an image")
    images = kd.data.load_images(tmp_path)
    assert images.shape == (4, 3, 40, 30)  # 224x112, 75x224, 40x40, 30x60, the smallest sides
    assert (images[:, 0].amax((1, 2)) * 255).round().tolist() == [0, 50, 100, 150]
    assert (images[:, 0].amin((1, 2)) * 255).round().tolist() == [0, 50, 100, 150]
    assert kd.data.load_images(tmp_path / "0.bmp").shape == (1, 3, 112, 224)


def test_a_folder_of_classes_gives_one_image_of_each(tmp_path):
    for name, value in {"cat": 10, "dog": 20, "owl": 30}.items():
        (tmp_path / name).mkdir()
        for i in range(2):
            PIL.Image.new("L", (8, 8), value + i).save(tmp_path / name / f"{i}.png")
    assert (kd.data.load_images(tmp_path)[:, 0, 0, 0] * 255).round().tolist() == [10, 20, 30]


def test_gray_sixteen_bits_and_transparency_are_read(tmp_path):
    PIL.Image.fromarray(np.full((8, 8), 257 * 200, dtype=np.uint16)).save(tmp_path / "1.png")
    assert (kd.data.load_images(tmp_path) * 255).unique().tolist() == [200]
    assert len(kd.data.load_images(tmp_path)[0]) == 1
    PIL.Image.new("RGBA", (8, 8), (10, 20, 30, 128)).save(tmp_path / "2.png")
    mixed = kd.data.load_images(tmp_path)
    assert (mixed[:, :, 0, 0] * 255).round().tolist() == [[200, 200, 200], [5, 10, 15]]  # half of it, over black


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW", "HWC", "float"])
def test_the_first_array_of_images_is_read(layout, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
    array, expected = {
        "NHWC": (pixels, pixels[:4].transpose(0, 3, 1, 2)),
        "NCHW": (pixels.transpose(0, 3, 1, 2), pixels[:4].transpose(0, 3, 1, 2)),
        "NHW": (pixels[..., 0], pixels[:4, None, ..., 0]),
        "HWC": (pixels[0], pixels[:1].transpose(0, 3, 1, 2)),
        "float": (pixels / 255, pixels[:4].transpose(0, 3, 1, 2)),
    }[layout]
    np.savez(tmp_path / "x.npz", y_train=np.arange(5), x_train=array, x_test=1 - array)
    torch.testing.assert_close(kd.data.load_images(tmp_path / "x.npz"), torch.from_numpy(expected) / 255)
