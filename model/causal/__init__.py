"""The causal world model: attention over past latents, caches, and rollouts block by block."""
