"""The one pass over a source, and what follows from it alone: cuts, optical flow, and the spans of clips."""
