"""The type of one augmentation operation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Entries = Mapping[tuple[int, int], Tensor]  # row and column -> (b,), of 3x3 matrices; the rest is the identity's
Matrix = Callable[[Tensor, Tensor, int, int], Entries]  # m (b,), u (b,k), height, width
Coefficient = Callable[[Tensor, Tensor, int], tuple[Tensor | int, Tensor]]  # m (b,), u (b,k), C -> column, value (b,)
Pixels = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x (b,C,H,W), m (b,), u (b,k), seeds (b,) -> (b,C,H,W)
AUTOAUGMENT = "AutoAugment (Cubuk et al., CVPR 2019)"
Gradient = Literal["exact", "straight-through", "none"]


@dataclass(frozen=True)
class Operation:
    """One augmentation: what its magnitude means, and one of a matrix, a coefficient and a function of pixels.

    A magnitude of 0 leaves an image as it is, as far as the operation's meaning allows. `limit` is where a search space
    starts from, `hard` the largest magnitude that has a meaning; both are None for an operation without a magnitude.

    `gradient` says how it is differentiated: "exact" through the pixels, to its magnitude and to earlier operations;
    "straight-through" passes the gradient of earlier operations on unchanged; "none" gives its magnitude none. `range`
    says how the range of its magnitude learns: through the pixels, or from the image at both of its ends
    (`estimators.endpoint`) where they give no gradient or, with `endpoint`, where a quantiser later in the table was
    measured to bias it (`benchmarks/estimators.py`).
    """

    name: str
    unit: str  # of the magnitude; "" without one
    limit: float | None
    hard: float | None
    signed: bool = False  # is the sign of the magnitude drawn at random?
    channels: int = 1  # 3: it has a meaning for RGB images alone and leaves others as they are
    uniforms: int = 0  # U(0,1) numbers an image needs beside the one behind the magnitude
    gradient: Gradient = "exact"
    endpoint: bool = False
    reference: str = ""  # where its meaning comes from
    matrix: Matrix | None = None  # where pixels go
    coefficient: Coefficient | None = None  # what it sets in the linear map of colours (`operations.colour`)
    pixels: Pixels | None = None  # anything else

    def __post_init__(self) -> None:
        assert sum(part is not None for part in (self.matrix, self.coefficient, self.pixels)) == 1, self.name
        assert (self.limit is None) == (self.hard is None), self.name

    @property
    def range(self) -> Literal["pathwise", "endpoint", "none"]:
        """How the range of its magnitude is learned."""
        if self.limit is None:
            return "none"
        return "pathwise" if self.gradient == "exact" and not self.endpoint else "endpoint"

    def suits(self, channels: int) -> bool:
        """Does it do anything to images of so many channels?"""
        return self.channels in (1, channels)
