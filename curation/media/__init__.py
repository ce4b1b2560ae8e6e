"""Video files in and out: probe, seek, decode, repair, find the view, encode."""
