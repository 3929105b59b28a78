"""Activation noise, one regularizer a file: each stands between layers. Read `dropout` first."""
