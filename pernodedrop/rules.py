"""Which modules of a model take noise, in any framework: the rule that `apply` is given, and what it chooses."""

import collections
import collections.abc
import dataclasses
import re
import typing

from pernodedrop import checks, generator

Module: typing.TypeAlias = typing.Any
Choice: typing.TypeAlias = str | type | collections.abc.Sequence[typing.Any]
Function: typing.TypeAlias = collections.abc.Callable[[str, Module], Module | None]


@dataclasses.dataclass(frozen=True)
class Family:
    """The modules of a framework.

    Attributes:
        module: the class of all.
        name: its full name, for errors.
        noisy: the class of those with noise, or several.
        method: the name of the method that computes.
        kinds: by their names in rules, the classes that take noise.
        regularizers: by name, the noisy classes; each has its `plain` one, and is made `from_plain`.
    """

    module: type
    name: str
    noisy: type | tuple[type, ...]
    method: str
    kinds: dict[str, tuple[type, ...]]
    regularizers: dict[str, tuple[typing.Any, ...]]

    def check_model(self, model: typing.Any) -> None:
        """Raise unless a model is a module."""
        if not isinstance(model, self.module):
            raise TypeError(checks.invalid("model", f"a {self.name}", model))

    def is_chosen(self, choice: typing.Any, name: str, module: Module, argument: str = "rule") -> bool:
        """Whether a choice, which is no function, chooses a module."""
        if isinstance(choice, str):
            if choice in self.kinds:
                return isinstance(module, self.kinds[choice])
            try:
                return re.search(rf"(?:^|\.)(?:{choice})(?:\.|$)", name) is not None
            except re.error as error:
                raise ValueError(checks.invalid(argument, f"a regular expression ({error})", choice)) from error
        if isinstance(choice, type) and issubclass(choice, self.module):
            return isinstance(module, choice)
        if isinstance(choice, list | tuple | set | frozenset):
            return any(self.is_chosen(one, name, module, argument) for one in choice)
        kinds = ", ".join(map(repr, self.kinds))
        expected = f"{kinds}, a regular expression for names, a class of {self.name}, or a list of such"
        raise TypeError(checks.invalid(argument, expected, choice))


def is_plain(module: Module, kind: type, method: str) -> bool:
    """Whether a module computes what a class does: it is one, and a subclass has not another such method."""
    return isinstance(module, kind) and getattr(type(module), method) is getattr(kind, method)


class Rule:
    """What `apply` puts in the place of a module, by its name: a function of both that gives a module or None.

    Args:
        family: the modules of the framework.
        rule, regularizer, exclude, seed, noise: those of `apply`.

    Raises:
        TypeError, ValueError: an argument that is not as described there.
    """

    def __init__(
        self,
        family: Family,
        rule: Choice | Function,
        regularizer: str | None,
        exclude: Choice | None,
        seed: int | None,
        noise: dict[str, typing.Any],
    ) -> None:
        checks.check_seed(seed)
        self.by_function = callable(rule) and not isinstance(rule, type)
        if self.by_function and (noise or not all(one is None for one in (regularizer, exclude, seed))):
            expected = "no function beside `regularizer`, `exclude`, `seed` or noise"
            raise ValueError(checks.invalid("rule", expected, rule))
        names = tuple(family.regularizers)
        regularizer = names[0] if regularizer is None else regularizer
        self.classes = family.regularizers[checks.check_choice(regularizer, "regularizer", names)]
        self.family, self.rule, self.exclude, self.seed, self.noise = family, rule, exclude, seed, noise
        self.excluded: list[str] = []

    def __call__(self, name: str, module: Module) -> Module | None:
        if self.by_function:
            return self._of_function(name, module)
        family = self.family
        if not self._chooses(name, module):
            return None
        if self.exclude is not None and family.is_chosen(self.exclude, name, module, "exclude"):
            self.excluded.append(name)
            return None
        kind = next((one for one in self.classes if is_plain(module, one.plain, family.method)), None)
        if isinstance(module, family.noisy) or kind is None:
            noisy = "has noise already: set its `rate`, or `fold` the model before"
            why = noisy if isinstance(module, family.noisy) else f"has a `{family.method}` of its own"
            raise ValueError(checks.invalid("rule", f"a rule that leaves out {name!r}, which {why}", self.rule))
        own = {} if self.seed is None else {"seed": generator.sibling_seed(self.seed, name)}
        return kind.from_plain(module, **own, **self.noise)

    def check(self, changes: collections.abc.Sized, modules: collections.abc.Mapping[str, Module]) -> None:
        """Raise if nothing was changed, or nothing excluded, of all modules by name."""
        if not changes and self.by_function:
            kinds = collections.Counter(type(module).__name__ for module in modules.values())
            had = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            raise ValueError(checks.invalid("rule", f"a rule that changes at least one of: {had or 'none'}", self.rule))
        if not changes:
            names = [name for name, module in modules.items() if any(isinstance(module, k.plain) for k in self.classes)]
            expected = f"names, or their parts between dots, or classes of what takes noise: {_listed(names)}"
            raise ValueError(checks.invalid("rule", expected, self.rule))
        if self.exclude is not None and not self.excluded:
            names = [name for name, module in modules.items() if self._chooses(name, module)]
            expected = f"names, or their parts between dots, or classes of what the rule chooses: {_listed(names)}"
            raise ValueError(checks.invalid("exclude", expected, self.exclude))

    def _chooses(self, name: str, module: Module) -> bool:
        takes_noise = any(isinstance(module, one.plain) for one in self.classes)
        return takes_noise and self.family.is_chosen(self.rule, name, module)

    def _of_function(self, name: str, module: Module) -> Module | None:
        new = typing.cast(Function, self.rule)(name, module)
        if new is not None and not isinstance(new, self.family.module):
            expected = f"a function that returns a {self.family.name} or None; for {name!r} it returned {new!r}"
            raise TypeError(checks.invalid("rule", expected, self.rule))
        return None if new is module else new


def _listed(names: list[str], most: int = 20) -> str:
    """Names for an error, the first ones of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more if names else "nothing does"
