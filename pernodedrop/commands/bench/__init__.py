"""The benchmark matrix, backend x row x shape x dtype x mode: `pernodedrop bench`.

Read matrix.py (what is measured), products.py and steps.py (what runs), timing.py, memory.py and network.py (how it is
measured), worker.py (the process of a backend), limits.py (what the machine could do), results.py (the file),
command.py (what drives all), then table.py, charts.py and page.py (what a person sees).
"""
