"""Committed shards to training batches."""
