"""Keys and mouse to what the model reads: a trajectory, its rays, tokens (paper section 4.1). One code in training and play."""
