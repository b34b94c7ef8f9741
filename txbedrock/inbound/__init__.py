"""The server side: what a client of the gateway talks to."""
