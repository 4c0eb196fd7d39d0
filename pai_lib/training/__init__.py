"""Training: the loop, the device, checkpoints."""
