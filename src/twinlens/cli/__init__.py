"""The `twinlens` command. Only files in here print or exit."""
