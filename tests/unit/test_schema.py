import pytest

from qmig_e2k.monitor.schema import BOOL, NO_ARGUMENTS, SIZE, STR, STR_OR_NULL, Array, CommandError, Enum, Int, Struct

SHAPE = Struct(
    {"name": STR, "size": SIZE},
    {"on": BOOL, "text": STR_OR_NULL, "list": Array(Struct({"kind": Enum(("a", "b"))})), "small": Int(1, 9)},
)


@pytest.mark.parametrize(
    "value",
    [
        {"name": "x", "size": 0},
        {"name": "", "size": 2**64 - 1, "on": False, "text": None, "list": [], "small": 9},
        {"name": "x", "size": 1, "text": "y", "list": [{"kind": "a"}, {"kind": "b"}]},
    ],
)
def test_good(value):
    SHAPE.check(value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([], "object"),
        ({"size": 1}, "'name' is missing"),
        ({"name": "x"}, "'size' is missing"),
        ({"name": "x", "size": 1, "Name": 1}, "'Name' is unexpected"),
        ({"name": 1, "size": 1}, "'name' expects a string"),
        ({"name": "x", "size": True}, "'size' expects an integer"),
        ({"name": "x", "size": 1.0}, "'size' expects an integer"),
        ({"name": "x", "size": -1}, "'size' expects an integer"),
        ({"name": "x", "size": 2**64}, "'size' expects an integer"),
        ({"name": "x", "size": 1, "on": 1}, "'on' expects a boolean"),
        ({"name": "x", "size": 1, "on": None}, "'on' expects a boolean"),
        ({"name": "x", "size": 1, "text": 5}, "'text' expects a string or null"),
        ({"name": "x", "size": 1, "list": {}}, "'list' expects a list"),
        ({"name": "x", "size": 1, "list": [{"kind": "c"}]}, r"'list\[0\]\.kind' does not accept value 'c'"),
        ({"name": "x", "size": 1, "list": [{"kind": 1}]}, r"'list\[0\]\.kind' expects a string"),
        ({"name": "x", "size": 1, "list": [5]}, r"'list\[0\]' expects an object"),
        ({"name": "x", "size": 1, "small": 10}, "'small' expects an integer from 1 to 9"),
    ],
)
def test_bad(value, named):
    with pytest.raises(CommandError, match=named) as caught:
        SHAPE.check(value)
    assert caught.value.error_class == "GenericError"


def test_commands_without_arguments_take_none():
    NO_ARGUMENTS.check({})
    with pytest.raises(CommandError, match="'x' is unexpected"):
        NO_ARGUMENTS.check({"x": 1})
