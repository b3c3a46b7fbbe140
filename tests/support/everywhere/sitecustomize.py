"""Imported by every interpreter that has this folder in PYTHONPATH, as those of a cluster's nodes."""

import undisturbed

undisturbed.believe_all()
