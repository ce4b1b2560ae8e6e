"""Measures of what a world shows."""
