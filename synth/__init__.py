"""Section 3.3 of the paper: synthetic interaction video, and recorded gameplay to test it with; no Ray."""
