"""What flags choose among: names that are known at once, and what each names, loaded when it is asked for."""

import difflib
import re
from collections import UserDict
from collections.abc import Iterable
from functools import partial
from pkgutil import resolve_name
from typing import Any


class Registry(UserDict[str, Any]):
    """A table ``{name: "module:attribute"}`` in which ``table[name]`` is the attribute itself.

    Its names cost no import, so flags are checked before torch is loaded, and a run loads only what it uses. A value
    that is no string stands for itself. A name with a colon is a form: ``folder:PATH`` stands for every text of that
    form, and ``table["folder:pets"]`` is the attribute with ``"pets"`` as its first argument. Where a form says
    ``CLASS``, there is a name of Python's; elsewhere any text.
    """

    def __getitem__(self, name: str) -> Any:
        form = self.form(name)
        value = self.data[form or name]
        value = resolve_name(value) if isinstance(value, str) else value
        return partial(value, *(_parts(form, name) or ())) if form else value

    def __contains__(self, name: object) -> bool:
        return name in self.data or (isinstance(name, str) and self.form(name) is not None)

    def form(self, name: str) -> str | None:
        """The form that a name is of; None if it is of none. It is what tells whether ``table[name]`` runs a file."""
        return next((form for form in self.data if ":" in form and _parts(form, name)), None)


def _parts(form: str, name: str) -> tuple[str, ...] | None:
    """What stands in ``name`` where ``form`` has capitals; None if it is not of that form."""
    pattern = re.sub("[A-Z]+", lambda word: r"([^\W\d]\w*)" if word[0] == "CLASS" else "(.+)", re.escape(form))
    found = re.fullmatch(pattern, name)
    return found and found.groups()


def of(module: str, *names: str) -> dict[str, str]:
    """Entries of a ``Registry`` for attributes of one module that are called what they are there."""
    return {name: f"{module}:{name}" for name in names}


def nearest(name: str, names: Iterable[str]) -> str:
    """What was meant by a name that is not there, to go on a message; or nothing."""
    small, name = {other.lower(): other for other in names}, name.lower()
    longer = [other for other in small if len(name) > 2 and name in other]
    close = [name] if name in small else longer or difflib.get_close_matches(name, small, n=1)
    return f"; did you mean {small[close[0]]}?" if close else ""
