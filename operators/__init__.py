"""Rows in, rows out: the only place that knows both a column and Ray."""
