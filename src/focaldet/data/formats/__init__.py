"""Formats of annotation files: one module for each, and what they have in common."""
