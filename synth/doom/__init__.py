"""Record first-person gameplay together with what the game engine knows: pose, keys, events and true cuts."""
