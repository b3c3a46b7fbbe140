"""Kernel families: a file of this folder is one, or of a folder that AUTOTUNE_FAMILIES names."""

import os

# Python's own way to have modules of a package elsewhere; workers inherit the variable.
__path__ += filter(None, os.environ.get("AUTOTUNE_FAMILIES", "").split(os.pathsep))
