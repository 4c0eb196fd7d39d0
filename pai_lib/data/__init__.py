"""Data sets: folders of pictures, arrays, streams, and the batches that are drawn from them."""
