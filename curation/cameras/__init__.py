"""Camera poses and intrinsics for every frame of a clip, or the reason why there are none (paper section 3.4)."""
