"""Faster R-CNN on a feature pyramid or on one map of a classifier."""
