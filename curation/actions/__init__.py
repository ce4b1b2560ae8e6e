"""What the player does and what happens on screen, as spans of time."""
