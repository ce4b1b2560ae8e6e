"""Chains of operators and the commands that run them."""
