"""Where the camera was in every frame of a clip, or why nobody can say (paper section 3.4, camera annotation)."""
