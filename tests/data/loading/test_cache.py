import torch

from focaldet.data.loading.cache import CachedSource
from tests.data.painted import painted_source


class CountingSource:
    def __init__(self, source):
        self.source, self.dataset, self.reads = source, source.dataset, []

    def load(self, i, *, epoch):
        self.reads.append(i)
        return self.source.load(i, epoch=epoch)


def test_an_image_is_read_once_and_the_limit_in_bytes_holds():
    source = CountingSource(painted_source(4))
    nbytes = 3 * 24 * 40
    cached = CachedSource(source, max_bytes=2 * nbytes + 1)
    for epoch in range(3):
        for i in range(4):
            image, target = cached.load(i, epoch=epoch)
            assert torch.equal(image, source.source.samples[i].image)
            assert torch.equal(target.boxes, source.source.samples[i].target.boxes)
    assert source.reads == [0, 1, 2, 3, 2, 3, 2, 3]
    assert cached.dataset is source.dataset
