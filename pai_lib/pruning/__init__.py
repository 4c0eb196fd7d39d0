"""Pruning: criteria, scores, masks, and what a mask leaves of a network."""
