"""A stand-in for Bedrock that checks signatures and plays faults. It is no model."""
