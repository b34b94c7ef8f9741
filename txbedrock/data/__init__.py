"""
Generated tables, and the commands that make them.

``python -m txbedrock.data.generate_operations`` and
``python -m txbedrock.data.generate_partitions`` write theirs from the installed
botocore; a test compares them with it. ``python -m txbedrock.data.generate_prices``
writes ``prices.json`` from a price map, ``python -m txbedrock.data.generate_model_limits``
how much the models take and give.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["load"]


def load(name: str) -> Any:
    """
    One of the tables, as JSON gives it. Read anew each time.

    :param name: ``"operations"``, ``"partitions"``, ``"prices"`` or ``"model_limits"``.
    """
    return json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf-8"))
