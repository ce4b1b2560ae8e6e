"""Benchmarks: each measures one stage on separate footage, and first prints what it runs on."""
