"""Luminance and picture quality of clips: scores, and the rules that judge them."""
