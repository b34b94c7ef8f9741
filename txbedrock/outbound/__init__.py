"""The client side: how the gateway talks to AWS."""
