"""Plugins that bring the runtime into engines; an engine is imported only by its own plugin, when it asks."""
