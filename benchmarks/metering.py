"""
What the ledger costs: a gateway with it beside one with ``disable_spend_logs``.

    python benchmarks/metering.py [--rounds 5] [--quick]

The two in place of the peers of ``python -m benchmarks compare``.
"""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    both = ["--peers", "txbedrock,txbedrock-bare", "--protocols", "http1"]
    figures = ["--figures", "unary,lone,drip"]
    sys.exit(main(["compare", *both, *figures, *sys.argv[1:]]))
