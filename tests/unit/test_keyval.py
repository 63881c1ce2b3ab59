import pytest

from qmig_e2k.migration.keyval import parse


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("kind", {"type": "kind"}),
        ("kind,id=a", {"type": "kind", "id": "a"}),
        ("type=kind,id=", {"type": "kind", "id": ""}),
        ("k,identity=CN=x,,O=y", {"type": "k", "identity": "CN=x,O=y"}),
        ("k,a=,,,b=,,,,", {"type": "k", "a": ",", "b": ",,"}),
        ("k,rules.1.match=b,rules.0.match=a", {"type": "k", "rules": [{"match": "a"}, {"match": "b"}]}),
        ("k,a.b.c=1,a.d=2", {"type": "k", "a": {"b": {"c": "1"}, "d": "2"}}),
    ],
)
def test_values(text, values):
    assert parse(text, "type") == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k,id", "expected NAME=VALUE"),
        ("k,=x", "no name"),
        ("k,id=a,id=b", "given twice"),
        ("k,a=1,a.b=2", "'a' has a value already"),
        ("k,a.b=1,a=2", "given twice"),
        ("k,r.0=a,r.2=b", r"r\.0, r\.1"),
        ("k,r.0=a,r.x=b", "is a list"),
    ],
)
def test_what_cannot_be_parsed_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text, "type")
