"""Fit the same model on two replicas and on one device, with batches that do not divide."""

import json

import keras
import numpy as np
import tensorflow as tf

import pernodedrop as pnd

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.eye(6, dtype="float32")[np.arange(21) % 6]


class Recorder(keras.Model):
    """Returns entries of its masks: those of a kernel of ones, at rows of the identity, and those of blocks."""

    def __init__(self):
        super().__init__()
        self.noisy = pnd.PerNodeDense(5, rate=0.5, use_bias=False, seed=1, kernel_initializer="ones")
        self.blocks = pnd.DropBlock1D(0.3, 2, normalize="batch", data_format="channels_last", seed=2)

    def build(self, shape):
        self.noisy.build(shape)
        self.blocks.build((None, 4, 3))

    def call(self, x, training=None):
        blocks = self.blocks(keras.ops.ones((keras.ops.shape(x)[0], 4, 3)), training=training)
        return keras.ops.concatenate([self.noisy(x, training=training), keras.ops.reshape(blocks, (-1, 12))], 1)


def first_outputs(distribute):
    """The training outputs of batches of 8, 8 and 5, in order."""
    with strategy.scope() if distribute else tf.init_scope():
        model = Recorder()
        model.build((None, 6))
    outputs = []
    if not distribute:
        for start in range(0, 21, 8):
            outputs.append(model(x[start : start + 8], training=True).numpy())
        return np.concatenate(outputs), model

    step = tf.function(lambda batch: model(batch, training=True))
    for batch in strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(x).batch(8)):
        parts = strategy.experimental_local_results(strategy.run(step, (batch,)))
        outputs.extend(part.numpy() for part in parts)
    return np.concatenate(outputs), model


def refusal():
    """What a prediction within the scope is answered."""
    try:
        with strategy.scope():
            pnd.uncertainty.predict(model, x, samples=3)
    except RuntimeError as error:
        return str(error)


alone, plain = first_outputs(distribute=False)
mirrored, model = first_outputs(distribute=True)
keys = keras.ops.convert_to_numpy(model.noisy._key).tolist()
print(
    json.dumps(
        {
            "replicas": strategy.num_replicas_in_sync,
            "alone": alone.tolist(),
            "mirrored": mirrored.tolist(),
            "keys": keys,
            "predicted": [pnd.uncertainty.predict(one, x, samples=3, seed=1).mean.tolist() for one in (plain, model)],
            "refusal": refusal(),
        }
    )
)
