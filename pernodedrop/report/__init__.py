"""What commands that report figures share, each in one place.

environment.py says what figures depend on, results.py keeps them in a file and looks after its folder, figures.py and
table.py show them, and process.py measures in a process of its own.
"""
