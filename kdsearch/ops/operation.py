"""The type of one augmentation operation."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Matrix = Callable[[Tensor, int, int], Tensor]  # m (b,), height, width -> (b, 3, 3)
Pixels = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x (b,C,H,W), m (b,), u (b,k), seeds (b,) -> (b,C,H,W)


@dataclass(frozen=True)
class Operation:
    """One augmentation: what its magnitude means, and either a matrix or a function of pixels.

    A magnitude of 0 leaves an image as it is, as far as the operation's meaning allows. `limit` is where a search space
    starts from, `hard` the largest magnitude that has a meaning; both are None for an operation without a magnitude.
    """

    name: str
    unit: str  # of the magnitude; "" without one
    limit: float | None
    hard: float | None
    signed: bool = False  # is the sign of the magnitude drawn at random?
    channels: int = 1  # the least number of channels it has a meaning for
    uniforms: int = 0  # U(0,1) numbers an image needs beside the one behind the magnitude
    differentiable: bool = True  # do pixels carry a gradient to the magnitude?
    matrix: Matrix | None = None
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        assert (self.matrix is None) != (self.pixels is None), self.name
        assert (self.limit is None) == (self.hard is None), self.name

    @property
    def gradient(self) -> str:
        """How its range is learned: "pathwise", "fixed" at the prior, or "none" without a magnitude."""
        if self.limit is None:
            return "none"
        return "pathwise" if self.differentiable else "fixed"
