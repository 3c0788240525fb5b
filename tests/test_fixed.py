"""Fixed transforms in the place of a policy."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

import kdsearch as kd
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.presets import trivial_augment_wide
from kdsearch.core.errors import KdsearchError
from kdsearch.core.maths import generator
from kdsearch.distill.distiller import Phase
from kdsearch.losses.table import TABLE as LOSSES

TRANSFORMS = {
    "RandAugment": lambda: FixedTransform(v2.RandAugment()),
    "AutoAugment, PIL": lambda: FixedTransform(v2.AutoAugment(), takes="pil"),
    "jitter, float": lambda: FixedTransform(v2.ColorJitter(0.5, 0.5), takes="float"),
    "NumPy's generator": lambda: FixedTransform(lambda x: x[:, :: np.random.choice([-1, 1])], takes="numpy"),  # noqa: NPY002
    "Python's generator": lambda: FixedTransform(lambda x: x // random.randint(1, 4)),
}


def unseen(images: Tensor) -> Tensor:
    return (images[:12] * 255).round() / 255


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_draw_replays_in_any_batch(name: str, photos: Tensor) -> None:
    transform, x = TRANSFORMS[name](), unseen(photos)
    draw = transform.draw(12, generator("fixed"))
    whole = transform.augment(draw, x).images
    assert whole.shape == x.shape and whole.dtype == x.dtype and not torch.equal(whole, x)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 12
    order = torch.tensor([7, 3, 11])
    assert torch.equal(transform.augment(draw.rows(order), x[order]).images, whole[order])
    other = transform.augment(transform.draw(12, generator("another")), x).images
    assert not torch.equal(other, whole)


def test_each_image_has_a_draw_of_its_own(photos: Tensor) -> None:
    same = unseen(photos)[:1].repeat(12, 1, 1, 1)
    transform = FixedTransform(v2.RandAugment())
    out = transform.augment(transform.draw(12, generator("own")), same).images
    assert len({tuple(image.flatten().tolist()) for image in out}) > 6


def test_the_global_generators_are_put_back(photos: Tensor) -> None:
    transform = FixedTransform(v2.RandAugment())
    draw = transform.draw(4, generator("back"))

    def numbers() -> tuple[float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    expected = numbers()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    transform.augment(draw, photos[:4])
    assert numbers() == expected


def test_a_transform_with_its_own_generator_is_told_the_seed(photos: Tensor) -> None:
    own = np.random.default_rng()
    state, told = {"rng": own}, []

    def reseed(seed: int) -> None:
        told.append(seed)
        state["rng"] = np.random.default_rng(seed)

    transform = FixedTransform(lambda x: x // int(state["rng"].integers(1, 200)), reseed=reseed)
    draw = transform.draw(6, generator("reseed"))
    assert torch.equal(transform.augment(draw, photos[:6]).images, transform.augment(draw, photos[:6]).images)
    assert told == draw.seeds.tolist() * 2


@pytest.mark.parametrize("takes", ["uint8", "float", "pil", "numpy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_as_the_transform_wants_them(takes: str, channels: int, photos: Tensor) -> None:
    kinds = []

    def look(image):
        kinds.append(image)
        return image

    x = unseen(photos)[:2, :channels]
    for given in (x, (x * 255).round().to(torch.uint8)):
        out = FixedTransform(look, takes=takes)(given)
        torch.testing.assert_close(out, x)
    for image in kinds:
        if takes == "pil":
            assert image.mode == ("L" if channels == 1 else "RGB")
        elif takes == "numpy":
            assert image.dtype == np.uint8 and image.shape == (32, 32, channels)
        else:
            assert image.dtype == (torch.uint8 if takes == "uint8" else torch.float32)


def test_evaluation_mode_is_the_identity(photos: Tensor) -> None:
    assert FixedTransform(lambda x: x * 0).eval()(photos) is photos


def test_mistakes_are_named(photos: Tensor) -> None:
    with pytest.raises(KdsearchError, match="unknown kind of image 'numppy'; did you mean 'numpy'"):
        FixedTransform(lambda x: x, takes="numppy")
    with pytest.raises(
        KdsearchError, match=r"an image torch.uint8 \(3, 32, 32\) came back as torch.uint8 \(3, 16, 16\)"
    ):
        FixedTransform(lambda x: x[:, ::2, ::2])(photos[:2])
    with pytest.raises(KdsearchError, match="came back as str"):
        FixedTransform(lambda x: "x")(photos[:2])
    with pytest.raises(KdsearchError, match="values from 0 to 255"):
        FixedTransform(lambda x: x)((photos[:2] > 0.5) * 255.0)


@pytest.mark.parametrize("takes", ["uint8", "float", "pil", "numpy"])
def test_what_comes_back_is_of_the_kind_that_went_in(takes: str, photos: Tensor) -> None:
    for wrong in (None, 3.0, torch.zeros(3, 32, 32, dtype=torch.int64), np.zeros((32, 32, 3), np.float32)):
        with pytest.raises(KdsearchError, match="came back as"):
            FixedTransform(lambda image, wrong=wrong: wrong, takes=takes)(photos[:2])
    with pytest.raises(KdsearchError, match="values from"):
        FixedTransform(lambda image: image + 7, takes="float")(photos[:2])


@pytest.mark.parametrize("takes", ["uint8", "float", "numpy"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_transform_in_place_leaves_the_images_given(takes: str, dtype: torch.dtype, photos: Tensor) -> None:
    def blank(image):
        image[:] = 0
        return image

    x = (photos[:2, :1] * 255).to(dtype) if dtype == torch.uint8 else photos[:2, :1].clone()
    before = x.clone()
    assert (FixedTransform(blank, takes=takes)(x) == 0).all()
    assert torch.equal(x, before)


def test_no_gpu_is_seeded(photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("it seeds every device"))
    FixedTransform(v2.RandAugment())(photos[:2])


def test_draws_of_policies_and_of_transforms_are_told_apart(photos: Tensor) -> None:
    fixed, policy = FixedTransform(v2.RandAugment()), kd.Policy(["rotate"], 1)
    with pytest.raises(KdsearchError, match="that of a fixed transform"):
        policy.augment(fixed.draw(4), photos[:4])
    with pytest.raises(KdsearchError, match="that of a policy"):
        fixed.augment(policy.draw(4), photos[:4])
    with pytest.raises(KdsearchError, match="a draw of 4 images, applied to 3"):
        fixed.augment(fixed.draw(4), photos[:3])


def columns_moved(side: int) -> set[int]:
    """How far TrivialAugmentWide moves a white image, as it shows in black columns."""
    transform = trivial_augment_wide()
    space = {"TranslateX": transform.transform._AUGMENTATION_SPACE["TranslateX"]}
    transform.transform._AUGMENTATION_SPACE = space
    out = transform(torch.ones(200, 1, 4, side), generator("wide", side))
    return {int((image[0, 0] == 0).sum()) for image in out}


def test_trivial_augment_wide_moves_small_images_by_half_at_most() -> None:
    with pytest.warns(UserWarning, match="images of 4 x 16 are moved by no more than half a side") as said:
        assert max(columns_moved(16)) == 8
    assert len(said) == 1


def test_trivial_augment_wide_is_torchvisions_from_64_pixels_on() -> None:
    ours, theirs = trivial_augment_wide(), FixedTransform(v2.TrivialAugmentWide())
    x = torch.rand(60, 3, 64, 70, generator=generator("large"))
    draw = ours.draw(60, generator("wide draw"))
    assert torch.equal(ours.augment(draw, x).images, theirs.augment(draw, x).images)


def test_a_student_trains_with_a_fixed_transform(teacher) -> None:
    train, validation, _ = kd.data.digits()
    seen = []

    def spy(image: Tensor) -> Tensor:
        seen.append(image)
        return 255 - image

    torch.manual_seed(0)
    task = kd.Classification.of(10)
    distiller = kd.Distiller(kd.networks.Teacher(teacher()), kd.networks.small_convnet(2), FixedTransform(spy), task)
    phase = Phase((LOSSES["kd"](),), epochs=1, steps=3, batch=16, policy_steps=kd.PolicySteps(interval=1))
    (record,) = distiller.run(phase, train, validation)
    assert len(seen) == 3 * 16
    assert record.policy_steps == 0  # nothing in it learns
