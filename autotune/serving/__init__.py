"""Plugins that bring tuned linears into engines; each engine is imported by its own file, when it asks."""
