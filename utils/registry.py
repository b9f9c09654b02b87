"""What flags choose among: names that are known at once, and what each names, loaded when it is asked for."""

from collections import UserDict
from pkgutil import resolve_name


class Registry(UserDict):
    """A table ``{name: "module:attribute"}`` in which ``table[name]`` is the attribute itself.

    Its names cost no import, so flags are checked before torch is loaded, and a run loads only what it uses. A value
    that is no string stands for itself.
    """

    def __getitem__(self, name: str):
        value = self.data[name]
        return resolve_name(value) if isinstance(value, str) else value


def of(module: str, *names: str) -> dict[str, str]:
    """Entries of a ``Registry`` for attributes of one module that are called what they are there."""
    return {name: f"{module}:{name}" for name in names}
