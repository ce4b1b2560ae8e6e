"""Section 3.3 of the paper: synthetic interaction videos, and recorded gameplay to test the pipeline with; no Ray."""
