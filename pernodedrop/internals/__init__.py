"""Private names of frameworks: the only folder that uses them, see its README.md."""
