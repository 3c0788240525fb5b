"""Any fixed transform in the place of a policy: nothing in it learns, but it draws, replays and trains students too."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdsearch.augment.operations import apply, check_draw, check_images
from kdsearch.core.errors import KdsearchError, unknown_name, user_call
from kdsearch.core.maths import own_generators, seed_generators
from kdsearch.core.values import Draw, View

LONGEST_NAME = 60  # letters of a transform's repr in a message
Kind = Literal["uint8", "float", "pil", "numpy"]  # of image


class FixedTransform(nn.Module):
    """A callable on one image, called on each image of a batch with that image's own seed.

    Before each call the global generators of torch, NumPy and Python are seeded, and put back at the end: the same draw
    gives the same images, in any batch. It runs on the host; where it moves pixels to is not known, so that a task
    whose targets move with them cannot use it.

    Args:
        transform: From one image to one image of the same shape.
        takes: What it is called with: "uint8" or "float" (values in [0, 1]) for a tensor (C, H, W), "pil" for a PIL
            image, "numpy" for an uint8 array (H, W, C). It gives the same kind.
        reseed: Told each image's seed (at most 32 bits), for a transform with a generator of its own, such as
            `set_random_seed` of an albumentations pipeline.

    >>> half = FixedTransform(lambda image: image // 2)
    >>> half(torch.ones(1, 3, 2, 2)).unique()
    tensor([0.4980])
    """

    def __init__(
        self,
        transform: Callable[[Any], Any],
        *,
        takes: Kind = "uint8",
        reseed: Callable[[int], Any] | None = None,
    ) -> None:
        super().__init__()
        if takes not in get_args(Kind):
            raise KdsearchError(unknown_name("kind of image", takes, get_args(Kind)))
        self.transform, self.takes, self.reseed = transform, takes, reseed

    def draw(self, size: int, generator: torch.Generator | None = None) -> Draw:
        """A seed for each of `size` images; `generator` is a CPU generator."""
        none = torch.zeros(size, 0)
        seeds = torch.randint(2**32, (size,), generator=generator)
        return Draw((), none.long(), none.bool(), none.double(), torch.zeros(size, 0, 1), none.double(), seeds)

    @torch.no_grad()
    def augment(self, draw: Draw, images: Tensor) -> View:
        """The images (B, C, H, W), float in [0, 1], transformed one by one, over their base views; no gradient passes.

        Raises:
            KdsearchError: the transform gives an image of another shape or kind, or values out of range; the draw is
                that of a policy or of another number of images.
        """
        check_images(images)
        check_draw(draw, images)
        if draw.operations:
            raise KdsearchError("draw: it is that of a policy; carry it out with the policy's `augment`")
        if draw.base is not None:
            first = apply(draw.base, images)
            return View(self.augment(replace(draw, base=None), first.images).images, first.matrix)
        device, dtype = images.device, images.dtype if images.is_floating_point() else torch.get_default_dtype()
        host = images.cpu() if images.dtype == torch.uint8 else images.float().cpu()
        changed, name = [], " ".join(f"{self.transform}".split())[:LONGEST_NAME]
        with own_generators():
            for image, seed in zip(host, draw.seeds.tolist(), strict=True):
                seed_generators(seed)
                if self.reseed:
                    self.reseed(seed)
                changed.append(self._call(image, name))
        out = torch.stack(changed) if changed else host.float()
        check_images(out)
        return View(out.to(device, dtype), torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1))

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Transformed images in training mode, the same images in evaluation mode."""
        return self.augment(self.draw(len(images), generator), images).images if self.training else images

    def _call(self, image: Tensor, name: str) -> Tensor:
        """One image through the transform, called so in errors, which may change what it is given."""
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

        levels = image.clone() if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
        given: Any = levels
        if self.takes == "float":
            given = image / 255 if image.dtype == torch.uint8 else image.clone()
        elif self.takes == "pil":
            given = to_pil_image(levels)
        elif self.takes == "numpy":
            given = levels.movedim(0, -1).numpy().copy()
        with user_call(f"transform {name}"):
            out = self.transform(given)
        if _kind(out) != _kind(given):
            raise KdsearchError(f"transform {name}: an image {_kind(given)} came back as {_kind(out)}")
        if self.takes == "pil":
            out = pil_to_tensor(out)
        elif self.takes == "numpy":
            out = torch.from_numpy(np.ascontiguousarray(out)).movedim(-1, 0)
        return out / 255 if out.dtype == torch.uint8 else out


def _kind(image: Any) -> str:
    """Type and shape in words."""
    if isinstance(image, Image.Image):
        return f"PIL {image.mode} {image.width} x {image.height}"
    if isinstance(image, Tensor | np.ndarray):
        return f"{image.dtype} {tuple(image.shape)}"
    return type(image).__name__
