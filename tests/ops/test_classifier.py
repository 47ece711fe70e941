"""Sigmoids and softmax side by side: losses, probabilities, margins."""

import math

import pytest
import torch

from focaldet import losses
from focaldet.ops.classifier import class_logits, class_loss_sum, class_losses, decisions

LABELS = torch.tensor([0, 2, 1, 2])  # of two classes: two objects and two anchors of background
IGNORED = torch.tensor([False, False, False, True])


def logits(count):
    return torch.randn(4, count, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 0.0), (0.25, 2.0), (0.75, 0.5)])
@pytest.mark.parametrize("classifier", ["sigmoid", "softmax"])
def test_the_sum_is_that_of_the_anchors_and_of_its_decisions(classifier, alpha, gamma):
    rows = logits(3 if classifier == "softmax" else 2)
    form = {"classifier": classifier, "alpha": alpha, "gamma": gamma}
    each = class_losses(rows, LABELS, ignore=IGNORED, **form)
    assert each.shape == (4,) and each[3] == 0 and (each[:3] > 0).all()
    torch.testing.assert_close(class_loss_sum(rows, LABELS, ignore=IGNORED, **form), each.sum())
    positive, negative = decisions(rows[~IGNORED], LABELS[~IGNORED], classifier)
    weights = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    of_decisions = sum(
        weight * losses.focal_loss(x, torch.ones_like(x), gamma=gamma).sum()
        for weight, x in zip(weights, (positive, negative), strict=True)
    )
    torch.testing.assert_close(each.sum(), of_decisions)


def test_softmax_cross_entropy_is_torchs():
    rows = logits(3)
    mine = class_losses(
        rows, LABELS, classifier="softmax", alpha=None, gamma=0.0, ignore=torch.zeros(4, dtype=torch.bool)
    )
    torch.testing.assert_close(mine, torch.nn.functional.cross_entropy(rows, LABELS, reduction="none"))


def test_class_logits_are_those_of_the_probabilities():
    rows = logits(3)
    torch.testing.assert_close(class_logits(rows, "softmax").sigmoid(), rows.softmax(-1)[:, :-1])
    two = logits(2)
    assert class_logits(two, "sigmoid") is two


def test_one_class_in_a_softmax_is_a_sigmoid_of_the_difference():
    rows = logits(2)
    torch.testing.assert_close(class_logits(rows, "softmax"), rows[:, :1] - rows[:, 1:])
    positive, negative = decisions(rows, torch.tensor([0, 1, 0, 1]), "softmax")
    difference = rows[:, 0] - rows[:, 1]
    torch.testing.assert_close(positive, difference[[0, 2]])
    torch.testing.assert_close(negative, -difference[[1, 3]])


def test_certainty_keeps_its_digits():
    sure = torch.tensor([[60.0, 0.0, 0.0], [-60.0, 0.0, 0.0]])
    expected = torch.tensor([60 - math.log(2), -60 - math.log(2)])
    torch.testing.assert_close(class_logits(sure, "softmax")[:, 0], expected)
