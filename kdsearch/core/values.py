"""The frozen values that travel between the parts, and the alphabet of shapes.

B images of a batch, C channels, H W height and width, K classes, S operations of a policy, n of them drawn per image.
Class axis is 1; the axes after it are space. Images are float in [0, 1], before any normalisation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

Fill = Literal["zero", "mean", "reflect"]  # what stands where geometry finds no pixel
FILLS: tuple[str, ...] = get_args(Fill)


@dataclass(frozen=True)
class Batch:
    """Images with the target of the task and ids that stay the same across epochs."""

    images: Tensor  # (B, C, H, W), float in [0, 1], before normalisation
    target: Tensor  # (B,) class labels, or what else the task has: (B, ...)
    ids: Tensor  # (B,) int64, the position in the data set; on the host, where draws live

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, images=to_device(self.images, device), target=to_device(self.target, device))

    def rows(self, index: slice) -> Self:
        """Some of the images."""
        return type(self)(*(getattr(self, part.name)[index] for part in fields(self)))


@dataclass(frozen=True)
class Outputs:
    """What a network says about a batch."""

    logits: Tensor  # (B, K, *space)
    features: Mapping[str, Tensor] = field(default_factory=dict)  # by module path, (B, ...)
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # whatever else the network returned under a name

    def map(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        """The same with every tensor changed; each is (B, ...)."""
        features, extras = ({k: change(v) for k, v in part.items()} for part in (self.features, self.extras))
        return Outputs(change(self.logits), features, extras)

    @staticmethod
    def join(parts: "Sequence[Outputs]") -> "Outputs":
        """Of several batches, one after another; what not all of them have under a name is left out."""
        if len(parts) == 1:
            return parts[0]
        features, extras = (
            {name: torch.cat([t[name] for t in given]) for name in given[0] if all(name in t for t in given)}
            for given in ([part.features for part in parts], [part.extras for part in parts])
        )
        return Outputs(torch.cat([part.logits for part in parts]), features, extras)

    def rows(self, index: slice | Tensor) -> "Outputs":
        """Of some images of the batch, by a slice or by their places (b,)."""
        return self.map(lambda tensor: tensor[index])

    def to_float32(self) -> "Outputs":
        """Half-precision tensors as float32."""
        return self.map(lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t)

    def detach(self) -> "Outputs":
        return self.map(Tensor.detach)


@dataclass(frozen=True)
class Draw:
    """What one call of a policy decided for each image; applied again, anywhere, it gives the same pixels.

    Lives on the host. `magnitudes` are those of the policy at the time of the draw; `Policy.magnitudes(draw)` computes
    them again from the uniforms and the live parameters, so that they carry a gradient.
    """

    operations: tuple[str, ...]  # S names in table order; `chosen` points into it
    chosen: Tensor  # (B, n) int64, ascending
    gates: Tensor  # (B, n) bool: is the drawn operation applied?
    signs: Tensor  # (B, n) float64, +1 or -1; +1 where the operation is not signed
    uniforms: Tensor  # (B, n, 1 + extra) float64 in [0, 1): first the one behind the magnitude
    magnitudes: Tensor  # (B, n) float64, signed, in the operation's unit; 0 where it has no magnitude
    seeds: Tensor  # (B,) int64, of the noise fields
    fill: str = "zero"  # where the warp finds no pixel: zero, mean or reflect
    base: "Draw | None" = None  # of the base view that this is carried out over; None: over the image

    def __len__(self) -> int:
        return len(self.chosen)

    def rows(self, index: Tensor | slice) -> Self:
        """The draws of some images, in the order of their places (b,) or a slice; their base view's come along."""
        whole = ("operations", "fill", "base")
        parts = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name not in whole}
        return replace(self, **parts, base=None if self.base is None else self.base.rows(index))


@dataclass(frozen=True)
class ViewBatch:
    """The views of a batch, one view after another: what a loss may look at beside the outputs of both networks.

    N is the number of views times that of the images. Where the teacher sees other pixels than the student, its own
    images are `shown`; `matrix` tells where the student's came from.
    """

    images: Tensor  # (N, C, H, W), what the student sees
    shown: Tensor  # (N, C, H, W), what the teacher sees
    target: Tensor  # (N, ...), as the task lets it follow the draw
    ids: Tensor  # (N,) int64, the position in the data set
    view: Tensor  # (N,) int64: 0 the base view, 1 the second
    matrix: Tensor  # (N, 3, 3) float64 on the host, forward map in pixels relative to the image centre
    draw: Draw | None = None  # of the second view; None where it is the first

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: slice) -> Self:
        """Some of the rows; the draw is that of the whole second view."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "draw"})


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; from the host to a GPU through pinned memory, without waiting for it."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


class View(NamedTuple):
    """Images after a draw, and where their pixels went."""

    images: Tensor  # (B, C, H, W)
    matrix: Tensor  # (B, 3, 3), forward map in pixels relative to the image centre
