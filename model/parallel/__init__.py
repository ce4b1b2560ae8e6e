"""Many devices, put on from outside: no model file knows of them."""
