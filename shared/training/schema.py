"""What may stand where in a recipe, read off the signatures of the classes it names, before anything is built.

jsonargparse converts values and builds. It neither says in which of several encoders a wrong name stands, nor which
names there are; this does.
"""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import difflib
import functools
import inspect
import itertools
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from polyfm.shared.training.recipe import merge

Keys = tuple[str, ...]

FORM = ("class_path", "init_args")
"""Keys by which a part says its class and its arguments."""
NAMELESS = "class_path is missing"
"""Said of a part with arguments that the class asked for does not take, but others do."""


class UNKNOWN:
    """Stands for a value that is looked at later; see `placed`. The class itself does: copies of a tree keep it."""


class Misfit(Exception):
    """Something in a recipe that fits no signature.

    Args:
        keys: Path of the key at fault.
        message: What is wrong and what was expected.
        word: The wrong name, if it is one.
        known: Names that fit there.
    """

    def __init__(self, keys: Keys, message: str, word: str = "", known: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys, self.message, self.word, self.known = keys, message, word, sorted(known)
        self.homes: list[Keys] = []
        """Mappings of the recipe in which the key would be right; set by `Schema.check`."""

    @property
    def path(self) -> list[str]:
        """The keys as options have them, without ``class_path`` and ``init_args``."""
        return [key for key in self.keys if key not in FORM]

    @property
    def nearest(self) -> str | None:
        """The known name that was perhaps meant."""
        others = [name for name in (*self.known, *FORM) if name != self.word]
        return next(iter(difflib.get_close_matches(self.word, others, n=1, cutoff=0.65)), None)

    @property
    def remedy(self) -> str | None:
        """What to write instead, or where."""
        if self.homes:
            under = " or ".join(".".join(home) for home in self.homes)
            return f"It belongs under {under}" if under else "It belongs at the top of the recipe"
        if self.nearest is not None:
            return f"Did you mean {self.nearest!r}?"
        return f"Known: {', '.join(self.known)}" if self.known else None

    def __str__(self) -> str:
        """Where in the tree, and what."""
        path, last = self.path, self.keys[-1] if self.keys else ""
        if last in FORM and last != self.word and (self.homes or not self.word):
            path = [*path, last]  # what is wrong is neither the part nor its class, but how it is written
        elif last not in FORM and last == self.word:
            path = path[:-1]
        return f"{'.'.join(path)}: {self.message}" if path else self.message


@dataclasses.dataclass(frozen=True)
class Part:
    """A part that a tree names."""

    kind: type
    """Its class."""
    arguments: Mapping[str, Any]
    """Of the class, as given."""
    at: Keys
    """Where these stand."""
    given: int
    """Of the class's first arguments, those that whoever builds it gives."""

    def value(self, argument: str) -> Any:
        """Of an argument, or its default.

        Args:
            argument: One that the class has.
        """
        return self.arguments.get(argument, inspect.signature(self.kind).parameters[argument].default)


@dataclasses.dataclass(frozen=True)
class Schema:
    """The signatures that recipes of a task and a domain are held against."""

    fields: Mapping[str, Any]
    """By top-level key: the type of what stands there."""
    allowed: Sequence[str]
    """Modules, with all below them, whose classes may be named."""

    def check(self, tree: Mapping[str, Any]) -> None:
        """Refuse the first class, name or plain value that fits nowhere.

        Args:
            tree: A recipe at one size.

        Raises:
            Misfit: With the path of the key.
        """
        try:
            self._names(self.fields, tree, (), "the recipe")
        except Misfit as misfit:
            if misfit.word and misfit.keys[-1] in (misfit.word, "class_path"):
                misfit.homes = self.homes(misfit.keys, tree, free=misfit.nearest is None)
            raise
        for key, hint in self.fields.items():
            part = _part(hint)
            if part is not None and key not in tree and required(part[0]):
                raise Misfit((), f"{key} is missing")

    def missing(self, tree: Mapping[str, Any]) -> list[Keys]:
        """Paths of arguments that must be given and are not.

        Args:
            tree: A recipe at one size, and what options put on top.
        """
        return [
            (*part.at, name)
            for part in self.parts(tree)
            for name in required(part.kind, part.given)
            if name not in part.arguments
        ]

    def parts(self, tree: Mapping[str, Any]) -> Iterator[Part]:
        """All parts that a tree names, those that hold others first.

        Args:
            tree: A recipe at one size; it has been checked.
        """

        def look(hint: Any, value: Any, keys: Keys) -> Iterator[Part]:
            item, part = _item(hint), _part(hint)
            if item is not None and isinstance(value, Mapping):
                for name, below in value.items():
                    yield from look(item, below, (*keys, str(name)))
            elif part is not None and value is not None and value is not UNKNOWN:
                base, given = part
                found = Part(*self._open(base, value, keys, given), given)
                yield found
                for name, below in found.arguments.items():
                    yield from look((parameters(found.kind, given) or {}).get(name, Any), below, (*found.at, name))

        for key, value in tree.items():
            yield from look(self.fields[key], value, (key,))

    def setting(self, where: str, value: Any, tree: Mapping[str, Any]) -> list[Keys]:
        """Paths of what a constructor names as ``Class.argument``; several where as many parts are such.

        Args:
            where: The class, or a base of it, alone or with an argument. No part may be of the class: others pass the
                argument on to it.
            value: The argument's; None if it does not tell.
            tree: A recipe at one size; it has been checked.
        """
        name, _, argument = where.partition(".")
        parts = [*self.parts(tree)]
        found = [part for part in parts if name in (kind.__name__ for kind in part.kind.__mro__)]
        if argument:
            found = [part for part in found or parts if argument in (parameters(part.kind, part.given) or {})]
            found = [part for part in found if value is not None and part.value(argument) == value] or found
        return [(*part.at, argument) if argument else part.at for part in found]

    def _names(self, fields: Mapping[str, Any], arguments: Mapping[str, Any], at: Keys, owner: str) -> None:
        for name in arguments:
            if name not in fields:
                raise Misfit((*at, str(name)), f"{owner} has no {name!r}", str(name), fields)
        for name, value in arguments.items():
            self._value(fields[name], value, (*at, name))

    def _value(self, hint: Any, value: Any, keys: Keys) -> None:
        if value is None or value is UNKNOWN:
            return  # whether None is right, jsonargparse says
        item, part = _item(hint), _part(hint)
        if item is not None:
            for name in _mapping(value, keys):
                if name in FORM and (asked := _part(item)) is not None:
                    raise Misfit((*keys, name), f"{name!r} is no name for {_a(asked[0])}", name)
            for name, below in value.items():
                self._item(item, below, (*keys, str(name)), [str(other) for other in value if other != name])
        elif part is not None:
            base, given = part
            kind, arguments, at = self._open(base, value, keys, given)
            fields = parameters(kind, given)
            if fields is not None:
                self._names(fields, arguments, at, kind.__name__)
        elif typing.get_origin(hint) is Literal:
            if value not in typing.get_args(hint):
                raise Misfit(keys, f"{value!r} is no choice", str(value), map(str, typing.get_args(hint)))
        elif (wanted := _unfit(hint, value)) is not None:
            raise Misfit(keys, f"expected {wanted}, not {value!r}")

    def _item(self, hint: Any, value: Any, keys: Keys, others: Sequence[str]) -> None:
        """What stands under a name of the user's choice, beside others.

        A part that does not fit may be an argument a level too high, or lie beside the part that it was meant to be
        laid into.
        """
        part, name = _part(hint), keys[-1]
        if part is None:
            self._value(hint, value, keys)
            return
        base, given = part
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.65)
        try:
            self._value(hint, value, keys)
            kind, arguments, _ = self._open(base, value, keys, given)
            lacks = [argument for argument in required(kind, given) if argument not in arguments]
        except Misfit as misfit:
            if name in (parameters(base) or {}):
                raise Misfit(keys, f"{name!r} names an argument, not {_a(base)}", name) from misfit
            if not near or misfit.message != NAMELESS:
                raise
            lacks = ["class_path"]
        if near and lacks:
            raise Misfit(keys, f"{name!r} lacks {', '.join(lacks)}", name, near)

    def _open(self, base: type, spec: Any, keys: Keys, given: int = 0) -> tuple[type, Mapping[str, Any], Keys]:
        """The class that a part names, its arguments, and where they stand."""
        if isinstance(spec, str):
            return self._find(base, spec, keys), {}, keys
        if not isinstance(spec, Mapping):
            raise Misfit(keys, f"expected the name of {_a(base)}, or a mapping, not {spec!r}")
        if "class_path" in spec:
            kind = self._find(base, spec["class_path"], (*keys, "class_path"))
            for name in spec:
                if name not in FORM:
                    raise Misfit((*keys, str(name)), f"{name!r} stands beside class_path", str(name), FORM)
        else:
            kind = base
            self._refuse_nameless(base, given, spec, keys)
        if "init_args" in spec:
            at = (*keys, "init_args")
            return kind, _mapping(spec["init_args"] or {}, at), at
        return (kind, {}, (*keys, "init_args")) if "class_path" in spec else (kind, spec, keys)

    def _refuse_nameless(self, base: type, given: int, spec: Mapping[str, Any], keys: Keys) -> None:
        """A part without ``class_path`` has the arguments of the class that is asked for, and nothing beside them."""
        own = parameters(base, given) or {}
        beside = [str(name) for name in spec if name not in FORM] if "init_args" in spec else []
        for name in beside:
            if name not in own:
                raise Misfit((*keys, name), f"{name!r} stands beside init_args", name, FORM)
        if beside:
            raise Misfit((*keys, "init_args"), f"'init_args' stands beside {', '.join(beside)}", "init_args")
        arguments = spec.get("init_args", spec)
        if isinstance(arguments, Mapping) and not set(arguments) <= set(own):
            kinds = self.classes(base).items()
            takers = [name for name, kind in kinds if set(arguments) <= set(parameters(kind, given) or ())]
            if takers:
                raise Misfit(keys, NAMELESS, known=takers)

    def _find(self, base: type, name: Any, keys: Keys) -> type:
        if not isinstance(name, str):
            raise Misfit(keys, f"expected the name of {_a(base)}, not {name!r}")
        module, _, short = name.rpartition(".")
        if not module:
            known = self.classes(base)
            if short not in known:
                raise Misfit(keys, f"there is no {base.__name__} named {short!r}", short, known)
            return known[short]
        kind = getattr(sys.modules.get(module), short, None) if self._allows(module) else None
        if not isinstance(kind, type) or not self._allows(kind.__module__):
            raise Misfit(keys, f"{name!r} may not be named in a recipe", name)
        if not issubclass(kind, base):
            raise Misfit(keys, f"{name!r} is no {base.__name__}", short, self.classes(base))
        return kind

    def homes(self, keys: Keys, tree: Mapping[str, Any], *, free: bool = True) -> list[Keys]:
        """Paths of the mappings that would take a key and its value, the nearest: for one that stands elsewhere.

        Args:
            keys: Path of the misplaced key.
            tree: A recipe at one size.
            free: Also look, one level below, where names are the user's choice.
        """
        name, at = keys[-1], keys[:-1]
        rest, moved = _without(tree, keys)

        def laid(under: Mapping[str, Any]) -> Any:
            """What would stand there: a size or a ``--config`` lays parts of parts into those of the recipe."""
            there = under.get(name)
            there = {"class_path": there} if isinstance(there, str) else there
            return merge(there, moved) if isinstance(there, Mapping) and isinstance(moved, Mapping) else moved

        named: dict[Keys, int] = {}
        below: list[Keys] = []

        def offer(home: Keys, taken: bool) -> None:
            common = len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(home, at, strict=False))])
            if home != at:
                named[home] = len(home) + len(at) - 2 * common + 2 * taken

        def look(hint: Any, value: Any, path: Keys) -> None:
            item, part = _item(hint), _part(hint)
            if item is not None and isinstance(value, Mapping):
                if path[:-1] == at and not isinstance(moved, str) and self._fits(item, laid(value)):
                    below.append(path)
                for key, inner in value.items():
                    look(item, inner, (*path, str(key)))
            elif part is not None and value is not None:
                base, given = part
                if name in FORM and isinstance(value, Mapping) and self._fits(hint, {**value, name: laid(value)}):
                    offer(path, name in value)
                try:
                    kind, arguments, inside = self._open(base, value, path, given)
                except Misfit:
                    return
                fields = parameters(kind, given) or {}
                if name in fields and self._fits(fields[name], laid(arguments)):
                    offer(inside, name in arguments)
                for key, inner in arguments.items():
                    look(fields.get(key, Any), inner, (*inside, key))

        if name in self.fields and self._fits(self.fields[name], laid(rest)):
            offer((), name in rest)
        for key, value in rest.items():
            look(self.fields.get(key), value, (key,))
        if named or not free:
            return [home for home, distance in named.items() if distance == min(named.values())]
        return below

    def _fits(self, hint: Any, value: Any) -> bool:
        try:
            self._value(hint, value, ())
        except Misfit:
            return False
        return True

    def classes(self, base: type) -> dict[str, type]:
        """Classes that may stand where a base is asked for, by name.

        Args:
            base: The class asked for; it may stand there, too.
        """
        found, pending = {}, [base]
        while pending:
            kind = pending.pop()
            pending += kind.__subclasses__()
            if self._allows(kind.__module__):
                found[kind.__name__] = kind
        return found

    def elsewhere(self, option: str, tree: Mapping[str, Any]) -> list[str] | None:
        """The path of an option whose last word is near: for those who leave out where it belongs.

        Args:
            option: As the user wrote it.
            tree: A recipe at one size.
        """
        options: dict[str, list[str]] = {}
        for key, hint in self.fields.items():
            part = _part(hint)
            if part is not None:
                kind, _, _ = self._open(part[0], tree.get(key) or {}, (key,))
                options |= {name: [key, name] for name in parameters(kind) or {} if name not in options}
        word, known = option.rpartition(".")[2], [*self.fields, *options]
        near = [name for name in known if name.startswith(word)] or difflib.get_close_matches(word, known)
        return options.get(near[0], near[:1]) if near else None

    def type_of(self, option: str, tree: Mapping[str, Any]) -> Any:
        """The type of what an option sets; None where no signature has it.

        Args:
            option: As in ``data.targets``.
            tree: A recipe at one size.
        """
        first, *words = option.split(".")
        return self._type(self.fields.get(first), words, tree.get(first))

    def _type(self, hint: Any, words: Sequence[str], value: Any) -> Any:
        if not words:
            return hint
        item, part = _item(hint), _part(hint)
        if item is not None:
            return self._type(item, words[1:], (value or {}).get(words[0]))
        if part is None:
            return None
        kind, arguments, _ = self._open(part[0], value or {}, ())
        return self._type((parameters(kind, part[1]) or {}).get(words[0]), words[1:], arguments.get(words[0]))

    def _allows(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.allowed)


@functools.cache
def parameters(kind: type, given: int = 0) -> dict[str, Any] | None:
    """The arguments of a class that a recipe may set, with their types; None if it takes any.

    Args:
        kind: The class.
        given: Of its first arguments, those that whoever builds it gives.
    """
    signature = list(inspect.signature(kind).parameters.values())[given:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
        return None
    hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)  # type: ignore[misc]
    return {parameter.name: hints.get(parameter.name, Any) for parameter in signature}


def required(kind: type, given: int = 0) -> list[str]:
    """The arguments of a class that have no default.

    Args:
        kind: The class.
        given: Of its first arguments, those that whoever builds it gives.
    """
    signature = list(inspect.signature(kind).parameters.values())[given:]
    some = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [item.name for item in signature if item.default is item.empty and item.kind not in some]


def placed(tree: Mapping[str, Any], option: str, value: Any = UNKNOWN) -> dict[str, Any]:
    """A tree with what a dotted option sets; options leave ``init_args`` out.

    Args:
        tree: A recipe at one size.
        option: As in ``model.optimizer.lr``.
        value: What it is set to.
    """
    out = node = copy.deepcopy(dict(tree))
    words = option.split(".")
    for i, word in enumerate(words):
        if "class_path" in node and word not in FORM:
            node = node.setdefault("init_args", {})
        if i == len(words) - 1:
            node[word] = value
            break
        below = node.get(word)
        node[word] = {"class_path": below} if isinstance(below, str) else below if isinstance(below, dict) else {}
        node = node[word]
    return out


def _without(tree: Mapping[str, Any], keys: Keys) -> tuple[dict[str, Any], Any]:
    """A tree without a key, and what stood there."""
    out = dict(tree)
    first = next(name for name in out if str(name) == keys[0])  # YAML has keys that are numbers, and `on` is one of two
    if len(keys) == 1:
        return out, out.pop(first)
    out[first], value = _without(out[first], keys[1:])
    return out, value


def _a(kind: type) -> str:
    """With its article."""
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _item(hint: Any) -> Any:
    """V of ``dict[K, V]``, None for all else."""
    origin = typing.get_origin(hint)
    return typing.get_args(hint)[1] if origin in (dict, collections.abc.Mapping) and typing.get_args(hint) else None


def _part(hint: Any) -> tuple[type, int] | None:
    """The class of a part and how many arguments its user gives; None for plain values."""
    given = 0
    if typing.get_origin(hint) is collections.abc.Callable:
        takes, hint = typing.get_args(hint)
        given = len(takes) if isinstance(takes, list) else 0
    elif (members := _members(hint)) is not None:
        parts = [part for part in map(_part, members) if part is not None]
        return parts[0] if len(parts) == 1 and len(members) == 1 else None
    is_class = isinstance(hint, type) and hint.__module__ not in ("builtins", "typing")
    return (hint, given) if is_class else None


def _members(hint: Any) -> list[Any] | None:
    """Types of a union without None; None for all else."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    return [member for member in typing.get_args(hint) if member is not type(None)]


def _unfit(hint: Any, value: Any) -> str | None:
    """What a plain value should have been; None if it fits, or if only jsonargparse can tell."""
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if hint is float:
        try:
            float(value)  # YAML takes 1e-3 for a text
        except (TypeError, ValueError):
            return "a number"
        return "a number" if isinstance(value, bool) else None
    if hint is str:
        return "a text" if isinstance(value, dict | list) else None
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return None if isinstance(value, list) else "a list"
    if origin is tuple and Ellipsis not in inner:
        fits = isinstance(value, list | tuple) and len(value) == len(inner)
        return None if fits and not any(map(_unfit, inner, value)) else f"a list of {len(inner)} {_kinds(inner)}"
    if origin is Literal:
        return None if value in inner else f"one of {', '.join(map(str, inner))}"
    members = _members(hint) or []
    wanted = [_unfit(member, value) for member in members if _is_plain(member)]
    return " or ".join(filter(None, wanted)) if members and len(wanted) == len(members) and all(wanted) else None


def _is_plain(hint: Any) -> bool:
    return hint in (bool, int, float, str) or typing.get_origin(hint) in (list, tuple, Literal)


def _kinds(hints: Sequence[Any]) -> str:
    """Of the entries of a tuple, in words."""
    words = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}
    return " and ".join(dict.fromkeys(words.get(hint, str(hint)) for hint in hints))


def _mapping(value: Any, keys: Keys) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Misfit(keys, f"expected a mapping of names to values, not {value!r}")
    return value
