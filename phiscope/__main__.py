"""`python -m phiscope` is the command `phiscope`."""

import sys

from phiscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
