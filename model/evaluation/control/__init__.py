"""Measures of control and memory: obedience, expected flow, the way back, drift."""
