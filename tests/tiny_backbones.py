"""Backbones for tests in which the width does not matter: ResNets of one block a stage, and a short Inception-ResNet.

Importing this makes their names known to `build`, in this process. Each kind of block of the real ones is there.
"""

from focaldet.nets.inception_resnet import INCEPTION_RESNETS, InceptionResNetShape
from focaldet.nets.resnet import RESNETS, ResNetShape

ONE_EACH = (1, 1, 1, 1)
RESNETS |= {
    "resnet_tiny": ResNetShape(ONE_EACH, bottleneck=False, stem_width=16),
    "resnet_tiny_bottleneck": ResNetShape(ONE_EACH, width_per_group=64, stem_width=8),
    "resnext_tiny": ResNetShape(ONE_EACH, groups=4, width_per_group=16, stem_width=8),
}
INCEPTION_RESNETS |= {"inception_resnet_tiny": InceptionResNetShape(factor=1 / 16, repeats=(1, 1, 1))}
