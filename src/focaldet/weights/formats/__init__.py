"""Readers of the weights files of other programs."""
