"""Training: settings, one update of the weights, the run, and how it goes on after a kill."""
