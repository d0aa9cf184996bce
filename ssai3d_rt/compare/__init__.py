"""Methods of restoration behind one protocol, by name, to be compared on one stack.

>>> sorted(METHODS)[:3]
['article', 'base', 'care']
>>> method("ssai3d").name
'ssai3d'
>>> method("arcticle")
Traceback (most recent call last):
ssai3d_rt.errors.ConfigError: unknown method "arcticle"; did you mean "article" or "care"?
"""

from __future__ import annotations

import dataclasses
import difflib

from ssai3d_rt.adapt.mask import Layers
from ssai3d_rt.compare.care import Care
from ssai3d_rt.compare.classical import Raw, RichardsonLucy
from ssai3d_rt.compare.method import Budget, Fit, Method
from ssai3d_rt.compare.selfnet import SelfNet
from ssai3d_rt.compare.tuned import Base, Tuned, plain
from ssai3d_rt.errors import ConfigError

__all__ = ["METHODS", "Budget", "Fit", "Method", "method"]

_ALL: tuple[Method, ...] = (
    Raw(),
    RichardsonLucy(),
    Care(),
    SelfNet(),
    Base(),
    plain("article", Layers.SNIP, "the SSAI-3D article's plain recipe, the most sensitive tenth of the layers"),
    plain("full", Layers.ALL, "the article's recipe with all layers: full fine-tuning"),
    Tuned("ssai3d", "fine-tuning as this project ships it"),
    *(plain(f"sparse:{layers.value}", layers) for layers in Layers),
)
METHODS: dict[str, Method] = {each.name: each for each in _ALL}
"""Every method by its name."""


def method(name: str, *, base: str = "base") -> Method:
    """Return a method by its name.

    Parameters
    ----------
    name
        See `METHODS`.
    base
        Base network of the methods that start from one, or from its shape: a name or a weights file.

    Raises
    ------
    ConfigError
        No method of this name; the message says which come near.
    """
    found = METHODS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, METHODS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'{n!r}' for n in near)}?" if near else f"known: {', '.join(METHODS)}"
        raise ConfigError(f'unknown method "{name}"; {hint}'.replace("'", '"'))
    if isinstance(found, Base | Tuned | Care | SelfNet) and base != found.base:
        return dataclasses.replace(found, base=base)
    return found
