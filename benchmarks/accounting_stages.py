"""
What each stage of accounting costs on the reactor thread, in microseconds.

    python benchmarks/accounting_stages.py

Those of ``python -m benchmarks stages`` that come after the answer.
"""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.exit(
        main(["stages", "attribution", "meter", "meter event", "settle", "ledger", "metrics"])
    )
