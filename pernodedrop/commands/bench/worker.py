"""The process of one backend: reads what to time as JSON, and writes each figure as a line of JSON once it is there.

The parent starts it with KERAS_BACKEND set, one after another.
"""

import json
import os
import sys

from pernodedrop.commands.bench import network, steps, timing
from pernodedrop.commands.bench.matrix import Case
from pernodedrop.report.environment import environment


def main():
    """Do what the parent asks on standard input: {"backend", "parts", "rounds", "seconds", "available", "network"}."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what frameworks print is not for the parent

    def say(**message):
        print(json.dumps(message), file=channel, flush=True)

    def progress(text):
        say(doing=text)

    asked = json.load(sys.stdin)
    steps.prepare(asked["backend"])
    say(environment=environment(asked["backend"]))
    pace = {}
    limits = asked["rounds"], asked["seconds"], asked["available"]
    for part in asked["parts"]:
        say(times=list(timing.measure([Case.of(case) for case in part], *limits, progress, pace)))
    if asked["network"]:
        say(networks=network.measure(progress=progress, **asked["network"]))


if __name__ == "__main__":
    main()
