"""Models that paint, edit and animate, in this process or behind a server."""
