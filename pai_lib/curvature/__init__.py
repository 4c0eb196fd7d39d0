"""Curvature at a point: gradients, Hessian products, diagonals by Fisher, Gauss-Newton and Hutchinson."""
