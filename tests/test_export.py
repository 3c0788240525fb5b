"""Exported policies: the same pixels for the same draw, the same draw, and files that stand alone."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from scipy.stats import binomtest, kstest, norm
from torch import Tensor

import kdsearch.augment.export
from kdsearch.augment.export import EXPORTERS, export
from kdsearch.augment.operations import FILLS, apply
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.augment.presets import trivial
from kdsearch.augment.spec import PolicySpec, Setting, Snapshot
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator, normal_field
from kdsearch.core.values import Draw
from kdsearch.data.batches import digits

PYTHON = ("torchvision", "kornia")
QUANTISERS = {"equalize", "posterize", "solarize"}
MOVES = [name for name, op in OPERATIONS.items() if op.matrix]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Images one by one are too small for threads, which on a busy machine only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    """Real images, 1x16x16 and 3x64x80: not square, and at half size, so that values lie between 255ths. Flat ones."""
    from sklearn.datasets import load_sample_images

    photos = torch.stack([torch.from_numpy(photo.copy()) for photo in load_sample_images().images]).movedim(-1, 1)
    half = torch.nn.functional.avg_pool2d(photos / 255, 2)
    crops = half.unfold(2, 64, 30).unfold(3, 80, 40).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 64, 80)
    grays, colours = torch.tensor([0.0, 0.3, 1.0]), torch.rand(17, 3, generator=generator("colours")).round(decimals=1)
    flat = torch.cat([grays[:, None].expand(-1, 3), colours])[:, :, None, None].repeat(1, 1, 9, 7)
    photos = crops[torch.arange(50) * len(crops) // 50].contiguous()
    return {"digits": digits()[2].images[:50], "photos": photos, "flat": flat}


def policy_of(names: list[str], n: int = 1, fill: str = "zero", **settings: Setting) -> PolicySpec:
    """A policy at its start, some of its settings replaced."""
    start = Policy(names, n, fill=fill).freeze()
    return start.model_copy(update={"schedule": (Snapshot(progress=1.0, settings={**start.final, **settings}),)})


def replay(to: str, module: ModuleType, draw: Draw, images: Tensor) -> Tensor:
    """The images after our draw, carried out by an exported file; noise takes our fields."""
    uniforms = [OPERATIONS[name].uniforms for name in draw.operations]
    if to == "kornia":
        decisions = {}
        for i, name in enumerate(draw.operations):
            image, slot = torch.nonzero((draw.chosen == i) & draw.gates).unbind(1)
            if len(image):
                u = draw.uniforms[image, slot, 1 : 1 + uniforms[i]]
                decisions[name] = (image, draw.magnitudes[image, slot], list(u.unbind(1)))
        seeds = draw.seeds[decisions["noise"][0]] if "noise" in decisions else draw.seeds
        with patch.object(torch, "randn_like", lambda x: normal_field(seeds, x[0].numel()).view_as(x)):
            return module.policy.apply(images, decisions)
    out = []
    for i, image in enumerate(images):
        decided = [
            (draw.operations[operation], magnitude, u[1 : 1 + uniforms[operation]])
            for operation, magnitude, u, gate in zip(
                draw.chosen[i].tolist(),
                draw.magnitudes[i].tolist(),
                draw.uniforms[i].tolist(),
                draw.gates[i].tolist(),
                strict=True,
            )
            if gate
        ]
        seed = draw.seeds[i : i + 1]
        with patch.object(torch, "randn_like", lambda x, seed=seed: normal_field(seed, x.numel()).view_as(x)):
            out.append(module.policy.apply(image, decided))
    return torch.stack(out)


def off_alone(
    name: str, to: str, x: Tensor, load: Callable[[PolicySpec, str], ModuleType], fill: str = "zero"
) -> Tensor:
    """How far an exported operation is from ours: 5 magnitudes from 0 to the hard range, of both signs."""
    op = OPERATIONS[name]
    some = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64) * (op.limit or 0.0)
    hard = op.hard or 0.0
    magnitudes = torch.cat([some, torch.tensor([(some[-1] + hard) / 2, hard])])
    magnitudes = torch.cat([magnitudes, -magnitudes if op.signed else magnitudes]).repeat(2)
    size = len(magnitudes)
    on = torch.ones(size, 1)
    draw = Draw(
        operations=(name,),
        chosen=(on * 0).long(),
        gates=on.bool(),
        signs=on.double(),
        uniforms=torch.rand(size, 1, 9, generator=generator("export test", name), dtype=torch.float64),
        magnitudes=magnitudes[:, None],
        seeds=torch.arange(size) + 7,
        fill=fill,
    )
    module = load(policy_of([name], fill=fill), to)
    return (replay(to, module, draw, x[:size]) - apply(draw, x[:size]).images).abs()


def test_json_comes_back_the_same() -> None:
    spec = Policy(["rotate", "invert"], 1).freeze(provenance={"study": "digits"})
    assert PolicySpec.from_json(export(spec, "json")) == spec


def test_json_of_the_average_is_a_policy_with_one_moment() -> None:
    high = {"translate_x": Setting(probability=1.0, low=0.0, high=0.8)}
    low = {"translate_x": Setting(probability=0.5, low=0.0, high=0.8)}
    moments = [Snapshot(progress=p, settings=s) for p, s in ((0.1, high), (0.6, low), (0.8, low), (1.0, high))]
    spec = trivial({"translate_x": 0.8}).freeze(moments)
    back = PolicySpec.from_json(export(spec, "json", "average"))  # the mean of three .8 is above .8 in floating point
    assert len(back.schedule) == 1
    assert back.final["translate_x"].probability == pytest.approx(2 / 3)
    assert back.final["translate_x"].high == 0.8
    assert "(0.666667, 0.0, 0.8, True)" in export(spec, "torchvision", "average")
    assert "(1.0, 0.0, 0.8, True)" in export(spec, "torchvision")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    spec = policy_of(["invert"])
    with pytest.raises(KdsearchError, match="unknown export target 'torchvison'; did you mean 'torchvision'"):
        export(spec, "torchvison")
    for to in EXPORTERS:
        with pytest.raises(KdsearchError, match="unknown part of a policy 'last'"):
            export(spec, to, "last")


@pytest.mark.parametrize("to", PYTHON)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_gives_our_pixels(name: str, to: str, images, load) -> None:
    for kind, x in images.items():
        for fill in FILLS if name in MOVES else FILLS[:1]:
            off = off_alone(name, to, x, load, fill)
            print(f"{to} {name} {kind} {fill}: max {off.max():.2g}, mean {off.mean():.2g}")
            if name in QUANTISERS:
                assert (off > 1 / 255).double().mean() <= 1e-3, kind
            elif name in MOVES:
                assert off.max() <= 5e-5 and off.mean() <= 5e-7, (kind, fill)
            else:
                assert off.max() <= 5e-6, kind


def test_most_operations_are_exact_for_torchvision(images, load) -> None:
    exact = [
        name
        for name in OPERATIONS
        if all(off_alone(name, "torchvision", x, load).max() <= 1e-6 for x in images.values())
    ]
    assert len(exact) >= 21, exact  # as the README says


@pytest.mark.parametrize("to", PYTHON)
@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 5, 1), (1, 2, 2), (2, 7, 12), (4, 24, 16)])
def test_thin_images_and_those_of_other_channels_are_treated_alike(to: str, shape: tuple[int, ...], load) -> None:
    x = torch.rand(60, *shape, generator=generator("thin"))
    for fill in FILLS:
        policy = Policy(list(OPERATIONS), 3, probability=0.9, fill=fill)
        draw = policy.draw(60, generator("thin draw"))
        off = (replay(to, load(policy.freeze(), to), draw, x) - apply(draw, x).images).abs()
        assert (off > 1 / 255).double().mean() <= 1e-3, fill


@pytest.mark.parametrize("to", PYTHON)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_a_whole_policy_gives_our_pixels(kind: str, fill: str, to: str, images, load) -> None:
    policy = Policy(list(OPERATIONS), 6, probability=0.8, extent=0.9, fill=fill)
    x, draw = images[kind].repeat(4, 1, 1, 1), policy.draw(200, generator("whole", 1))
    before = x.clone()
    off = (replay(to, load(policy.freeze(), to), draw, x) - apply(draw, x).images).abs()
    share = (off > 1 / 255).double().mean()
    print(f"{to} {kind} {fill}: max {off.max():.2g}, mean {off.mean():.2g}, off by more than 1/255: {share:.2g}")
    assert share <= 1e-3
    assert off.mean() <= {"digits": 4e-5, "photos": 2e-6}[kind]  # digits hold 16 levels, where rounding decides
    assert torch.equal(x, before)


Decisions = list[list[tuple[str, float, tuple[float, ...]]]]


def decided(to: str, module: ModuleType, size: int) -> Decisions:
    """What the exported draw decides for each of `size` images: names, magnitudes and further random numbers."""
    if to == "torchvision":
        return [[(name, magnitude, tuple(u)) for name, magnitude, u in module.policy.draw()] for _ in range(size)]
    out: Decisions = [[] for _ in range(size)]
    for name, (rows, magnitudes, u) in module.policy.draw(size).items():
        numbers = zip(*(column.tolist() for column in u), strict=True) if u else [()] * len(rows)
        for row, magnitude, own in zip(rows.tolist(), magnitudes.tolist(), numbers, strict=True):
            out[row].append((name, magnitude, own))
    return out


@pytest.mark.parametrize("to", PYTHON)
def test_the_exported_draw_has_the_rates_signs_and_ranges_of_the_policy(to: str, load) -> None:
    start = Policy(list(OPERATIONS), 5).freeze().final
    settings = {
        name: s.model_copy(update={"probability": 0.0 if name in ("rotate", "noise") else (1 + i) / len(start)})
        for i, (name, s) in enumerate(start.items())
    }
    spec = policy_of(list(OPERATIONS), 5, **settings)
    torch.manual_seed(3)
    draws = decided(to, load(spec, to), 10_000)
    p_values, places, all_numbers = [], [], []
    for name, op in OPERATIONS.items():
        found = [(m, u) for row in draws for got, m, u in row if got == name]
        p_values.append(binomtest(len(found), len(draws), spec.rate(name)).pvalue)
        assert all(len(set(u)) == len(u) == op.uniforms for _, u in found)
        for numbers in zip(*(u for _, u in found), strict=True):
            p_values.append(kstest(numbers, "uniform").pvalue)
            all_numbers += numbers
        m = torch.tensor([m for m, _ in found], dtype=torch.float64)
        if op.limit and len(found):
            low, high = settings[name].low, settings[name].high
            places += ((m.abs() - low) / (high - low)).tolist()
            p_values.append(kstest(m.abs(), "uniform", args=(low, high - low)).pvalue)
            assert low * (1 - 1e-5) <= m.abs().min() and m.abs().max() <= high * (1 + 1e-5)
            if op.signed:
                p_values.append(binomtest(int((m < 0).sum()), len(m), 0.5).pvalue)
            else:
                assert (m >= 0).all()
    # All operations together, which shows smaller errors than each alone.
    p_values += [kstest(numbers, "uniform").pvalue for numbers in (places, all_numbers)]
    p = torch.tensor([s.probability for s in settings.values()], dtype=torch.float64)
    variance = 5 * (p * (1 - p)).mean() + 5 * (len(p) - 5) / (len(p) - 1) * p.var(correction=0)
    applied = torch.tensor([len(row) for row in draws], dtype=torch.float64)
    p_values.append(2 * norm.sf(abs((applied.mean() - 5 * p.mean()) / (variance / len(draws)).sqrt())))
    assert min(p_values) > 1e-3 / len(p_values) / len(PYTHON)
    assert max(len({name for name, *_ in row}) for row in draws) <= 5


@pytest.mark.parametrize("to", PYTHON)
def test_what_is_certain_is_drawn_n_times_without_replacement(to: str, load) -> None:
    module = load(
        policy_of(
            ["rotate", "scale", "invert"],
            2,
            **{
                name: Setting(probability=1.0, low=low, high=low)
                for name, low in (("rotate", 5.0), ("scale", 0.1), ("invert", None))
            },
        ),
        to,
    )
    assert {len({name for name, *_ in row}) for row in decided(to, module, 100)} == {2}


@pytest.mark.parametrize("to", PYTHON)
def test_what_never_happens_is_left_out_but_still_drawn(to: str, load) -> None:
    spec = policy_of(["rotate", "invert"], 1, rotate=Setting(probability=0.0, low=0.0, high=9.0))
    text = export(spec, to)
    assert "def invert" in text and "def warp" not in text and '"rotate": (0.0' in text
    torch.manual_seed(0)
    happened = sum(len(row) for row in decided(to, load(spec, to), 400))
    assert binomtest(happened, 400, 0.25).pvalue > 1e-3
    nothing = policy_of(["invert"], 1, invert=Setting(probability=0.0))
    x = torch.rand(3, 4, 4) if to == "torchvision" else torch.rand(2, 3, 4, 4)
    assert torch.equal(load(nothing, to).policy(x), x)


@pytest.mark.parametrize("to", PYTHON)
def test_a_file_holds_no_code_that_its_policy_does_not_need(to: str) -> None:
    words = ["UNIFORMS", "perspective", "depth", "warp", "mean =", "reflect", "luma", "LINEAR", "PIXELS", "GEOMETRY"]

    def used(names: list[str], fill: str) -> set[str]:
        return {word for word in words if word in export(policy_of(names, fill=fill), to)}

    assert used(["invert"], "mean") == {"PIXELS"}
    assert used(["brightness"], "zero") == {"LINEAR"}
    assert used(["rotate"], "zero") == {"GEOMETRY", "warp"}
    assert used(["rotate"], "mean") == {"GEOMETRY", "warp", "mean ="}
    assert used(["rotate"], "reflect") == {"GEOMETRY", "warp", "reflect"}
    assert used(["perspective"], "zero") >= {"GEOMETRY", "warp", "perspective", "UNIFORMS"}
    assert used(["saturation", "erase"], "zero") >= {"luma", "LINEAR", "PIXELS", "UNIFORMS"}


@pytest.mark.parametrize("to", PYTHON)
def test_channels_that_equalize_leaves_stay_on_their_levels(to: str, load) -> None:
    """Mostly white: a rounding beyond white would be inverted to less than black, and that a level lower."""
    x = torch.ones(8, 3, 32, 32)
    x[:, :, :6] = torch.rand(8, 3, 6, 32, generator=generator("white"))
    draw = Policy(["equalize", "solarize", "posterize"], 3, probability=0.999).draw(8, generator("white draw"))
    theirs = replay(to, load(policy_of(["equalize", "solarize", "posterize"], 3), to), draw, x)
    assert theirs.min() >= 0
    assert ((theirs - apply(draw, x).images).abs() > 1 / 255).double().mean() <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kornia_takes_half_precision(dtype: torch.dtype, load) -> None:
    policy = load(Policy(list(OPERATIONS), 6, probability=0.9).freeze(), "kornia").policy
    out = policy(torch.rand(16, 3, 16, 16, generator=generator("half")).to(dtype))
    assert out.dtype == dtype and torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("to", PYTHON)
def test_evaluation_mode_is_the_identity(to: str, load) -> None:
    module = load(policy_of(["invert"], 1, invert=Setting(probability=1.0)), to)
    x = torch.rand(3, 4, 4) if to == "torchvision" else torch.rand(2, 3, 4, 4)
    assert torch.equal(module.policy(x), 1 - x)
    assert module.policy.eval()(x) is x


@pytest.mark.parametrize("to", PYTHON)
def test_wrong_inputs_are_refused(to: str, load) -> None:
    policy = load(policy_of(["invert"]), to).policy
    wrong = torch.rand(2, 3, 4, 4) if to == "torchvision" else torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match="needs"):
        policy(wrong)


@pytest.mark.parametrize("to", PYTHON)
def test_a_policy_from_a_stranger_brings_no_code(to: str) -> None:
    evil = {
        "a\nimport os": 'x"""\nimport os\n"""',
        "b": "\r\nraise SystemExit\x0c\x85\u2028raise SystemExit",
        "# coding: utf-7": "+AAo-raise SystemExit",
        "\u202e\ud800": "'''\\",
        "$n ${table}": "y" * 1000,
        "αβγ": "а",  # a Cyrillic letter that looks like a Latin one
        "fmt: off": None,
    }
    clean = policy_of(["rotate", "noise"])
    text = export(clean.model_copy(update={"provenance": evil}), to)
    assert ast.dump(ast.parse(text.encode())) == ast.dump(ast.parse(export(clean, to)))
    assert text.isascii() and max(map(len, text.splitlines())) <= 120


def test_the_files_are_formatted_and_have_no_unused_imports(tmp_path: Path) -> None:
    some = [["invert"], ["horizontal_flip"], ["rotate", "brightness"], ["translate_x", "shear_y", "contrast", "noise"]]
    cases = [(names, fill) for names in (list(OPERATIONS), ["rotate"]) for fill in FILLS]
    cases += [(names, "zero") for names in (*some, *([name] for name in OPERATIONS))]
    for to in PYTHON:
        for i, (names, fill) in enumerate(cases):
            spec = policy_of(names, fill=fill).model_copy(update={"provenance": {"study": "digits", "seed": 3}})
            (tmp_path / f"{to}_{i}.py").write_text(export(spec, to), encoding="utf-8")
    for command in (["format", "--check"], ["check", "--select", "E,F,I,B,UP,W"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length", "120"]
        done = subprocess.run([*ruff, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


ALONE = """
import pickle, warnings
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
from exported import policy

try:
    import kdsearch
except ImportError:
    pass
else:
    raise SystemExit("not blocked")
warnings.simplefilter("error")
"""

ALONE_KORNIA = """
x = torch.rand(16, 3, 32, 24)
before = x.clone()
for channels, dtype in ((1, torch.float32), (3, torch.float32), (3, torch.float64)):
    out = policy(x[:, :channels].to(dtype))
    assert out.shape == (16, channels, 32, 24) and out.dtype == dtype
    assert out.min() >= 0 and out.max() <= 1
assert torch.equal(x, before) and not torch.equal(out, x.to(dtype))
again = pickle.loads(pickle.dumps(policy))
torch.manual_seed(1); a = policy(x)
torch.manual_seed(1); b = again(x)
assert torch.equal(a, b)
assert policy(torch.rand(0, 3, 8, 8)).shape == (0, 3, 8, 8)
"""

ALONE_TORCHVISION = """
import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

for channels, mode in ((1, "L"), (3, "RGB")):
    byte = torch.randint(256, (channels, 32, 24), dtype=torch.uint8)
    image = v2.functional.to_pil_image(byte)
    for x in (byte, byte / 255, (byte / 255).double(), tv_tensors.Image(byte), image):
        torch.manual_seed(5); outs = [policy(x) for _ in range(8)]
        for out in outs:
            assert type(out) is type(x) or isinstance(out, Image.Image) and out.mode == mode, type(out)
            if isinstance(x, Image.Image):
                assert out.size == x.size
            else:
                assert out.dtype == x.dtype and out.shape == x.shape and out.min() >= 0
                assert out.max() <= (255 if x.dtype == torch.uint8 else 1)
    # One draw, whatever the kind of image.
    torch.manual_seed(5); kinds = [policy(byte)]
    torch.manual_seed(5); kinds.append((policy(byte / 255) * 255).round().to(torch.uint8))
    torch.manual_seed(5); kinds.append(v2.functional.pil_to_tensor(policy(image)))
    assert torch.equal(kinds[0], kinds[1]) and torch.equal(kinds[0], kinds[2]) and not torch.equal(kinds[0], byte)
try:
    policy(Image.new("P", (8, 8)))
except TypeError as error:
    assert "convert" in str(error)
else:
    raise SystemExit("mode P was taken")


class Data(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 32

    def __getitem__(self, i):
        return self.transform(Image.fromarray(np.full((16, 16, 3), 100, np.uint8)))


if __name__ == "__main__":
    pickle.loads(pickle.dumps(policy))
    transform = v2.Compose([policy, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    batches = list(DataLoader(Data(transform), batch_size=8, num_workers=2))
    assert [batch.shape for batch in batches] == [(8, 3, 16, 16)] * 4
    assert len({tuple(image.flatten().tolist()) for batch in batches for image in batch}) > 16
"""


@pytest.mark.parametrize("to", PYTHON)
def test_the_file_runs_without_kdsearch(to: str, tmp_path: Path, without_kdsearch: str) -> None:
    spec = Policy(list(OPERATIONS), 5, probability=0.9, fill="mean").freeze()
    (tmp_path / "exported.py").write_text(export(spec, to), encoding="utf-8")
    (tmp_path / "main.py").write_text(
        without_kdsearch + ALONE + {"torchvision": ALONE_TORCHVISION, "kornia": ALONE_KORNIA}[to]
    )
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_exporting_needs_no_target_library() -> None:
    for path in Path(kdsearch.augment.export.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"kornia", "torchvision"}, path
