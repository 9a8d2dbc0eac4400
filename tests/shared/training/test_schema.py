"""What may stand where in a recipe, read off signatures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from polyfm.shared.training.schema import UNKNOWN, Misfit, Schema, parameters, placed

HERE = __name__


class Part:
    """A base."""


class Small(Part):
    def __init__(self, width: int, depth: int = 1, rate: float = 0.1, on: bool = True, name: str = "") -> None: ...


class Nested(Part):
    def __init__(
        self, width: int, inner: Callable[[int], Part] = Small, maybe: Callable[[int], Part] | None = None
    ) -> None: ...


class Free(Part):
    def __init__(self, width: int, **anything: Any) -> None: ...


@dataclasses.dataclass
class Setting:
    until: float = 1.0
    names: list[str] = dataclasses.field(default_factory=list)


class Owner:
    def __init__(
        self,
        parts: dict[str, Part],
        single: Part = Part(),
        make: Callable[[int], Part] = Small,
        kind: Literal["auto", "binary"] = "auto",
        settings: Mapping[str, Setting] = {},
        either: int | str = 1,
    ) -> None: ...


SCHEMA = Schema({"owner": Owner, "title": str}, [HERE])


def misfit(tree: dict[str, Any]) -> Misfit:
    with pytest.raises(Misfit) as error:
        SCHEMA.check(tree)
    return error.value


@pytest.mark.parametrize(
    "owner",
    [
        {},
        {
            "parts": {
                "a": "Small",
                "b": {"class_path": "Small"},
                "c": {"class_path": f"{HERE}.Small", "init_args": {"depth": 2}},
            }
        },
        {"single": None, "make": {"class_path": "Nested", "init_args": {"inner": "Small", "maybe": "Nested"}}},
        {"make": {"class_path": "Small", "init_args": {"rate": "1e-3", "on": False, "name": 3}}},
        {"make": {"class_path": "Free", "init_args": {"what": "ever"}}},
        {"kind": "binary", "settings": {"warm": {"until": 0.5, "names": ["a"]}}},
        {"either": "anything", "single": {"class_path": "Part", "init_args": None}},
    ],
)
def test_what_fits_passes(owner: dict[str, Any]) -> None:
    SCHEMA.check({"title": "x", "owner": owner})


@pytest.mark.parametrize(
    ("owner", "keys", "message", "remedy"),
    [
        ({"part": {}}, "part", "owner: Owner has no 'part'", "Did you mean 'parts'?"),
        ({"parts": {"a": "Smal"}}, "parts.a", "owner.parts.a: there is no Part named 'Smal'", "Did you mean 'Small'?"),
        ({"parts": {"a": {"class_path": "Zzz"}}}, "parts.a.class_path", "owner.parts.a: there is no Part named 'Zzz'", "Known: Free, Nested, Part, Small"),
        ({"make": {"class_path": "Small", "init_args": {"dept": 1}}}, "make.init_args.dept", "owner.make: Small has no 'dept'", "Did you mean 'depth'?"),
        # The owner gives the width: it is written once.
        ({"make": {"class_path": "Small", "init_args": {"width": 1}}}, "make.init_args.width", "owner.make: Small has no 'width'", "Known: depth, name, on, rate"),
        ({"make": {"class_path": "Small", "dept": 1}}, "make.dept", "owner.make: 'dept' stands beside class_path", "Known: class_path, init_args"),
        ({"make": {"class_path": "Small", "init_args": {"depth": "two"}}}, "make.init_args.depth", "owner.make.depth: expected a whole number, not 'two'", None),
        ({"make": {"class_path": "Small", "init_args": {"depth": 1.5}}}, "make.init_args.depth", "owner.make.depth: expected a whole number, not 1.5", None),
        ({"make": {"class_path": "Small", "init_args": {"depth": True}}}, "make.init_args.depth", "owner.make.depth: expected a whole number, not True", None),
        ({"make": {"class_path": "Small", "init_args": {"rate": "fast"}}}, "make.init_args.rate", "owner.make.rate: expected a number, not 'fast'", None),
        ({"make": {"class_path": "Small", "init_args": {"on": "yes"}}}, "make.init_args.on", "owner.make.on: expected true or false, not 'yes'", None),
        ({"make": {"class_path": "Small", "init_args": {"name": [1]}}}, "make.init_args.name", "owner.make.name: expected a text, not [1]", None),
        ({"make": {"class_path": "Nested", "init_args": {"maybe": "Smal"}}}, "make.init_args.maybe", "owner.make.maybe: there is no Part named 'Smal'", "Did you mean 'Small'?"),
        ({"make": {"class_path": 3}}, "make.class_path", "owner.make.class_path: expected the name of a Part, not 3", None),
        ({"make": {"class_path": "Small", "init_args": [1]}}, "make.init_args", "owner.make.init_args: expected a mapping of names to values, not [1]", None),
        ({"parts": ["Small"]}, "parts", "owner.parts: expected a mapping of names to values, not ['Small']", None),
        ({"kind": "binar"}, "kind", "owner.kind: 'binar' is no choice", "Did you mean 'binary'?"),
        ({"kind": "zzz"}, "kind", "owner.kind: 'zzz' is no choice", "Known: auto, binary"),
        ({"settings": {"warm": {"untill": 1}}}, "settings.warm.untill", "owner.settings.warm: Setting has no 'untill'", "Did you mean 'until'?"),
        # A part is written as its name, or as class_path and init_args; without class_path it is what was asked for.
        ({"single": [1]}, "single", "owner.single: expected the name of a Part, or a mapping, not [1]", None),
        ({"make": {"clas_path": "Small", "init_args": {"depth": 1}}}, "make.clas_path", "owner.make: 'clas_path' stands beside init_args", "Did you mean 'class_path'?"),
        ({"make": {"class_path": "Small", "ini_args": {"depth": 1}}}, "make.ini_args", "owner.make: 'ini_args' stands beside class_path", "Did you mean 'init_args'?"),
        ({"single": {"depth": 1}}, "single", "owner.single: class_path is missing", "Known: Small"),
        ({"single": {"init_args": {"inner": "Small"}}}, "single", "owner.single: class_path is missing", "Known: Nested"),
        # A part that was to be laid into another, under a name that is not there.
        ({"parts": {"first": {"class_path": "Small", "init_args": {"width": 1}}, "fisrt": {"depth": 1}}}, "parts.fisrt", "owner.parts: 'fisrt' lacks class_path", "Did you mean 'first'?"),
        ({"parts": {"first": {"class_path": "Small", "init_args": {"width": 1}}, "fisrt": "Small"}}, "parts.fisrt", "owner.parts: 'fisrt' lacks width", "Did you mean 'first'?"),
        # At a wrong place: told where it would be right.
        ({"make": {"class_path": "Small", "depth": 1}}, "make.depth", "owner.make: 'depth' stands beside class_path", "It belongs under owner.make.init_args"),
        ({"depth": 1, "make": {"class_path": "Small"}}, "depth", "owner: Owner has no 'depth'", "It belongs under owner.make.init_args"),
        ({1: 2}, "1", "owner: Owner has no 1", "Known: either, kind, make, parts, settings, single"),
        ({"title": "x"}, "title", "owner: Owner has no 'title'", "It belongs at the top of the recipe"),
        ({"class_path": "Small", "init_args": {"make": {"init_args": {"depth": 1}}}}, "class_path", "owner.class_path: there is no Owner named 'Small'", "It belongs under owner.init_args.make"),
        ({"parts": {"a": {"class_path": "Small"}, "init_args": {"depth": 1}}}, "parts.init_args", "owner.parts: 'init_args' is no name for a Part", "It belongs under owner.parts.a"),
        ({"settings": {"warm": {"names": []}, "until": 0.5}}, "settings.until", "owner.settings: 'until' names an argument, not a Setting", "It belongs under owner.settings.warm"),
        ({"settings": {}, "warm": {"until": 0.5}}, "warm", "owner: Owner has no 'warm'", "It belongs under owner.settings"),
        ({"settings": {"warm": {"names": "a"}}}, "settings.warm.names", "owner.settings.warm.names: expected a list, not 'a'", None),
    ],
)  # fmt: skip
def test_what_fits_nowhere_is_told_where_and_what_would(
    owner: dict[str, Any], keys: str, message: str, remedy: str | None
) -> None:
    found = misfit({"owner": owner})
    assert ".".join(found.keys) == f"owner.{keys}"
    assert str(found) == message
    assert found.remedy == remedy


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.load",
        "functools.partial",
        f"{HERE}.functools.partial",  # through a module that imports it
        f"{HERE}.partial_of_another",
        f"{HERE}.a_function",
        "lightning.pytorch.cli.instantiate_class",
        "a.module.that.does.not.exist.Part",
    ],
)
def test_only_classes_of_allowed_modules_may_be_named(name: str) -> None:
    found = misfit({"owner": {"single": {"class_path": name}}})
    assert str(found) == f"owner.single: {name!r} may not be named in a recipe"


partial_of_another = functools.partial


def a_function() -> None: ...


def test_a_class_of_the_wrong_kind_is_told_the_right_ones() -> None:
    found = misfit({"owner": {"single": {"class_path": f"{HERE}.Setting"}}})
    assert found.message == f"'{HERE}.Setting' is no Part"
    assert found.known == ["Free", "Nested", "Part", "Small"]


def test_a_part_that_has_to_be_there() -> None:
    assert (str(misfit({})), misfit({}).keys) == ("owner is missing", ())


def test_an_unknown_top_level_name() -> None:
    assert str(misfit({"ovner": {}})) == "the recipe has no 'ovner'"


def test_parameters_leave_out_what_the_owner_gives() -> None:
    assert list(parameters(Small, 1) or ()) == ["depth", "rate", "on", "name"]
    assert parameters(Free) is None
    assert list(parameters(Setting) or ()) == ["until", "names"]


@pytest.mark.parametrize(
    ("tree", "option", "expected"),
    [
        ({}, "a.b", {"a": {"b": UNKNOWN}}),
        ({"a": "Small"}, "a.depth", {"a": {"class_path": "Small", "init_args": {"depth": UNKNOWN}}}),
        ({"a": {"class_path": "X", "init_args": {"y": 1}}}, "a.z", {"a": {"class_path": "X", "init_args": {"y": 1, "z": UNKNOWN}}}),
        ({"a": {"class_path": "X"}}, "a.init_args.z", {"a": {"class_path": "X", "init_args": {"z": UNKNOWN}}}),
        ({"a": {"b": 1}}, "a.c.d", {"a": {"b": 1, "c": {"d": UNKNOWN}}}),
        ({"a": {"class_path": "X"}}, "a", {"a": UNKNOWN}),
    ],
)  # fmt: skip
def test_an_option_finds_its_place(tree: dict[str, Any], option: str, expected: dict[str, Any]) -> None:
    assert placed(tree, option) == expected


def test_a_second_option_leaves_the_place_of_the_first_open() -> None:
    both = placed(placed({"a": {"b": 1}}, "a.b"), "c.d")
    assert both["a"]["b"] is UNKNOWN
    assert both["c"]["d"] is UNKNOWN


@pytest.mark.parametrize(
    ("option", "tree", "expected"),
    [
        ("title", {}, str),
        ("owner.kind", {}, Literal["auto", "binary"]),
        ("owner.make.depth", {}, int),
        ("owner.make.maybe", {"owner": {"make": "Nested"}}, Callable[[int], Part] | None),
        (
            "owner.make.inner.rate",
            {"owner": {"make": {"class_path": "Nested", "init_args": {"inner": "Small"}}}},
            float,
        ),
        ("owner.parts.a.width", {"owner": {"parts": {"a": "Small"}}}, int),
        ("owner.settings.warm.names", {}, list[str]),
        ("owner.make.width.x", {}, None),
        ("owner.nothing", {}, None),
        ("nothing.at.all", {}, None),
    ],
)
def test_the_type_of_what_an_option_sets(option: str, tree: dict[str, Any], expected: Any) -> None:
    assert SCHEMA.type_of(option, {"owner": {"make": "Small"}, **tree}) == expected


def test_an_option_of_no_part_is_found_elsewhere() -> None:
    assert SCHEMA.elsewhere("kind", {}) == ["owner", "kind"]
    assert SCHEMA.elsewhere("model.settins", {}) == ["owner", "settings"]
    assert SCHEMA.elsewhere("tit", {}) == ["title"]
    assert SCHEMA.elsewhere("zzz", {}) is None


def test_arguments_that_must_be_given() -> None:
    class Needs:
        def __init__(self, path: str, size: int = 1) -> None: ...

    schema = Schema({"data": Needs, "owner": Owner}, [HERE])
    assert schema.missing({"data": {}, "owner": {"parts": {}}}) == [("data", "path")]
    assert schema.missing({"data": {"path": UNKNOWN}}) == []
    # Of a part its owner gives the first argument; of those in a mapping nobody does.
    tree = {"parts": {"a": "Small"}, "make": "Small"}
    assert schema.missing({"owner": tree}) == [("owner", "parts", "a", "width")]


PARTS = {
    "owner": {
        "parts": {
            "a": {"class_path": "Small", "init_args": {"width": 4, "depth": 2}},
            "b": {"class_path": "Small", "init_args": {"width": 8}},
            "c": {"class_path": "Nested", "init_args": {"width": 8, "inner": {"class_path": "Small"}}},
        },
        "settings": {"warm": {"until": 0.5}},
    }
}
A, B, C = (
    ("owner", "parts", "a", "init_args"),
    ("owner", "parts", "b", "init_args"),
    ("owner", "parts", "c", "init_args"),
)
INNER = (*C, "inner", "init_args")


@pytest.mark.parametrize(
    ("where", "value", "paths"),
    [
        ("Small.depth", 2, [(*A, "depth")]),
        ("Small.depth", 1, [(*B, "depth"), (*INNER, "depth")]),  # left out: by its default
        ("Small.depth", None, [(*A, "depth"), (*B, "depth"), (*INNER, "depth")]),
        ("Small.depth", 7, [(*A, "depth"), (*B, "depth"), (*INNER, "depth")]),  # set by an option: any of them
        ("Small", None, [A, B, INNER]),
        ("Nested", None, [C]),
        ("Part.width", 4, [(*A, "width")]),  # a base's name
        ("Setting.until", 0.5, [("owner", "settings", "warm", "until")]),  # a part without a class
        ("Deep.until", 0.5, [("owner", "settings", "warm", "until")]),  # passed on to a class that nobody names
        ("Deep.layers", 3, []),
        ("Deep", None, []),
    ],
)
def test_what_a_constructor_names_is_found(where: str, value: Any, paths: list[tuple[str, ...]]) -> None:
    assert SCHEMA.setting(where, value, PARTS) == paths
