"""What the hooks of the shipped descriptions have in common: refusals with a code, and the emulator's own two hooks.

The hooks are module-level functions that read only documented attributes, so a description serves any object that has
them. Two methods are called if the object has them:

* `before_save()`, first in `pre_save`: bring the registers up to date (live counters, lazily kept flags);
* `after_load(version)`, last in `post_load`, when all checks have passed: flush caches of translations, arm timers,
  drive lines again. It may refuse by raising.

An object that is registered with two descriptions, as a CPU is with `CPU_COMMON` and `CPU`, is called for each of them,
in the order of the stream: what `after_load` does must bear being done again when the rest has arrived.

    TIMER = VMStateDescription("my-timer", fields=..., pre_save=before_save, post_load=after_load)
"""

from __future__ import annotations

from typing import Any


class CheckError(ValueError):
    """A value in the stream that no run of the machine can produce.

    Attributes:
        code: the check, e.g. `C09` (spec/e2k-machine.md 2.6.2, 3).
        field: place of the one value at fault, seen from the description: `wd`, `cpu/fp.fpcr`; empty: several.
    """

    def __init__(self, code: str, text: str, field: str = "") -> None:
        """The refusal; `str()` of it is the text alone."""
        super().__init__(text)
        self.code = code
        self.field = field


def require(condition: object, code: str, text: str, *values: object, field: str = "") -> None:
    """Refuse the load unless `condition` holds.

    Args:
        condition: what must be true.
        code: name of the check.
        text: the check's text, with `%` directives for `values`; only formatted when it is needed.
        values: what goes into the text.
        field: place of the value at fault, as in `CheckError`.

    Raises:
        CheckError: it does not hold.
    """
    if not condition:
        raise CheckError(code, text % values, field)


def before_save(obj: Any) -> object:
    """pre_save: `obj.before_save()` if there is one; its result is the hook's."""
    hook = getattr(obj, "before_save", None)
    return None if hook is None else hook()


def after_load(obj: Any, version: int) -> object:
    """post_load: `obj.after_load(version)` if there is one; its result is the hook's."""
    hook = getattr(obj, "after_load", None)
    return None if hook is None else hook(version)
