"""
Pure decisions and byte protocols: no Twisted, no botocore, no clock, no I/O.

Time, randomness and tables come in as arguments; a decision goes out as a value.
"""
