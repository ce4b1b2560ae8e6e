"""What is said about a clip: the semantic check, captions, interactive or not, and what changes to the next clip."""
