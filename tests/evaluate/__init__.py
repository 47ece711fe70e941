"""Tests of `focaldet.evaluate`."""
