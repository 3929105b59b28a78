"""Two workers of a MultiWorkerMirroredStrategy, of which one then has the whole batches alone: their masks as JSON."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import tensorflow as tf

import pernodedrop as pnd

BATCH = 7
ROWS = np.eye(6, dtype="float32")[np.arange(2 * BATCH) % 6]


def noisy():
    """Rows of the identity and a kernel of ones show the entries of masks themselves."""
    layer = pnd.PerNodeDense(5, rate=0.5, use_bias=False, seed=1, kernel_initializer="ones")
    layer.build((None, 6))
    return layer


def free_port():
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


def worker(number, ports):
    """The masks of one worker, whose part of a batch is its first or its last rows."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        layer = noisy()
    step = tf.function(lambda x: strategy.run(lambda x: layer(x, training=True), (x,)))
    parts = [batch[:4] if number == 0 else batch[4:] for batch in (ROWS[:BATCH], ROWS[BATCH:])]
    return [step(tf.constant(part)).numpy().tolist() for part in parts]


def main():
    ports = [free_port(), free_port()]
    second = [sys.executable, __file__, "1", json.dumps(ports)]
    with subprocess.Popen(second, stdout=subprocess.PIPE, text=True) as other:
        try:
            parts = [worker(0, ports), json.loads(other.communicate()[0].splitlines()[-1])]
        finally:
            other.kill()  # it would wait for this one; where both are done it does nothing
    layer = noisy()
    alone = [layer(batch, training=True).numpy().tolist() for batch in (ROWS[:BATCH], ROWS[BATCH:])]
    print(json.dumps({"workers": [first + last for first, last in zip(*parts, strict=True)], "alone": alone}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(worker(int(sys.argv[1]), json.loads(sys.argv[2]))))
    else:
        main()
