"""Curvature at a point: gradients, Hessian products and diagonals.

The way of a Fisher diagonal: `diagonals` asks `problem` for logits, a slice of the batch after the
other; `squares` sums squared gradients over its samples, from what `graph` finds that the forward
pass did with each weight. `operations` and `rows` tell which rows of a layer are whose.
"""
