"""What the settings of a campaign may not be."""

from __future__ import annotations

import pytest

from rescueseg.config import check_config
from rescueseg.errors import ConfigError


def test_255_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="classes"):
        check_config({"name": "a", "classes": [f"c{i}" for i in range(255)]})
