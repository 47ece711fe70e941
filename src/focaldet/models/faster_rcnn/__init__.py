"""Faster R-CNN on a feature pyramid or on one feature map (C4)."""
