"""Fit the same model over four devices and on one, and compare the kernels: the masks are in them."""

import json

import jax
import keras
import numpy as np

import pernodedrop as pnd

x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = np.random.default_rng(1).normal(size=(32, 5)).astype("float32")


def fitted_kernel():
    layer = pnd.PerNodeDense(5, use_bias=False, seed=1, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return keras.ops.convert_to_numpy(layer.layer.kernel).tolist()


alone = fitted_kernel()
keras.distribution.set_distribution(keras.distribution.DataParallel())
print(json.dumps({"devices": jax.device_count(), "alone": alone, "parallel": fitted_kernel()}))
