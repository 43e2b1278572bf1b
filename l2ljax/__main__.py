"""`python -m l2ljax` is the command `l2ljax`."""

import sys

from l2ljax.cli import main

sys.exit(main())
