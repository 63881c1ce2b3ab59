import pytest

from qmig_e2k import MigrationError
from qmig_e2k.migration.parameters import NOBODY, PARAMETERS, Parameters, parse_size, parse_value

QEMU_7_2 = {
    "cpu-throttle-tailslow": False,
    "xbzrle-cache-size": 67108864,
    "cpu-throttle-initial": 20,
    "announce-max": 550,
    "decompress-threads": 2,
    "compress-threads": 8,
    "compress-level": 1,
    "multifd-channels": 2,
    "multifd-zstd-level": 1,
    "announce-initial": 50,
    "block-incremental": False,
    "compress-wait-thread": True,
    "downtime-limit": 300,
    "tls-authz": "",
    "multifd-compression": "none",
    "announce-rounds": 5,
    "announce-step": 100,
    "tls-creds": "",
    "multifd-zlib-level": 1,
    "max-cpu-throttle": 99,
    "max-postcopy-bandwidth": 0,
    "tls-hostname": "",
    "throttle-trigger-threshold": 50,
    "max-bandwidth": 134217728,
    "x-checkpoint-delay": 20000,
    "cpu-throttle-increment": 10,
}
"""What QEMU 7.2.22 answers to query-migrate-parameters."""

INTEGERS = [name for name, parameter in PARAMETERS.items() if type(parameter.default) is int and not parameter.refused]


def test_defaults_are_those_of_qemu_7_2():
    values = Parameters().values()
    assert {name: values[name] for name in QEMU_7_2} == QEMU_7_2
    assert set(values) - set(QEMU_7_2) == {
        "avail-switchover-bandwidth",
        "zero-page-detection",
        "mode",
        "x-deadline",
        "x-deadline-action",
        "x-postcopy-keep-runstate",
    }


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_limits(name):
    parameter = PARAMETERS[name]
    for value, good in (
        (parameter.low, True),
        (parameter.high, True),
        (parameter.low - 1, False),
        (parameter.high + 1, False),
    ):
        params = Parameters()
        changes = {name: value}
        if name == "max-cpu-throttle":
            changes["cpu-throttle-initial"] = 1
        if good:
            params.update(changes)
            assert params[name] == value
        else:
            with pytest.raises(MigrationError, match=name):
                params.update(changes)
            assert params[name] == parameter.default


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max-bandwidth", True),
        ("max-bandwidth", 1.0),
        ("max-bandwidth", "1"),
        ("max-bandwidth", None),
        ("cpu-throttle-tailslow", 1),
        ("multifd-compression", "lz4"),
        ("multifd-compression", None),
        ("tls-hostname", 3),
        ("xbzrle-cache-size", 12345),
        ("no-such-thing", 1),
        ("max_bandwidth", 1),
    ],
)
def test_wrong_types_and_values_change_nothing(name, value):
    params = Parameters()
    with pytest.raises(MigrationError) as caught:
        params.update({"downtime-limit": 20, name: value})
    assert caught.value.kind == "invalid-argument"
    assert params.values() == Parameters().values()


def test_initial_throttle_must_not_exceed_the_maximum_of_the_merged_set():
    params = Parameters()
    params.update({"max-cpu-throttle": 50})
    with pytest.raises(MigrationError, match="max-cpu-throttle"):
        params.update({"cpu-throttle-initial": 51})
    params.update({"cpu-throttle-initial": 51, "max-cpu-throttle": 51})


@pytest.mark.parametrize("name", ["tls-creds", "tls-hostname", "tls-authz"])
def test_null_means_empty(name):
    params = Parameters()
    params.update({name: "there"})
    params.update({name: None})
    assert params[name] == ""
    assert params[name] is not NOBODY


def test_old_spelling():
    params = Parameters()
    params.update({"x-multifd-channels": 4})
    assert params["multifd-channels"] == 4


@pytest.mark.parametrize(
    ("text", "size"), [("128", 128 << 20), ("1G", 1 << 30), ("4k", 4096), ("7B", 7), (" 2M ", 2 << 20), ("1.5k", 1536)]
)
def test_sizes(text, size):
    assert parse_size(text, "M") == size


def test_nobody_is_not_never_set():
    """`""` for `tls-authz` lets nobody in, and null takes that back."""
    params = Parameters()
    assert params["tls-authz"] is not NOBODY
    params.update({"tls-authz": ""})
    assert params["tls-authz"] is NOBODY
    params.update({"tls-authz": None})
    assert params["tls-authz"] == ""
    assert params["tls-authz"] is not NOBODY


@pytest.mark.parametrize(
    ("name", "text", "wants"),
    [
        ("x-deadline", "5s", r"an integer from 0 to 4294967295 \(milliseconds\), not '5s'"),
        ("downtime-limit", "20ms", r"an integer from 0 to 2000000 \(milliseconds\), not '20ms'"),
        ("compress-level", "", "an integer from 0 to 9, not ''"),
        ("compress-level", "1_0", "not '1_0'"),
        ("compress-level", "9" * 5000, "not '9{40}'"),
        ("cpu-throttle-tailslow", "maybe", "on or off, not 'maybe'"),
        ("max-bandwidth", "9" * 5000, "no size"),
    ],
)
def test_text_that_is_no_value(name, text, wants):
    with pytest.raises(MigrationError, match=f"parameter '{name}'.*{wants}") as caught:
        parse_value(name, text)
    assert caught.value.kind == "invalid-argument"
    assert "int()" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "G", "1.5", ".5G", "-1", "1X", "0x10", "99E"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match=r"size|64 bits"):
        parse_size(text)
