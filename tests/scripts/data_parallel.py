"""Masks and kernels of one device and of four, by every engine of JAX, as JSON.

Under `keras.distribution` a model is fitted too: its kernel is that of all the masks. Rows of the identity and a kernel
of ones show the entries of masks themselves.
"""

import json

import jax
import keras
import numpy as np

import pernodedrop as pnd

P = jax.sharding.PartitionSpec
MESH = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
KEY = jax.numpy.asarray([1, 7], "uint32")
MAPS = jax.numpy.ones((8, 4, 3))
x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = np.random.default_rng(1).normal(size=(32, 4)).astype("float32")
rows = jax.numpy.eye(6)[np.arange(32) % 6]


def fitted():
    """The kernel after an epoch, and the next mask."""
    layer = pnd.PerNodeDense(4, use_bias=False, seed=1, kernel_initializer="ones", name="noisy")
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    kernel = keras.ops.convert_to_numpy(layer.layer.kernel).tolist()
    layer.layer.kernel.assign(np.ones((6, 4)))
    distribution, given = keras.distribution.distribution(), rows
    if distribution is not None:
        given = keras.distribution.distribute_tensor(rows, distribution.get_data_layout(rows.shape))
    mask = jax.jit(lambda x, key: layer(x, training=True, key=key))(given, KEY)
    return {"kernel": kernel, "mask": np.asarray(mask).tolist()}


def of_shards(function, **inputs):
    """What a function gives of parts of the batch, on four devices."""
    sharded = jax.shard_map(function, mesh=MESH, in_specs=P("data"), out_specs=P("data"))
    return np.asarray(jax.jit(sharded)(*inputs.values())).tolist()


def op(x, sample_ids):
    return pnd.ops.masked_dense(x, jax.numpy.ones((6, 4)), pnd.Bernoulli(0.5), KEY, sample_ids=sample_ids)


def blocks(x, sample_ids):
    layer = pnd.DropBlock1D(0.3, 2, normalize="batch", data_format="channels_last", seed=2)
    return layer(x, training=True, key=KEY, sample_ids=sample_ids)


ids = np.arange(32, dtype="int32")
seen = {"devices": jax.device_count(), "alone": fitted()}
seen["op"] = op(rows, ids).tolist()
seen["blocks"] = blocks(MAPS, ids[:8]).tolist()
if hasattr(jax, "shard_map"):  # JAX 0.6.0 has it as an experiment only
    seen["op in shard_map"] = of_shards(op, x=rows, sample_ids=ids)
    seen["blocks in shard_map"] = of_shards(blocks, x=MAPS, sample_ids=ids[:8])
keras.distribution.set_distribution(keras.distribution.DataParallel())
seen["DataParallel"] = fitted()
mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
for name, axes in {"ModelParallel, outputs": (None, "model"), "ModelParallel, inputs": ("model", None)}.items():
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*kernel"] = axes
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
    seen[name] = fitted()
print(json.dumps(seen))
