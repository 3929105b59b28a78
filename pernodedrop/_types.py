"""Names for annotations.

Tensors of four frameworks have no type in common, and Keras has no types: these say what is meant, and a type checker
takes anything for them.
"""

import collections.abc
import typing

import numpy as np

Tensor: typing.TypeAlias = typing.Any
"""A tensor of any framework."""

Array: typing.TypeAlias = np.typing.NDArray[np.float64]
"""What is computed on the host, such as a metric."""

Words: typing.TypeAlias = typing.Any
"""A word tensor: 32-bit words that wrap around, see `pernodedrop.backends`."""

Namespace: typing.TypeAlias = typing.Any
"""The ops of a backend, the module that is handed round as `xp`."""

Key: typing.TypeAlias = tuple[typing.Any, typing.Any] | Tensor
"""(seed, call): two ints or scalar tensors, or an integer tensor of length 2."""

Params: typing.TypeAlias = collections.abc.Mapping[str, Tensor]
"""The numbers of a noise by name, as scalar tensors."""

Sharing: typing.TypeAlias = str | collections.abc.Collection[str] | None
"""The coordinates that a mask does not depend on, see `pernodedrop.mask.parse_sharing`."""

Shape: typing.TypeAlias = tuple[typing.Any, ...]
"""A shape; where only the run knows a size, it is None or a scalar tensor."""

Config: typing.TypeAlias = dict[str, typing.Any]
"""What `get_config` gives and `from_config` takes."""
