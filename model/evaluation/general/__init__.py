"""General measures of generated videos: one file each, with its definition and source."""
