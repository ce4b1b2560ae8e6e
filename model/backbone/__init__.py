"""One Wan2.2-compatible expert, a diffusion transformer over video latents, with its codecs and encoders."""
