"""Noise on recurrent layers, one regularizer a file; `cells` has what they know of the layer inside."""
