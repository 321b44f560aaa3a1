"""Times as people write them."""

from __future__ import annotations

import pytest

from ragctl.durations import seconds
from ragctl.errors import ConfigError


def test_a_time_that_is_too_long() -> None:
    """Ten years are the most: longer ones are mistakes, and overflow what is reckoned with them."""
    assert seconds("3650d", "--since") == 3_650 * 86_400
    for text in ("3651d", "99999999999d"):
        with pytest.raises(ConfigError, match=f"--since: '{text}' is too long"):
            seconds(text, "--since")
