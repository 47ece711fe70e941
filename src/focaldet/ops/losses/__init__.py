"""Losses, elementwise but for the fused `focal_loss_sum`, and what their sums are divided by."""
