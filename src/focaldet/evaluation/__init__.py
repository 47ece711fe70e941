"""COCO numbers of detections, detectors over whole splits, and the report of a run."""
