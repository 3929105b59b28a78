"""Which modules of a model take noise, in any framework: the rule that `apply` is given, and what it chooses."""

import collections
import collections.abc
import dataclasses
import inspect
import re
import typing

from pernodedrop import checks, generator

Module: typing.TypeAlias = typing.Any
Choice: typing.TypeAlias = str | type | collections.abc.Sequence[typing.Any]
Function: typing.TypeAlias = collections.abc.Callable[[str, Module], Module | None]

LISTS = (list, tuple, set, frozenset)

OF_ACTIVATIONS = ("dropout", "gaussiandropout", "spatialdropout", "dropblock", "droppath", "masksembles")
"""What names of activation noise begin with, in lower case and without underscores."""


def arguments_of(kind: typing.Any) -> list[str]:
    """The names of the arguments that a class has itself, and does not hand on to the plain one."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(kind.__init__).parameters.items()
    return [name for name, one in found if name != "self" and one.kind in named]


@dataclasses.dataclass(frozen=True)
class Family:
    """The modules of a framework.

    Attributes:
        module: the class of all.
        name: its full name, for errors.
        noisy: the class of those with noise, or several.
        method: the name of the method that computes.
        kinds: by their names in rules, the classes that take noise.
        regularizers: by name, the noisy classes; each has its `plain` one, and is made `from_plain`. Where one has a
            true `takes_inside`, names do not choose the module but, by what it is in, those inside.
        arguments: a function from one of these classes to the names of what `from_plain` takes.
    """

    module: type
    name: str
    noisy: type | tuple[type, ...]
    method: str
    kinds: dict[str, tuple[type, ...]]
    regularizers: dict[str, tuple[typing.Any, ...]]
    arguments: collections.abc.Callable[[typing.Any], list[str]] = arguments_of

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
        if isinstance(choice, LISTS):
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
        self.by_function = callable(rule) and not isinstance(rule, type | family.module)
        if self.by_function and (noise or not all(one is None for one in (regularizer, exclude, seed))):
            expected = "no function beside `regularizer`, `exclude`, `seed` or noise"
            raise ValueError(checks.invalid("rule", expected, rule))
        names = tuple(family.regularizers)
        if isinstance(regularizer, str) and regularizer.lower().replace("_", "").startswith(OF_ACTIVATIONS):
            expected = f"one of {', '.join(map(repr, names))}; activation noise is a module to place between others"
            raise ValueError(checks.invalid("regularizer", expected, regularizer))
        regularizer = names[0] if regularizer is None else regularizer
        self.regularizer = checks.check_choice(regularizer, "regularizer", names)
        self.classes = family.regularizers[self.regularizer]
        self.family, self.rule, self.exclude, self.seed, self.noise = family, rule, exclude, seed, noise
        self.named: collections.Counter[str] = collections.Counter()

    def __call__(self, name: str, module: Module) -> Module | None:
        if self.by_function:
            return self._of_function(name, module)
        family = self.family
        if not self._chooses(name, module):
            return None
        if self.exclude is not None and family.is_chosen(self.exclude, name, module, "exclude"):
            return None
        kind = next((one for one in self.classes if is_plain(module, one.plain, family.method)), None)
        if isinstance(module, family.noisy) or kind is None:
            noisy = "has noise already: set its `rate`, or `fold` the model before"
            why = noisy if isinstance(module, family.noisy) else f"has a `{family.method}` of its own"
            raise ValueError(checks.invalid("rule", f"a rule that leaves out {name!r}, which {why}", self.rule))
        self._check_arguments(name, module, kind)
        self.named[name] += 1
        place = name if self.named[name] == 1 else f"{name} {self.named[name]}"  # Keras lets layers have equal names
        own = {} if self.seed is None else {"seed": generator.sibling_seed(self.seed, place)}
        return kind.from_plain(module, **own, **self.noise)

    def check(self, changes: collections.abc.Sized, modules: collections.abc.Mapping[str, Module]) -> None:
        """Raise if nothing was changed, or a part of the rule or of `exclude` chooses nothing, of modules by name."""
        if self.by_function:
            if not changes:
                kinds = collections.Counter(type(module).__name__ for module in modules.values())
                had = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
                expected = f"a rule that changes at least one of: {had or 'none'}"
                raise ValueError(checks.invalid("rule", expected, self.rule))
            return
        takes = {name: module for name, module in modules.items() if self._takes_noise(module)}
        left = {name: one for name, one in modules.items() if name not in takes and self._is_of_named_kind(one)}
        for part in _parts(self.rule):
            if not self._chosen(part, takes):
                self._refuse(part, modules, takes)
        for name, module in left.items():
            if self.exclude is None or not self.family.is_chosen(self.exclude, name, module, "exclude"):
                what = f"the {type(module).__name__} {name!r}"
                expected = f"one that takes {what}: {_listed(self._takers([module]))}; or `exclude` with it"
                raise ValueError(checks.invalid("regularizer", expected, self.regularizer))
        if self.exclude is None:
            return
        chosen = left | {name: module for name, module in takes.items() if self._chooses(name, module)}
        for part in _parts(self.exclude):
            if not self._chosen(part, chosen, "exclude"):
                expected = f"names, or their parts between dots, or classes of what the rule chooses: {_listed(chosen)}"
                raise ValueError(checks.invalid("exclude", expected + _of_list(part, self.exclude), self.exclude))
        if not changes:
            expected = f"a choice that leaves something of what the rule chooses: {_listed(chosen)}"
            raise ValueError(checks.invalid("exclude", expected, self.exclude))

    def _refuse(self, part: Choice, modules: collections.abc.Mapping[str, Module], takes: dict[str, Module]) -> None:
        """Raise, since a part of the rule chooses nothing that takes noise."""
        if others := self._takers(self._chosen(part, modules)):
            expected = f"one that takes what the rule {part!r} chooses: {_listed(others)}"
            raise ValueError(checks.invalid("regularizer", expected, self.regularizer))
        expected = f"names, or their parts between dots, or classes of what takes noise: {_listed(takes)}"
        raise ValueError(checks.invalid("rule", f"{expected}{_of_list(part, self.rule)}", self.rule))

    def _takers(self, modules: collections.abc.Sequence[Module]) -> list[str]:
        """The regularizers that take any of some modules."""
        return [
            name
            for name, classes in self.family.regularizers.items()
            if any(isinstance(one, kind.plain) for one in modules for kind in classes)
        ]

    def _is_of_named_kind(self, module: Module) -> bool:
        """Whether a module is of a kind that the rule names, such as "all-linear"."""
        named = [part for part in _parts(self.rule) if isinstance(part, str)]
        return any(isinstance(module, self.family.kinds.get(part, ())) for part in named)

    def _takes_noise(self, module: Module) -> bool:
        return bool(self._of(module))

    def _of(self, module: Module) -> list[typing.Any]:
        """The classes with noise of a module, or of what it derives from."""
        return [one for one in self.classes if isinstance(module, one.plain)]

    def _chooses(self, name: str, module: Module) -> bool:
        return self._takes_noise(module) and any(self._is_chosen(part, name, module) for part in _parts(self.rule))

    def _is_chosen(self, choice: typing.Any, name: str, module: Module, argument: str = "rule") -> bool:
        """Whether a part of the rule or of `exclude` chooses a module."""
        by_name = argument == "rule" and isinstance(choice, str) and choice not in self.family.kinds
        if by_name and any(getattr(one, "takes_inside", False) for one in self._of(module)):
            return False
        return self.family.is_chosen(choice, name, module, argument)

    def _chosen(
        self, choice: typing.Any, modules: collections.abc.Mapping[str, Module], argument: str = "rule"
    ) -> list[Module]:
        return [one for name, one in modules.items() if self._is_chosen(choice, name, one, argument)]

    def _check_arguments(self, name: str, module: Module, kind: typing.Any) -> None:
        """Raise if an argument is none of those that make a noisy module of this one."""
        taken = self.family.arguments(kind)
        given = {**self.noise, **({} if self.seed is None else {"seed": self.seed})}
        for argument in given.keys() - {*taken}:
            of_kind = f"the {type(module).__name__} {name!r}"
            expected = f"only what regularizer={self.regularizer!r} takes for {of_kind}: {', '.join(taken)}"
            raise TypeError(checks.invalid(argument, expected, given[argument]))

    def _of_function(self, name: str, module: Module) -> Module | None:
        new = typing.cast(Function, self.rule)(name, module)
        if new is not None and not isinstance(new, self.family.module):
            expected = f"a function that returns a {self.family.name} or None; for {name!r} it returned {new!r}"
            raise TypeError(checks.invalid("rule", expected, self.rule))
        return None if new is module else new


def _parts(choice: typing.Any) -> list[typing.Any]:
    """What a choice consists of, each of which has to choose something: the elements of a list, or itself."""
    if not isinstance(choice, LISTS) or not choice:
        return [choice]
    return [part for one in choice for part in _parts(one)]


def _of_list(part: typing.Any, choice: typing.Any) -> str:
    """What an error about a part of a list adds."""
    return f"; its element {checks.shown(part)} chooses none" if isinstance(choice, LISTS) and choice else ""


def _listed(found: collections.abc.Iterable[str], most: int = 20) -> str:
    """Names for an error, the first ones of many."""
    names = list(found)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more if names else "none"
