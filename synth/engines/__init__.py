"""Record footage with exact ground truth in OpenGL games: the game draws a frame, waits, and draws the next."""
