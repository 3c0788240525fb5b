"""The shared formulas against scipy, torch and numbers fixed once."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Bernoulli, kl_divergence

from kdsearch.core.maths import bernoulli_kl, clopper_pearson, derive_seed, generator, normal_field


def test_seeds_are_fixed_once_and_for_all_and_fit_63_bits() -> None:
    assert derive_seed(0, "draws", 3) == 4359085936720386812
    seeds = {derive_seed(i, name) for i in range(1000) for name in ("draws", "batches")}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_generators_of_the_same_parts_agree_and_of_other_parts_do_not() -> None:
    first, same, other = (torch.rand(8, generator=generator(*parts)) for parts in ((1, "a"), (1, "a"), (1, "b")))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_normal_field_is_normal_along_positions_and_along_seeds() -> None:
    """One family of 24 tests, wrongly rejected once in a thousand."""
    along_positions = normal_field(torch.tensor([0, 1, 2, -1, 2**62, -(2**63), 12345, 99]), 20_000)
    along_seeds = normal_field(torch.arange(20_000), 8).T
    random = torch.randint(-(2**63), 2**63 - 1, (20_000,), generator=generator("seeds"))
    fields = torch.cat([along_positions, along_seeds, normal_field(random, 8).T]).double()
    assert torch.isfinite(fields).all()
    assert min(stats.kstest(field.numpy(), "norm").pvalue for field in fields) > 1e-3 / len(fields)
    correlation = torch.corrcoef(fields) - torch.eye(len(fields))
    assert correlation.abs().max() < 5 / 20_000**0.5


def test_a_normal_field_is_made_of_the_published_hashes() -> None:
    """SplitMix64's first output for the seed 1234567 keys the two 32-bit hashes, here in whole numbers of Python."""

    def hashed(x: int) -> int:
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
            x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
        return x >> 8

    key = 6457827717110365317
    for i in (0, 1, 7):
        pair = (i // 2 + 1) * 0x9E3779B9 & 0xFFFFFFFF
        radius = (hashed((pair + key) & 0xFFFFFFFF) + 0.5) / 2**24
        angle = 2 * math.pi * hashed(((pair ^ 0xFFFFFFFF) + (key >> 32)) & 0xFFFFFFFF) / 2**24
        expected = math.sqrt(-2 * math.log(radius)) * (math.sin if i % 2 else math.cos)(angle)
        assert normal_field(torch.tensor([1234567]), 9)[0, i].item() == pytest.approx(expected, abs=1e-4)


def test_a_normal_field_depends_on_its_own_seed_and_position_alone() -> None:
    seeds = torch.randint(-(2**63), 2**63 - 1, (32,), generator=generator("field"))
    whole = normal_field(seeds, 100)
    assert torch.equal(normal_field(seeds[[7, 3]], 50), whole[[7, 3], :50])
    assert whole.unique(dim=0).shape == (32, 100)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.88])
def test_the_divergence_of_two_bernoullis_is_torchs_and_finite_at_the_ends(q: float) -> None:
    p = torch.tensor([0.0, 1e-6, 0.3, 0.5, 0.999, 1.0], dtype=torch.float64)
    expected = kl_divergence(Bernoulli(probs=p), Bernoulli(probs=torch.tensor(q, dtype=torch.float64)))
    torch.testing.assert_close(bernoulli_kl(p, q)[1:-1], expected[1:-1])
    ends = torch.tensor([1 - q, q], dtype=torch.float64).log().neg()
    torch.testing.assert_close(bernoulli_kl(p, q)[[0, -1]], ends)
    assert bernoulli_kl(torch.tensor(q), q).item() == 0


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (5, 10), (10, 10), (1, 3), (480, 500)])
@pytest.mark.parametrize("level", [0.95, 0.9994])
def test_the_interval_of_a_rate_is_scipys(successes: int, trials: int, level: float) -> None:
    low, high = clopper_pearson(np.array([successes]), np.array([trials]), level)
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    assert (low.item(), high.item()) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_interval_of_nothing_is_everything() -> None:
    low, high = clopper_pearson(np.array([0, 3]), np.array([0, 3]), 0.95)
    assert (low[0], high[0], high[1]) == (0, 1, 1)
