"""What outlives a request: who may call."""
