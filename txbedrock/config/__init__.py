"""
``config.yaml`` and the environment -> :class:`Settings`, or every problem at once.
"""

from txbedrock.config.loading import default_settings, load
from txbedrock.config.prices import load_prices
from txbedrock.config.settings import (
    SERVICES,
    AccessSettings,
    ClientSettings,
    CorsSettings,
    LedgerSettings,
    Limits,
    Settings,
)

__all__ = [
    "SERVICES",
    "AccessSettings",
    "ClientSettings",
    "CorsSettings",
    "LedgerSettings",
    "Limits",
    "Settings",
    "default_settings",
    "load",
    "load_prices",
]
