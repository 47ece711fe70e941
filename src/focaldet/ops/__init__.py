"""Pure functions on tensors: geometry, anchors, matching, suppression, losses. Nothing here has weights."""
