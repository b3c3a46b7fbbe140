"""The packed layout of the CPU family."""
