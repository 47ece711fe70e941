"""Loss sorted into bins: the same curves as sorting every decision, in constant memory."""

import math

import numpy
import pytest
import torch

from focaldet.models.base import Margins
from focaldet.ops.losses.cross_entropy import binary_cross_entropy
from focaldet.ops.losses.focal import focal_loss
from focaldet.study import loss_tally as module
from focaldet.study.loss_tally import SIDES, LossTally

GAMMAS = (0.0, 0.5, 1.0, 2.0)


def random_margins(num_positives, num_negatives, *, seed=0):
    """Positives around 1, negatives around 4, both wide: as of a detector that has learned something."""
    generator = torch.Generator().manual_seed(seed)
    positive = 1 + 2 * torch.randn(num_positives, generator=generator)
    return Margins(positive, 4 + 2 * torch.randn(num_negatives, generator=generator))


def tally_of(*margins, gammas=GAMMAS):
    tally = LossTally(gammas)
    for one in margins:
        tally.add(one)
    return tally


def exact(x, gamma):
    """Fractions of examples and of loss from sorting the losses themselves."""
    loss = focal_loss(x.double(), torch.ones(len(x)), gamma=gamma).sort().values
    return numpy.arange(len(x) + 1) / len(x), numpy.append(0, (loss.cumsum(0) / loss.sum()).numpy())


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_curve_is_that_of_sorting_every_decision(gamma):
    margins = random_margins(300, 50_000)
    tally = tally_of(margins)
    for side, x in zip(SIDES, margins, strict=True):
        curve = tally.cumulative(side, gamma)
        fractions, loss_fractions = exact(x, gamma)
        assert curve.easiest(fractions) == pytest.approx(loss_fractions, abs=2e-5 if side == "negatives" else 1e-3)
        for tail in (0.2, 0.01):
            assert curve.hardest(tail) == pytest.approx(1 - numpy.interp(1 - tail, fractions, loss_fractions), abs=1e-3)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_curve_grows_from_0_to_1_below_the_diagonal(gamma):
    tally = tally_of(random_margins(7, 1000))
    for side in SIDES:
        curve = tally.cumulative(side, gamma)
        for ends in (curve.examples, curve.loss):
            assert (ends[0], ends[-1]) == (0, 1)
            assert (numpy.diff(ends) >= 0).all()
        assert (curve.loss <= curve.examples + 1e-12).all()


def test_two_examples_by_hand():
    """p_t of 1/2 and 1/4 lose ln 2 and 2 ln 2; with γ = 2 a quarter of the one and 9/16 of the other."""
    tally = tally_of(Margins(torch.tensor([0.0, -math.log(3)]), torch.tensor([0.0])))
    assert tally.cumulative("positives", 0.0).hardest(0.5) == pytest.approx(2 / 3)
    assert tally.cumulative("positives", 2.0).hardest(0.5) == pytest.approx(1.125 / 1.375)
    assert tally.cumulative("negatives", 2.0).hardest(0.25) == pytest.approx(0.25)
    assert tally.losses[:, 1].sum(1).tolist() == pytest.approx([math.log(2) / 2**gamma for gamma in GAMMAS])


def test_sums_are_those_of_the_losses_and_of_the_cross_entropy_without_gamma():
    margins = random_margins(100, 5000)
    sums = tally_of(margins).losses.sum(2)
    for row, x in enumerate(margins):
        plain = binary_cross_entropy(x.double(), torch.ones(len(x))).sum().item()
        assert sums[0, row].item() == pytest.approx(plain, rel=1e-12)
        for gamma, total in zip(GAMMAS, sums[:, row].tolist(), strict=True):
            assert total == pytest.approx(
                focal_loss(x.double(), torch.ones(len(x)), gamma=gamma).sum().item(), rel=1e-12
            )


def test_the_larger_gamma_the_more_the_hardest_hold():
    tally = tally_of(random_margins(500, 50_000))
    for side, tail in (("positives", 0.2), ("negatives", 0.01)):
        loss_fractions = [tally.cumulative(side, gamma).hardest(tail) for gamma in GAMMAS]
        assert loss_fractions == sorted(set(loss_fractions))


def test_memory_does_not_grow_and_parts_are_the_whole(monkeypatch):
    parts = [random_margins(20, 1000, seed=seed) for seed in range(10)]
    one, ten = tally_of(parts[0]), tally_of(*parts)
    assert [one.counts.shape, one.losses.shape] == [ten.counts.shape, ten.losses.shape]
    assert ten.counts.sum(1).tolist() == [200, 10_000]
    monkeypatch.setattr(module, "CHUNK_DECISIONS", 997)
    whole = tally_of(Margins(*map(torch.cat, zip(*parts, strict=True))))
    merged = LossTally.merge([tally_of(*parts[:3]), tally_of(*parts[3:])])
    for other in (whole, merged):
        assert torch.equal(other.counts, ten.counts)
        assert torch.allclose(other.losses, ten.losses, rtol=1e-12, atol=0)


def test_what_is_farther_out_than_the_bins_counts_in_full():
    tally = tally_of(Margins(torch.tensor([-1000.0, 1000.0]), torch.zeros(0)))
    assert tally.losses[:, 0].sum(1).tolist() == [1000.0] * len(GAMMAS)
    assert tally.cumulative("positives", 2.0).hardest(0.5) == 1


def test_a_side_without_decisions_or_loss_has_no_curve():
    assert tally_of().cumulative("positives", 0.0) is None
    tally = tally_of(Margins(torch.zeros(0), torch.full((3,), 5000.0)))
    assert tally.cumulative("positives", 0.0) is None
    assert tally.cumulative("negatives", 2.0) is None
    assert tally.counts.sum(1).tolist() == [0, 3]
