"""Several networks as one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdsearch.core.errors import KdsearchError
from kdsearch.networks.outputs import run_network


class Ensemble(nn.Module):
    """Several networks as one: its logits are the log of the weighted mean of their probabilities.

    Its softmax is that mean, so that losses and temperatures take it as any other network's. The mean is taken in log
    space, and logits of half precision in float32.

    Args:
        networks: They return anything that `run_network` reads, all for the same classes.
        weights: One positive number each, equal unless given; what counts is their ratio.

    Raises:
        KdsearchError: no networks; weights that are not positive, or not as many; when run, different logits.

    >>> one, other = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.ReLU())  # the images as they are; zeros
    >>> images = torch.tensor([0.2, 0.8]).log().view(1, 1, 1, 2)
    >>> [round(p, 3) for p in Ensemble([one, other], [3, 1])(images).softmax(1)[0].tolist()]
    [0.275, 0.725]
    """

    log_weights: Tensor

    def __init__(self, networks: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        shares = [1.0] * len(networks) if weights is None else [float(weight) for weight in weights]
        if not len(networks):
            raise KdsearchError("ensemble: no networks; needed: at least one")
        if len(shares) != len(networks):
            raise KdsearchError(f"ensemble: {len(shares)} weights for {len(networks)} networks; needed: one each")
        if not all(0 < share < math.inf for share in shares):
            raise KdsearchError(f"ensemble: weights {', '.join(f'{s:g}' for s in shares)}; allowed: positive numbers")
        self.networks = nn.ModuleList(networks)
        log_weights = torch.tensor([math.log(share) - math.log(math.fsum(shares)) for share in shares])
        self.register_buffer("log_weights", log_weights, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        members = [
            run_network(one, images, f"ensemble's network {i}").to_float32().logits
            for i, one in enumerate(self.networks)
        ]
        shapes = list(dict.fromkeys(tuple(logits.shape) for logits in members))
        if len(shapes) > 1:
            found = " and ".join(str(shape) for shape in shapes)
            raise KdsearchError(f"ensemble: logits of shapes {found}; needed: the same classes from all networks")
        terms = [x.log_softmax(1) + share for x, share in zip(members, self.log_weights.unbind(), strict=True)]
        return torch.stack(terms).logsumexp(0)
