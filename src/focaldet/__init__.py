"""Train, compare and ship object detectors."""
