"""Readers of annotation formats, and what they share."""
