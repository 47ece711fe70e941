"""How trained detectors are run and evaluated: COCO metrics, kinds of errors, result files."""
