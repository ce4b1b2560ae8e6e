"""Many devices. Everything is put around a model from outside; no model file knows of it."""
