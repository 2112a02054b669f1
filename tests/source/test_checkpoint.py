"""A checkpoint as a source: what its config.json promises beyond reason is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import small

from quantkit.errors import ConfigError
from quantkit.plan import make_plan
from quantkit.recipe import preset
from quantkit.source import open_source


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    source = small.write(tmp_path / "small", edit_config=lambda config: config.update(num_hidden_layers=500))
    with open_source(source) as weights, pytest.raises(ConfigError, match="more layers") as caught:
        make_plan(weights, [preset("Q8_0")], warn=pytest.fail)
    assert caught.value.details["key"] == "num_hidden_layers"
