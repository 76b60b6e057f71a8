"""Exported towers: making them, proving them equal to what was trained, running them."""
