"""Says why on stderr, with the secret it was given, and dies."""

import os
import sys

for number in range(100_000):
    print(f"line {number}", file=sys.stderr)
sys.exit(f"the token {os.environ.get('TOKEN')} has expired")
