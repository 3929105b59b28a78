"""The libraries that have native modules, one way to make and to call the modules of each, for tests of all of them.

Arrays are NumPy's, samples first; those of convolutions have their channels last. Arguments have the names of Keras. A
call is given its key and the ids of its samples.
"""

import functools
import importlib
import importlib.util
import io
import typing

import numpy as np

from pernodedrop.state import CompositeRegularizer, Regularizer


class Library:
    """The native modules of a library, with seed 7 where none is given.

    Attributes:
        folder, package: those of the modules, and what has to be installed.
        names: of arguments that are called otherwise there.
        positions: whether a linear module has inputs (batch, time, in), and modules draw keys and know schedules.
        code: a script that uses the modules.
    """

    folder = package = code = ""
    names: typing.ClassVar[dict] = {}
    positions = True

    @functools.cached_property
    def modules(self):
        """The public names."""
        return importlib.import_module(f"pernodedrop.{self.folder}")

    @property
    def noisy(self):
        """The classes with noise."""
        public = [getattr(self.modules, name) for name in self.modules.__all__]
        return {one for one in public if isinstance(one, type) and issubclass(one, Regularizer | CompositeRegularizer)}

    def kind(self, name, dims):
        """The class of a name without its dimensions."""
        return getattr(self.modules, name)

    def make(self, name, *sizes, dims=0, **arguments):
        """A module of a kind."""
        arguments = {self.names.get(name, name): value for name, value in arguments.items()}
        return self.made(self.kind(name, dims), sizes, dims, arguments)

    def calls(self, module, x, count=1):
        """The outputs of training calls one after another, with the keys that the module draws."""
        return [self.call(module, x) for _ in range(count)]


class Torch(Library):
    """The modules of torch."""

    folder = package = "torch"
    names: typing.ClassVar[dict] = {"strides": "stride", "dilation_rate": "dilation", "use_bias": "bias"}
    code = (
        "import torch, pernodedrop.torch as pndt;"
        "model = pndt.apply(torch.nn.Linear(3, 4), 'all-linear', rate=0.5, seed=1); model(torch.ones(2, 3));"
        "pndt.uncertainty.predict(model, torch.ones(2, 3), 2, probabilities=False).report(torch.ones(2, 4), 1.0);"
        "pndt.fold(model)(torch.ones(2, 3));"
    )

    def kind(self, name, dims):
        return getattr(self.modules, f"{name}{dims}d" if dims else name)

    def made(self, kind, sizes, dims, arguments):
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(0)  # of the weights
            return kind(*sizes, **{"seed": 7, **arguments})

    def call(self, module, x, training=True, **which):
        """The output of a call."""
        import torch

        given = {name: value if name == "key" else torch.from_numpy(value) for name, value in which.items()}
        return self.output(module.train(training), torch.from_numpy(x), **given).detach().numpy()

    def output(self, module, x, **given):
        """The output of a call with tensors, whose channels are last; of attention that to itself."""
        import torch

        first = hasattr(module, "kernel_size")  # stand the channels
        inputs = 3 if isinstance(module, torch.nn.MultiheadAttention) else 1
        y = module(*[x.movedim(-1, 1) if first else x] * inputs, **given)
        y = y[0] if isinstance(y, tuple) else y  # and the last states
        return y.movedim(1, -1) if first else y

    def half(self, module, x):
        """The output of a training call of a module and an input that are cast to bfloat16, and its dtype."""
        import torch

        y = self.output(module.train().to(torch.bfloat16), torch.from_numpy(x).to(torch.bfloat16))
        return y.detach().float().numpy(), str(y.dtype).removeprefix("torch.")

    def gradients(self, module, x, upstream):
        """The output of a training call, and the gradients of sum(output * upstream), of the input and parameters."""
        import torch

        x, parameters = torch.from_numpy(x).requires_grad_(), dict(module.train().named_parameters())
        y = self.output(module, x)
        found = torch.autograd.grad((y * torch.from_numpy(upstream)).sum(), [x, *parameters.values()])
        of_x, *others = (one.numpy() for one in found)
        return y.detach().numpy(), of_x, dict(zip(parameters, others, strict=True))

    def parameters(self, module):
        """The parameters by name."""
        return {name: one.detach().numpy() for name, one in module.named_parameters()}

    def resumed(self, module, like):
        """Another module with the saved state of one."""
        import torch

        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        like.load_state_dict(torch.load(file, weights_only=True), strict=True)
        return like

    def weights(self, module):
        """The parameters as a Keras layer has them."""
        if hasattr(module, "gates"):
            return weights_of_recurrent(module)
        kernel = np.moveaxis(module.weight.detach().numpy(), (0, 1), (-1, -2))
        return [kernel] if module.bias is None else [kernel, module.bias.detach().numpy()]

    def with_gradient(self, module, gradient):
        """The module with a gradient noted, of a kernel of Keras' form."""
        import torch

        module.gradient.copy_(torch.from_numpy(np.moveaxis(gradient, (-1, -2), (0, 1)).copy()))
        return module

    def gradient(self, module):
        """The gradient last noted, in Keras' form."""
        return np.moveaxis(module.gradient.numpy(), (0, 1), (-1, -2))

    def trained(self, module, x, targets, steps, rate):
        """The module after steps of gradient descent on the mean squared error."""
        import torch

        optimizer = torch.optim.SGD(module.train().parameters(), rate)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(torch.from_numpy(x)), torch.from_numpy(targets)).backward()
            optimizer.step()
        return module

    def masks(self, module):
        """The masks of an ensemble."""
        return module.masks

    def with_rate(self, module, rate):
        """The module at another rate."""
        module.rate = rate
        return module


def weights_of_recurrent(module):
    """The parameters of a recurrent module of torch, cell by cell, with the gates in the order of Keras."""
    found = []
    for cell in module.all_weights:
        kernel, state, *biases = (one.detach().numpy() for one in cell)
        kernel, state, *biases = (
            np.concatenate([np.split(one, len(module.gates))[gate] for gate in np.argsort(module.gates)])
            for one in (kernel, state, *biases)
        )
        found += [kernel.T, state.T, np.stack(biases) if len(module.gates) == 3 else sum(biases)]
    return found


class Nnx(Library):
    """The modules of Flax NNX."""

    folder, package = "nnx", "flax"
    names: typing.ClassVar[dict] = {"dilation_rate": "kernel_dilation", "groups": "feature_group_count"}
    code = (
        "import jax; from flax import nnx; import pernodedrop.nnx as pndx; x = jax.numpy.ones((2, 3));"
        "model = pndx.apply(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), 'all-linear', rate=0.5, seed=1); model(x);"
        "pndx.uncertainty.predict(model, x, 2, probabilities=False); pndx.fold(model)(x);"
    )

    def made(self, kind, sizes, dims, arguments):
        from flax import nnx

        form = {"rngs": nnx.Rngs(params=0), "bias_init": nnx.initializers.normal(1.0)} if len(sizes) > 1 else {}
        if "padding" in arguments:
            arguments["padding"] = arguments["padding"].upper()
        return kind(*sizes, **{"seed": 7, **form, **arguments})

    def call(self, module, x, training=True, **which):
        """The output of a call."""
        if "key" in which:
            which["key"] = np.array(which["key"], "uint32")
        return np.asarray(self.compiled(training if type(module) in self.noisy else None)(module, x, which))

    @functools.cache  # noqa: B019 - of one library, which is made once
    def compiled(self, training):
        """A call as one program; that of a plain module, which has no mode, of None."""
        from flax import nnx

        mode = {} if training is None else {"deterministic": not training}
        return nnx.jit(lambda module, x, which: module(x, **mode, **which))

    def half(self, module, x):
        """The output of a training call of a module and an input that are cast to bfloat16, and its dtype."""
        import jax
        from flax import nnx

        cast = lambda leaf: leaf.astype("bfloat16") if leaf.dtype == "float32" else leaf  # noqa: E731 - an argument
        nnx.update(module, jax.tree.map(cast, nnx.state(module)))
        y = self.compiled(True)(module, x.astype("bfloat16"), {})
        return np.asarray(y, "float32"), str(y.dtype)

    def gradients(self, module, x, upstream):
        """The output of a training call, and the gradients of sum(output * upstream), of the input and parameters."""
        from flax import nnx

        def loss(module, x):
            y = module(x)
            return (y * upstream).sum(), y

        (_, y), (of_module, of_x) = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True))(module, x)
        return np.asarray(y), np.asarray(of_x), {name: np.asarray(one[...]) for name, one in of_module.items()}

    def parameters(self, module):
        """The parameters by name."""
        from flax import nnx

        return {name: np.asarray(one[...]) for name, one in nnx.state(module, nnx.Param).items()}

    def resumed(self, module, like):
        """Another module with a copy of the state of one."""
        import jax
        from flax import nnx

        return nnx.merge(nnx.split(like)[0], jax.tree.map(lambda leaf: leaf.copy(), nnx.state(module)))

    def weights(self, module):
        """The parameters as a Keras layer has them."""
        return [np.array(one[...]) for one in (module.kernel, module.bias) if one is not None]

    def with_gradient(self, module, gradient):
        """The module with a gradient noted, of a kernel of Keras' form."""
        module.gradient[...] = gradient
        return module

    def gradient(self, module):
        """The gradient last noted, in Keras' form."""
        return module.gradient[...]

    def trained(self, module, x, targets, steps, rate):
        """The module after steps of gradient descent on the mean squared error."""
        import jax
        from flax import nnx

        @nnx.jit
        def step(module, x):
            gradients = nnx.grad(lambda module: ((module(x) - targets) ** 2).mean())(module)
            if type(module) in self.noisy:
                self.modules.note_gradients(module, gradients)
            parameters = nnx.state(module, nnx.Param)
            nnx.update(module, jax.tree.map(lambda old, slope: old - rate * slope, parameters, gradients))

        for _ in range(steps):
            step(module, x)
        return module

    def masks(self, module):
        """The masks of an ensemble."""
        return module.masks[...]

    def with_rate(self, module, rate):
        """The module at another rate."""
        module.rate = rate
        return module


class Equinox(Library):
    """The modules of Equinox."""

    folder = package = "equinox"
    names: typing.ClassVar[dict] = {"strides": "stride", "dilation_rate": "dilation"}
    positions = False
    code = (
        "import jax, equinox as eqx, pernodedrop.equinox as pnde; x = jax.numpy.ones((2, 3));"
        "model = pnde.apply(eqx.nn.Linear(3, 4, key=jax.random.key(0)), 'all-linear', rate=0.5);"
        "pnde.uncertainty.predict(model, x, 2, probabilities=False); jax.vmap(pnde.fold(model))(x);"
    )

    def made(self, kind, sizes, dims, arguments):
        import jax

        is_fixed = arguments.get("regime", "dynamic") != "dynamic" or len(sizes) == 1
        fixed = {"seed": 7} if is_fixed and "seed" not in arguments else {}
        if "axis" in arguments:  # of one sample
            arguments["axis"] -= arguments["axis"] > 0
        if "padding" in arguments:
            arguments["padding"] = arguments["padding"].upper()
        if "noise_shape" in arguments:  # of one sample
            arguments["noise_shape"] = arguments["noise_shape"][1:]
        sizes = (*([dims] if dims else []), *sizes)
        return kind(*sizes, **({"key": jax.random.key(0)} if sizes else {}), **fixed, **arguments)

    def call(self, module, x, training=True, key=None, sample_ids=None):
        """The output of a call."""
        import equinox as eqx

        key = None if key is None else np.array(key, "uint32")
        return np.asarray(self.compiled(eqx.nn.inference_mode(module, not training), x, key, sample_ids))

    @functools.cached_property
    def compiled(self):
        """A call of each row of a batch, as one program."""
        import equinox as eqx
        import jax

        @eqx.filter_jit
        def rows(module, x, key, sample_ids):
            first = hasattr(module, "kernel_size")  # stand the channels
            which = {} if key is None else {"key": key}

            def of_row(row, n):
                row = jax.numpy.moveaxis(row, -1, 0) if first else row
                y = module(row, **which) if n is None else module(row, **which, sample_id=n)
                return jax.numpy.moveaxis(y, 0, -1) if first else y

            return jax.vmap(of_row, in_axes=(0, None if sample_ids is None else 0))(x, sample_ids)

        return rows

    def calls(self, module, x, count=1):
        """The outputs of training calls with the keys (7, 0), (7, 1) and so on, and ids as rows have in a batch."""
        return [self.call(module, x, key=(7, n), sample_ids=self.ids(module, x)) for n in range(count)]

    def ids(self, module, x):
        """The numbers of the rows of a batch, or None where all have one mask."""
        return None if "sample" in module.sharing else np.arange(len(x), dtype="int32")

    def half(self, module, x):
        """The output of a training call of a module and an input that are cast to bfloat16, and its dtype."""
        import equinox as eqx
        import jax

        cast = lambda leaf: leaf.astype("bfloat16") if eqx.is_inexact_array(leaf) else leaf  # noqa: E731 - an argument
        key = np.array((7, 0), "uint32")
        y = self.compiled(jax.tree.map(cast, module), x.astype("bfloat16"), key, self.ids(module, x))
        return np.asarray(y, "float32"), str(y.dtype)

    def gradients(self, module, x, upstream):
        """The output of a training call, and the gradients of sum(output * upstream), of the input and parameters."""
        import equinox as eqx
        import jax

        ids, key = self.ids(module, x), np.array((7, 0), "uint32")

        def loss(both):
            y = self.compiled(*both, key, ids)
            return (y * upstream).sum(), y

        (_, y), (of_module, of_x) = eqx.filter_value_and_grad(loss, has_aux=True)((module, jax.numpy.asarray(x)))
        return np.asarray(y), np.asarray(of_x), self.parameters(of_module)

    def parameters(self, module):
        """The parameters by name."""
        found = {name: getattr(module, name, None) for name in ("weight", "bias")}
        return {name: np.asarray(one) for name, one in found.items() if one is not None}

    def resumed(self, module, like):
        """Another module with the saved state of one."""
        import equinox as eqx

        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, module)
        file.seek(0)
        return eqx.tree_deserialise_leaves(file, like)

    def weights(self, module):
        """The parameters as a Keras layer has them."""
        kernel = np.moveaxis(np.array(module.weight), (0, 1), (-1, -2))
        return [kernel] if module.bias is None else [kernel, np.array(module.bias).reshape(-1)]

    def with_gradient(self, module, gradient):
        """The module with a gradient noted, of a kernel of Keras' form."""
        import equinox as eqx

        bits = np.moveaxis(gradient, (-1, -2), (0, 1)).copy().view("int32")
        return eqx.tree_at(lambda one: one.gradient_bits, module, bits)

    def gradient(self, module):
        """The gradient last noted, in Keras' form."""
        return np.moveaxis(module.gradient, (0, 1), (-1, -2))

    def trained(self, module, x, targets, steps, rate):
        """The module after steps of gradient descent on the mean squared error, whose key a batch shares."""
        import equinox as eqx
        import jax

        @eqx.filter_jit
        def step(module, x, call):
            which = {"key": (7, call)} if type(module) in self.noisy else {}

            def loss(module):
                return ((jax.vmap(lambda row: module(row, **which))(x) - targets) ** 2).mean()

            gradients = eqx.filter_grad(loss)(module)
            if type(module) in self.noisy:
                module = self.modules.note_gradients(module, gradients)
            return eqx.apply_updates(module, jax.tree.map(lambda slope: -rate * slope, gradients))

        for call in range(steps):
            module = step(module, x, jax.numpy.uint32(call))
        return module

    def masks(self, module):
        """The masks of an ensemble."""
        return module.masks

    def with_rate(self, module, rate):
        """The module at another rate."""
        return module.with_rate(rate)


LIBRARIES = {"torch": [Torch()], "jax": [Nnx(), Equinox()]}
"""Those of each backend."""


def installed(backend):
    """The libraries of a backend that are installed."""
    return [one for one in LIBRARIES.get(backend, []) if importlib.util.find_spec(one.package)]
