"""Studies: which regularizer helps, at which rate, and whether the difference is more than chance."""
