"""Runs the small study of tests/studies.py in a folder, and ends like kill -9 as a given trial begins."""

import functools
import json
import os
import signal
import sys

if os.environ["KERAS_BACKEND"] == "torch":
    sys.modules["tensorflow"] = None  # Keras would import it, for seconds

from pernodedrop.study import runner
from tests import studies

folder, fatal = sys.argv[1], int(sys.argv[2])
storage = sys.argv[3] if len(sys.argv) > 3 else None
begun = []
runner.Queue = functools.partial(runner.Queue, heartbeat=1, grace=15)


def model(slot):
    begun.append(slot)
    if len(begun) == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return studies.model(slot)


study = studies.small(folder, model=model, storage=storage)
finished = study.run(progress=False)
print(json.dumps([finished, len(begun)]))
