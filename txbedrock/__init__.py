"""txbedrock: a gateway for Amazon Bedrock."""

__version__ = "0.1.0"

__all__ = ["__version__"]
