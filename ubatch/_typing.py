"""The names of `typing` that the package needs while it runs, without `typing`.

Importing `typing` takes longer than importing all of ubatch. Type checkers see the real names; at run time
generic classes can be subscripted, as those of the standard library can, and that is all. Everything else is
imported from `typing` under `TYPE_CHECKING`.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Generic as Generic
    from typing import ParamSpec as ParamSpec
    from typing import TypeVar as TypeVar
else:

    class Generic:
        """Subscripting gives an alias with `__origin__` and `__args__`."""

        __class_getitem__ = classmethod(type(list[int]))

    def TypeVar(name, **_):
        """Only its name is left."""
        return name

    ParamSpec = TypeVar
