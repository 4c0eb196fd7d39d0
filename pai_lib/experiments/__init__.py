"""Experiments: what a run is, how it is done, what is recorded, and many of them."""
