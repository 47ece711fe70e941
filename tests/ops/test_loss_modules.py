"""The losses as modules: what they divide by, what they keep, and that a rank is a part."""

import json

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from torch import distributed, multiprocessing

from focaldet import losses
from focaldet.ops.losses.modules import (
    BalancedCrossEntropyLoss,
    BalancedFocalLoss,
    BinaryCrossEntropyLoss,
    FocalLoss,
    FocalStarLoss,
    QualityFocalLoss,
    SoftmaxFocalLoss,
)

X = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)) * 2
TARGETS = torch.zeros(3, 5, 2)
TARGETS[0, :3, 0] = TARGETS[2, 1, 1] = 1
IGNORE = torch.zeros(3, 5, 2, dtype=torch.bool)
IGNORE[0, 0] = True


@pytest.mark.parametrize(
    ("normalizer", "divisor"),
    [("batch", 4), ("batch_plus_one", 5), ("moving_average", 90.4), ("elements", 30), ("none", 1)],
)
def test_each_divisor_by_hand(normalizer, divisor):
    loss = losses.balanced_focal_loss(X, TARGETS, alpha=0.25, gamma=2.0)
    actual = BalancedFocalLoss(normalizer=normalizer)(X, TARGETS)
    torch.testing.assert_close(actual, loss.sum() / divisor)


def test_positives_of_the_image_are_averaged_over_images():
    loss = losses.focal_loss(X, TARGETS, gamma=2.0).flatten(1).sum(1)
    torch.testing.assert_close(FocalLoss(normalizer="image")(X, TARGETS), (loss / torch.tensor([3, 1, 1])).mean())


def test_what_is_ignored_is_not_counted():
    loss = losses.focal_loss(X, TARGETS, gamma=2.0, ignore=IGNORE)
    torch.testing.assert_close(FocalLoss()(X, TARGETS, IGNORE), loss.sum() / 3)
    torch.testing.assert_close(FocalLoss(normalizer="elements")(X, TARGETS, IGNORE), loss.sum() / 28)


@pytest.mark.parametrize(
    ("module", "loss"),
    [
        (BinaryCrossEntropyLoss(), losses.binary_cross_entropy(X, TARGETS)),
        (BalancedCrossEntropyLoss(alpha=0.75), losses.balanced_cross_entropy(X, TARGETS, alpha=0.75)),
        (FocalLoss(gamma=0.5), losses.focal_loss(X, TARGETS, gamma=0.5)),
        (FocalStarLoss(), losses.focal_star_loss(X, TARGETS, gamma=2.0, beta=1.0)),
        (QualityFocalLoss(), losses.quality_focal_loss(X, TARGETS)),
    ],
)
def test_each_module_is_its_function_over_the_positives(module, loss):
    torch.testing.assert_close(module(X, TARGETS), loss.sum() / 4)


def test_softmax_is_the_mean_of_rows_or_counts_what_is_not_a_background():
    rows, classes = X.reshape(15, 2), torch.arange(15) % 2
    loss = losses.softmax_focal_loss(rows, classes, gamma=2.0)
    torch.testing.assert_close(SoftmaxFocalLoss()(rows, classes), loss.mean())
    torch.testing.assert_close(SoftmaxFocalLoss(normalizer="batch", background=0)(rows, classes), loss.sum() / 7)
    with pytest.raises(ValueError, match="say which class is the background"):
        SoftmaxFocalLoss(normalizer="batch")


def test_the_moving_average_is_saved_and_rests_at_evaluation():
    module = FocalLoss(normalizer="moving_average")
    module(X, TARGETS)
    assert module.average.item() == pytest.approx(90.4)
    module.eval()(X, TARGETS)
    assert module.average.item() == pytest.approx(90.4)
    again = FocalLoss(normalizer="moving_average")
    again.load_state_dict(module.state_dict())
    assert again.average.item() == pytest.approx(90.4)
    assert not FocalLoss().state_dict()


def test_weights_per_class_go_where_the_module_goes():
    module = BalancedFocalLoss(alpha=torch.tensor([0.25, 0.75])).to(torch.float64)
    assert module.alpha.dtype == torch.float64 and not module.state_dict()
    expected = losses.balanced_focal_loss(X, TARGETS, alpha=torch.tensor([0.25, 0.75]), gamma=2.0)
    torch.testing.assert_close(module(X, TARGETS), expected.sum() / 4)


def test_nothing_to_find_divides_by_one_and_an_unknown_normalizer_is_refused():
    assert torch.isfinite(FocalLoss()(X, torch.zeros_like(X)))
    with pytest.raises((ValueError, BeartypeCallHintViolation), match="normalizer"):  # the annotation is first
        FocalLoss(normalizer="mean")


def gradient_of_part(rank, out):
    """What each of two processes does with its part; at module level so that a fresh interpreter finds it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{out}/joined", rank=rank, world_size=2)
    part = slice(0, 2) if rank == 0 else slice(2, 3)
    actual = {}
    for normalizer in ("batch", "image", "elements"):
        x = X[part].clone().requires_grad_()
        FocalLoss(normalizer=normalizer, across_ranks=True)(x, TARGETS[part]).backward()
        actual[normalizer] = (x.grad / 2).tolist()  # as data-parallel training averages
    (out / f"{rank}.json").write_text(json.dumps(actual))
    distributed.destroy_process_group()


@pytest.mark.prove
def test_two_processes_that_average_gradients_are_one(tmp_path):
    multiprocessing.spawn(gradient_of_part, args=(tmp_path,), nprocs=2)
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for normalizer in ("batch", "image", "elements"):
        x = X.clone().requires_grad_()
        FocalLoss(normalizer=normalizer)(x, TARGETS).backward()
        torch.testing.assert_close(torch.tensor(parts[0][normalizer] + parts[1][normalizer]), x.grad)


def test_the_names_of_version_0_1_give_a_warning():
    from focaldet import losses

    with pytest.warns(FutureWarning, match="FocalLoss: normaliser is now called normalizer"):
        assert FocalLoss(normaliser="image").normalizer == "image"
    with pytest.warns(FutureWarning, match="over_ranks is now called across_ranks"):
        assert BalancedFocalLoss(over_ranks=True).across_ranks
    with pytest.warns(FutureWarning, match="NormalisedLoss is now called NormalizedLoss"):
        assert issubclass(FocalLoss, losses.NormalisedLoss)
