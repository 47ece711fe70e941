import pytest
import torch

from focaldet.ops.losses.normalize import loss_normalizers

POSITIVES = torch.tensor([3, 0, 5])


def normalizers_of(kind, positives=POSITIVES, averages=None, reduce=None, ranks=1):
    averages = {} if averages is None else averages
    return loss_normalizers(positives, kind, averages=averages, all_reduce_sum=reduce, num_ranks=ranks).tolist()


def test_each_kind_by_hand():
    assert normalizers_of("batch") == [8.0, 8.0, 8.0]
    assert normalizers_of("batch_plus_one") == [9.0, 9.0, 9.0]
    assert normalizers_of("image") == [9.0, 3.0, 15.0]  # max(1, positives) of the image × 3 images


def test_without_positives_nothing_divides_by_zero():
    none = torch.zeros(2, dtype=torch.int64)
    assert normalizers_of("batch", none) == [1.0, 1.0]
    assert normalizers_of("image", none) == [2.0, 2.0]


def test_moving_average_starts_at_100_and_is_kept():
    averages = {}
    assert normalizers_of("moving_average", averages=averages)[0] == pytest.approx(0.9 * 100 + 0.1 * 8)
    assert normalizers_of("moving_average", averages=averages)[0] == pytest.approx(0.9 * 90.8 + 0.1 * 8)
    assert averages["positives"].item() == pytest.approx(82.52)


@pytest.mark.parametrize("kind", ["batch", "image", "batch_plus_one", "moving_average"])
def test_two_ranks_that_average_gradients_equal_one(kind):
    """Sum of loss / divisor over one process = mean over ranks of the same."""
    losses = torch.tensor([2.0, 7.0, 1.0, 4.0])
    positives = torch.tensor([3, 0, 5, 2])
    one = (losses / torch.tensor(normalizers_of(kind, positives))).sum()
    totals = torch.tensor([float(positives.sum()), 4.0], dtype=torch.float64)

    def everywhere(local):
        return totals if local.numel() == 2 else totals[:1]

    parts = [
        (losses[half] / torch.tensor(normalizers_of(kind, positives[half], reduce=everywhere, ranks=2))).sum()
        for half in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), one)
