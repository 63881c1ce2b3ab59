"""What hypothesis draws for tests of decoders and emulators: devices, machines, whole streams, and damage.

    from hypothesis import given
    from qmig_e2k.testing import strategies

    @given(strategies.streams())
    def test_my_reader(stream):
        assert my_reader(stream.data) == stream.memory

| strategy | draws |
|---|---|
| `devices()` | a `Device`: a description, the values of one device, and an empty one to load them into |
| `descriptions()` | a `VMStateDescription` alone |
| `machines()` | a machine of ours with a legal value off reset in every register, and another one in reset |
| `streams()` | a `Stream`: a whole stream, what it says in other words, and where its elements begin |
| `damaged(data)` | those bytes with one thing wrong with them |
| `damaged_streams()` | a `Damaged`: a stream, and its bytes with one thing wrong, an element left out among them |
| `pages()` | 4 KiB as they are found in memory |

What is drawn is valid by the format (spec/stream.md) and not always what a QEMU would write: page records come in any
order, and the same page may come several times.

Needs hypothesis: `pip install 'qmig_e2k[testing]'`.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401  told apart from a mistake in what is imported below
except ModuleNotFoundError as error:
    _WORDS = "qmig_e2k.testing.strategies needs hypothesis: pip install 'qmig_e2k[testing]'"
    raise ModuleNotFoundError(_WORDS, name="hypothesis") from error

from qmig_e2k.testing.strategies.damage import Damaged, damaged, damaged_streams
from qmig_e2k.testing.strategies.devices import Device, descriptions, devices
from qmig_e2k.testing.strategies.machines import machines
from qmig_e2k.testing.strategies.streams import Stream, pages, streams

__all__ = [
    "Damaged",
    "Device",
    "Stream",
    "damaged",
    "damaged_streams",
    "descriptions",
    "devices",
    "machines",
    "pages",
    "streams",
]
