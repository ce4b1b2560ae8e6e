"""Ways to make play faster. Each is a switch of `AccelerateSpec` with a bound on what it changes; none is stored in a world."""
