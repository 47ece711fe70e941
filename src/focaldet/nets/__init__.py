"""Networks: everything that has weights and never sees ground truth."""

from focaldet.errors import ConfigError
from focaldet.nets.backbone import Backbone
from focaldet.nets.darknet import DARKNETS, DarkNet19
from focaldet.nets.efficientnet_lite import EfficientNetLite0
from focaldet.nets.mobilenet import MobileNetV2, TensorFlowMobileNetV2
from focaldet.nets.norm import NormKind
from focaldet.nets.resnet import RESNETS, ResNet
from focaldet.nets.timm_backbone import TimmBackbone

BACKBONES = (*RESNETS, "mobilenet_v2", "mobilenet_v2_tf", "efficientnet_lite0", *DARKNETS)


def build_backbone(
    name: str,
    *,
    norm: NormKind,
    eps: float,
    stride_in_1x1: bool,
    ceil_pool: bool = False,
    dilated_c5: bool = False,
) -> Backbone:
    """The backbone called `name`: one of `BACKBONES`, or `timm:` and a name of that package.

    Raises:
        ConfigError: the name is unknown, timm is missing, or `ceil_pool` or `dilated_c5` is set without a ResNet.
    """
    if name in RESNETS:
        return ResNet(name, norm=norm, eps=eps, stride_in_1x1=stride_in_1x1, ceil_pool=ceil_pool, dilated_c5=dilated_c5)
    if ceil_pool or dilated_c5:
        raise ConfigError(f"backbone {name!r}: only ResNets have ceil_pool and dilated_c5; set both to false")
    if name == "mobilenet_v2":
        return MobileNetV2(norm=norm, eps=eps)
    if name == "mobilenet_v2_tf":
        return TensorFlowMobileNetV2(norm=norm, eps=eps)
    if name == "efficientnet_lite0":
        return EfficientNetLite0(norm=norm, eps=eps)
    if name in DARKNETS:
        return DarkNet19(DARKNETS[name], norm=norm, eps=eps)
    if name.startswith("timm:"):
        return TimmBackbone(name.removeprefix("timm:"), norm=norm)
    raise ConfigError(f"backbone {name!r} is unknown (valid: {', '.join(BACKBONES)}, or timm:NAME)")
