"""Methods by name, with the settings that a row of the benchmark asks for.

A name is one of `ssai3d_rt.compare.METHODS`; settings of fine-tuning may follow in brackets: ``ssai3d[denoise=off]``.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from ssai3d_rt.compare import METHODS, method

if TYPE_CHECKING:
    from ssai3d_rt.compare import Method
    from suite.cases import Case

NAME = re.compile(r"^([^\[\]]+)(?:\[([a-z_]+)=([^\]]+)\])?$")


def known(name: str) -> bool:
    """Whether there is such a method."""
    match = NAME.match(name)
    return match is not None and match[1] in METHODS


def prepared(name: str, case: Case, crop: int | None) -> Method:
    """Return a method, told what it may know about a case.

    Parameters
    ----------
    name
        See the module.
    case
        Methods that need to know one PSF (Richardson-Lucy, CARE) are told this case's.
    crop
        Side of the training crops, where the method lets it be set; None leaves it.

    Raises
    ------
    ConfigError
        There is no such method, or it has no such setting.
    """
    match = NAME.match(name)
    found: Any = method(name if match is None else match[1])
    fields = {f.name for f in dataclasses.fields(found)}
    changes: dict[str, Any] = {}
    settings = {} if match is None or match[2] is None else {match[2]: match[3]}
    if "settings" in fields:
        settings = ({} if crop is None else {"crop": crop}) | settings
        changes["settings"] = dict(found.settings) | settings
    elif settings:
        method(name)  # there are no settings: let it say which names it knows
    if crop is not None and "crop" in fields:
        changes["crop"] = crop
    if "std_px" in fields and case.told is not None:
        z, y, x = case.told.std_px
        # CARE's targets are lateral planes: it needs the blur that an axial slice has beyond theirs.
        changes["std_px"] = (z, y, x) if found.name == "richardson-lucy" else (z**2 - x**2) ** 0.5
    return dataclasses.replace(found, **changes) if changes else found
