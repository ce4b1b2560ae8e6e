"""Training stages, and what they share: settings, the loop, averaged weights, checkpoints, metrics."""
