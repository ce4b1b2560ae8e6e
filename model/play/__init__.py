"""Play: sessions of a causal world for people and scripts, with their records, their server and its page."""
