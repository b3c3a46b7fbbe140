"""`python -m autotune`, for where the console script is not on the path."""

import sys

from autotune.cli import main

sys.exit(main())
