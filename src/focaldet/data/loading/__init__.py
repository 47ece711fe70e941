"""From a data set to batches: order, worker processes, collation."""
