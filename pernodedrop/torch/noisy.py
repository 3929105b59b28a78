"""What every noisy module has: a mask, its key and the numbers of its noise in buffers, one draw a call that trains."""

import collections.abc
import contextlib
import types
import typing
import zlib

import numpy as np
import torch

from pernodedrop import backends, checks, ops
from pernodedrop._types import Params
from pernodedrop.internals import of_torch
from pernodedrop.mask import Mask
from pernodedrop.schedules import Schedule
from pernodedrop.state import Regularizer, State, bits_of

xp = backends.get("torch")

IN_CHECKPOINT = (
    "A key was about to be drawn inside torch.utils.checkpoint, whose backward pass would draw another one and so "
    "differentiate another mask than the forward pass applied. Draw outside: `with pndt.drawn_keys(model):` around "
    "forward and backward pass, or `key = module.draw()` and then `module(x, key=key)` inside."
)

IN_DATA_PARALLEL = (
    "torch.nn.DataParallel tells no module which samples it has, so all devices would have equal masks. Expected "
    "torch.nn.parallel.DistributedDataParallel, or `sample_ids`."
)


class Noisy(Regularizer, of_torch.Told, torch.nn.Module):
    """Base of noisy modules; it stands before the torch module where a class is both.

    Its state is in two buffers, int32, and those that a subclass adds to `kept`; no cast to another dtype rounds them:
        noise_key: (2,), the bits of (seed, call). Each draw advances the call number.
        noise_numbers: the bits of the noise's numbers, so that a new rate takes effect after compilation.
    In a `state_dict` they are the module's extra state, which a checkpoint of the plain module need not have.
    """

    xp = xp
    kept: tuple[str, ...] = ("noise_key", "noise_numbers")
    """The buffers, of 32 bits an entry, whose first values `first` gives."""

    inputs: typing.ClassVar[int] = 1
    """How many of the call's first arguments are not the noise's."""
    noise_key: torch.Tensor
    noise_numbers: torch.Tensor

    def start(
        self,
        mask: Mask,
        seed: int | None,
        schedule: Schedule | None,
        persistence: Schedule | None = None,
        more: collections.abc.Mapping[str, np.generic] = types.MappingProxyType({}),
    ) -> None:
        """Begin with a mask, after the constructor of `torch.nn.Module`.

        Args:
            mask: which mask, a `pernodedrop.Mask`.
            seed: any int; None takes one from Python's `random`.
            schedule: the rate as a function of the key's call number; None leaves it where the mask has it.
            persistence: the mask's persistence likewise.
            more: numbers that are held beside those of the noise.
        """
        self.state = State(mask, seed, schedule, persistence, more)
        self.replica: tuple[int, int] | None = None
        self.held: dict[str, torch.Tensor] = {}
        for name in self.kept:
            self.register_buffer(name, None, persistent=False)
        self.begin_again()

    def begin_again(self) -> None:
        """Put the first key and numbers on the device that the parameters are on."""
        for name in self.kept:
            setattr(self, name, torch.from_numpy(self.first(name)).to(_device_of(self)))

    def first(self, name: str) -> np.typing.NDArray[typing.Any]:
        """The first values of a buffer."""
        return self.state.first_key.copy() if name == "noise_key" else bits_of(self.state.first_numbers)

    def words_of_key(self) -> np.typing.NDArray[np.uint32]:
        return self._bits("noise_key").view("uint32")

    def numbers_on_host(self, argument: str = "rate") -> dict[str, typing.Any]:
        return self.state.numbers_on_host(self._bits("noise_numbers"), argument)

    def numbers(self) -> dict[str, torch.Tensor]:
        return self.state.numbers_of(self.noise_numbers, _in_dtype)

    def put_numbers(self, numbers: Params) -> None:
        self._put("noise_numbers", bits_of(numbers))

    def draw(self) -> torch.Tensor:
        """The next key: an integer tensor of length 2, (seed, call), for `module(x, key=key)`.

        Raises:
            RuntimeError: inside `torch.utils.checkpoint`.
        """
        if self.regime != "dynamic":
            return self.noise_key
        if not torch.compiler.is_compiling() and of_torch.in_checkpoint():
            raise RuntimeError(IN_CHECKPOINT)
        return xp.draw(ops.Counter(self.noise_key, self.noise_key.copy_))

    @property
    def has_noise(self) -> bool:
        """Whether a call has noise: in training, and at inference too where the masks are part of the model."""
        return self.training or self.state.mask.at_inference

    def fold(self) -> torch.nn.Module:
        """The plain module that computes what this one does at inference."""
        raise NotImplementedError(f"{type(self).__name__} must define `fold`")

    def next_key(self) -> torch.Tensor:
        return self.held["noise_key"] if self.held else self.draw()

    def batch_of(self, x: typing.Any) -> int:
        """How many samples an input has."""
        return int(x.shape[0])

    def samples(self, x: torch.Tensor, sample_ids: torch.Tensor | None) -> torch.Tensor:
        """The sample coordinates of the rows of x.

        Row n of rank r of R has n * R + r, its place in the whole batch as `DistributedSampler` deals it out.
        """
        if sample_ids is None and of_torch.is_replica(self):
            raise RuntimeError(IN_DATA_PARALLEL)
        has_rows = "sample" not in self.sharing and self.regime != "example"
        if sample_ids is None and has_rows and self.replica is not None:
            rank, ranks = self.replica
            sample_ids = torch.arange(x.shape[0], dtype=torch.int32, device=x.device) * ranks + rank
        return super().samples(x, sample_ids)

    def get_extra_state(self) -> torch.Tensor:
        """The noise, and the bits of its buffers, as `state_dict` has them: int32 words.

        A tensor, as in files of safetensors there is nothing else.
        """
        return torch.from_numpy(np.concatenate([self._mark(), *map(self._bits, self.kept)]))

    def set_extra_state(self, state: typing.Any) -> None:
        """Take what `get_extra_state` gave.

        Raises:
            ValueError: the state of another noise, or of a module of other sizes; or a rate that it cannot have.
        """
        own = self.get_extra_state()
        same = isinstance(state, torch.Tensor) and (state.dtype, state.shape) == (own.dtype, own.shape)
        if not same or state[0] != own[0]:
            noise, held = type(self.noise).__name__, [*self.state.first_numbers, *self._shapes()]
            expected = f"what a {type(self).__name__} with {noise} noise saves: its key and {held or 'no number'}"
            expected += " (its schedule is not saved)" if self.state.is_scheduled else ""
            raise ValueError(checks.invalid("state", expected, state))
        words = state.detach().cpu().numpy()
        sizes = [getattr(self, name).numel() for name in self.kept]
        bits = dict(zip(self.kept, np.split(words[1:], np.cumsum(sizes)[:-1]), strict=True))
        if len(numbers := bits["noise_numbers"]):  # refuses what is out of range
            self.check_numbers(self.state.numbers_on_host(numbers))
        for name in self.kept:
            self._put(name, bits[name])

    def extra_repr(self) -> str:
        """The arguments of the plain module, and the noise."""
        noise = [f"{name}={value!r}" for name, value in self.in_words().items()]
        return ", ".join(filter(None, [super().extra_repr(), *noise]))

    def _mark(self) -> np.typing.NDArray[np.int32]:
        """A word that tells one kind of noise from others, by the names of its class, its numbers and its tensors."""
        names = " ".join([self.state.kind, *self._shapes()])
        return np.array([zlib.crc32(names.encode())], "uint32").view("int32")

    def _shapes(self) -> list[str]:
        """The names and shapes of the buffers beside the key and the numbers, which tell their own lengths."""
        return [f"{name} {tuple(getattr(self, name).shape)}" for name in self.kept if name not in Noisy.kept]

    def _put(self, name: str, bits: np.typing.NDArray[np.int32]) -> None:
        buffer = getattr(self, name)
        values = torch.from_numpy(bits).view(buffer.dtype).reshape(buffer.shape)
        if buffer.is_meta:  # where parameters were assigned to a module that had none yet
            setattr(self, name, values.to(_device_of(self)))
        else:
            buffer.copy_(values)

    def _bits(self, name: str) -> np.typing.NDArray[np.int32]:
        buffer = getattr(self, name)
        return (self.first(name) if buffer.is_meta else buffer.detach().cpu().numpy()).view("int32").ravel()

    @contextlib.contextmanager
    def moving(self) -> collections.abc.Iterator[None]:
        """Buffers keep their bits: `to_empty` forgets them, and `type` casts them."""
        kept = {name: getattr(self, name) for name in self.kept}
        yield
        for name, old in kept.items():
            now = getattr(self, name)
            if now is not old and not now.is_meta:
                old = torch.from_numpy(self.first(name)) if old.is_meta else old
                setattr(self, name, old.to(now.device))

    def before_loading(self, state_dict: dict[str, typing.Any], prefix: str) -> None:
        """A plain module's checkpoint has no state of noise: the present one stays."""
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())


@contextlib.contextmanager
def drawn_keys(model: torch.nn.Module) -> collections.abc.Iterator[None]:
    """Draws a key for every noisy module now, which all its calls inside use: for passes that are made again.

    `torch.utils.checkpoint` makes its forward pass again in the backward pass: put both inside. A module that is called
    more than once has the same mask each time. What else masks are made of and a backward pass changes, the gradient
    that `DynamicDropConnectLinear` notes, is held as well, in a copy.

    Args:
        model: a module, whose noisy modules at any depth draw if they train.

    >>> import torch, pernodedrop.torch as pndt
    >>> layer = pndt.PerNodeLinear(3, 4, seed=1)
    >>> x = torch.ones(2, 3)
    >>> with pndt.drawn_keys(layer):
    ...     bool((layer(x) == layer(x)).all())
    True
    """
    _check_model(model)
    noisy = [module for module in model.modules() if isinstance(module, Noisy) and module.training]
    for module in noisy:
        others = {name: getattr(module, name).clone() for name in module.kept if name not in Noisy.kept}
        module.held = {"noise_key": module.draw(), **others}
    try:
        yield
    finally:
        for module in noisy:
            module.held = {}


def set_replica(model: torch.nn.Module, rank: int, ranks: int) -> torch.nn.Module:
    """Say which part of the batch a process has, where that is not its rank in the process group.

    Without it every process of `torch.distributed` counts as one part: right for DDP and FSDP2. Of a device mesh with
    further axes say the place in the axis that data are split over.

    Args:
        model: a module, whose noisy modules at any depth are told.
        rank: this process's part, an int from 0 and below `ranks`.
        ranks: number of parts, an int from 1.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    >>> import torch, pernodedrop.torch as pndt
    >>> layer = pndt.set_replica(pndt.PerNodeLinear(3, 4, seed=1), rank=1, ranks=2)
    >>> x = torch.ones(2, 3)
    >>> bool((layer(x, key=(1, 0)) == layer(x, key=(1, 0), sample_ids=torch.tensor([1, 3]))).all())
    True
    """
    _check_model(model)
    checks.check_count(ranks, "ranks")
    if checks.check_count(rank, "rank", least=0) >= ranks:
        raise ValueError(checks.invalid("rank", f"an int below ranks={ranks}", rank))
    for module in model.modules():
        if isinstance(module, Noisy):
            module.replica = (rank, ranks)
    return model


def _check_model(model: typing.Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(checks.invalid("model", "a torch.nn.Module", model))


def _in_dtype(bits: torch.Tensor, name: str) -> torch.Tensor:
    """The same bits in another dtype of 32."""
    return bits if name == "int32" else bits.view(getattr(torch, name))


def _device_of(module: torch.nn.Module) -> torch.device:
    first = next(module.parameters(recurse=False), None)
    return torch.get_default_device() if first is None else first.device
