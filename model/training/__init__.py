"""One file a stage, on what they share: steps, averages, checkpoints."""
