"""Times as people write them: 90s, 10m, 8h, 2d."""

from __future__ import annotations

import re

from ragctl.errors import ConfigError

LONGEST_S = 3_650 * 86_400
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str, option: str) -> float:
    """The seconds that `text` means; `option` names it in the ConfigError for a text that means none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    if match is None:
        raise ConfigError(f"{option}: {text!r} is not a time", hint="write for example 90s, 10m, 8h or 2d")
    meant = float(match[1]) * _UNITS[match[2] or "s"]
    if meant > LONGEST_S:
        raise ConfigError(f"{option}: {text!r} is too long", hint="3650d is the most")
    return meant
