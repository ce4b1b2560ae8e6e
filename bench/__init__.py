"""Benchmarks: each measures one stage on footage of its own and prints what it was measured on first."""
