"""
``config.yaml`` and the environment -> :class:`Settings`, or every problem at once.
"""

from txbedrock.config.loading import default_settings, load
from txbedrock.config.settings import SERVICES, Limits, Settings

__all__ = ["SERVICES", "Limits", "Settings", "default_settings", "load"]
