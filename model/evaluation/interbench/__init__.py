"""InterBench: whether a generated video shows the interaction that was requested, judged in six dimensions."""
