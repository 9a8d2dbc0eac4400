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
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Keys = tuple[str, ...]

FORM = ("class_path", "init_args")
"""Keys by which a part says its class and its arguments."""


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

    @property
    def path(self) -> list[str]:
        """The keys as options have them, without ``class_path`` and ``init_args``."""
        return [key for key in self.keys if key not in FORM]

    @property
    def nearest(self) -> str | None:
        """The known name that was perhaps meant."""
        return next(iter(difflib.get_close_matches(self.word, self.known, n=1, cutoff=0.65)), None)

    @property
    def remedy(self) -> str | None:
        """What to write instead."""
        if self.nearest is not None:
            return f"Did you mean {self.nearest!r}?"
        return f"Known: {', '.join(self.known)}" if self.known else None

    def __str__(self) -> str:
        """Where in the tree, and what."""
        path = self.path[:-1] if self.keys and self.keys[-1] == self.word else self.path
        return f"{'.'.join(path)}: {self.message}" if path else self.message


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
        self._names(self.fields, tree, (), "the recipe")

    def missing(self, tree: Mapping[str, Any]) -> list[Keys]:
        """Paths of arguments that must be given and are not.

        Args:
            tree: A recipe at one size, and what options put on top.
        """
        found: list[Keys] = []

        def look(hint: Any, value: Any, keys: Keys) -> None:
            item, part = _item(hint), _part(hint)
            if item is not None and isinstance(value, Mapping):
                for name, below in value.items():
                    look(item, below, (*keys, str(name)))
            elif part is not None and value is not None and value is not UNKNOWN:
                base, given = part
                kind, arguments, at = self._open(base, value, keys)
                found.extend((*at, name) for name in required(kind, given) if name not in arguments)
                for name, below in arguments.items():
                    look((parameters(kind, given) or {}).get(name, Any), below, (*at, name))

        for key, value in tree.items():
            look(self.fields[key], value, (key,))
        return found

    def _names(self, fields: Mapping[str, Any], arguments: Mapping[str, Any], at: Keys, owner: str) -> None:
        for name, value in arguments.items():
            if name not in fields:
                raise Misfit((*at, str(name)), f"{owner} has no {name!r}", str(name), fields)
            self._value(fields[name], value, (*at, name))

    def _value(self, hint: Any, value: Any, keys: Keys) -> None:
        if value is None or value is UNKNOWN:
            return  # whether None is right, jsonargparse says
        item, part = _item(hint), _part(hint)
        if item is not None:
            for name, below in _mapping(value, keys).items():
                self._value(item, below, (*keys, str(name)))
        elif part is not None:
            base, given = part
            kind, arguments, at = self._open(base, value, keys)
            fields = parameters(kind, given)
            if fields is not None:
                self._names(fields, arguments, at, kind.__name__)
        elif typing.get_origin(hint) is Literal:
            if value not in typing.get_args(hint):
                raise Misfit(keys, f"{value!r} is no choice", str(value), map(str, typing.get_args(hint)))
        elif (wanted := _unfit(hint, value)) is not None:
            raise Misfit(keys, f"expected {wanted}, not {value!r}")

    def _open(self, base: type, spec: Any, keys: Keys) -> tuple[type, Mapping[str, Any], Keys]:
        """The class that a part names, its arguments, and where they stand."""
        if isinstance(spec, str):
            return self._find(base, spec, keys), {}, keys
        spec = _mapping(spec, keys)
        if "class_path" in spec:
            kind = self._find(base, spec["class_path"], (*keys, "class_path"))
            for name in spec:
                if name not in FORM:
                    raise Misfit((*keys, str(name)), f"{name!r} stands beside class_path", str(name), FORM)
        else:
            kind = base
        if "init_args" in spec:
            at = (*keys, "init_args")
            return kind, _mapping(spec["init_args"] or {}, at), at
        return kind, {} if "class_path" in spec else spec, keys

    def _find(self, base: type, name: Any, keys: Keys) -> type:
        if not isinstance(name, str):
            raise Misfit(keys, f"expected the name of a {base.__name__}, not {name!r}")
        module, _, short = name.rpartition(".")
        if not module:
            known = self.classes(base)
            if short not in known:
                raise Misfit(keys, f"there is no {base.__name__} named {short!r}", short, known)
            return known[short]
        kind = getattr(sys.modules.get(module), short, None) if self._allows(module) else None
        if not isinstance(kind, type) or not self._allows(kind.__module__):
            raise Misfit(keys, f"{name!r} may not be named in a recipe")
        if not issubclass(kind, base):
            raise Misfit(keys, f"{name!r} is no {base.__name__}", short, self.classes(base))
        return kind

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


def placed(tree: Mapping[str, Any], option: str) -> dict[str, Any]:
    """A tree with `UNKNOWN` where a dotted option puts its value; options leave ``init_args`` out.

    Args:
        tree: A recipe at one size.
        option: As in ``model.optimizer.lr``.
    """
    out = node = copy.deepcopy(dict(tree))
    words = option.split(".")
    for i, word in enumerate(words):
        if "class_path" in node and word not in FORM:
            node = node.setdefault("init_args", {})
        if i == len(words) - 1:
            node[word] = UNKNOWN
            break
        below = node.get(word)
        node[word] = {"class_path": below} if isinstance(below, str) else below if isinstance(below, dict) else {}
        node = node[word]
    return out


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
    if typing.get_origin(hint) is list:
        return None if isinstance(value, list) else "a list"
    return None


def _mapping(value: Any, keys: Keys) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Misfit(keys, f"expected a mapping of names to values, not {value!r}")
    return value
