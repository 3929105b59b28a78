"""The command line: `cli` has the parsers, and each command is a file, or a folder, of its own."""
