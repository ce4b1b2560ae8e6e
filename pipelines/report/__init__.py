"""The report of an output: one HTML page."""
