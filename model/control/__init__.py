"""Keys and mouse to a camera trajectory, its rays and tokens (paper section 4.1): the same code in training and in play."""
