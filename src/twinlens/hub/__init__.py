"""Published models: which there are, and how their files come to this machine.

Knows nothing of towers or tokenizers: what it leaves behind is a folder of files, as
published, for `twinlens.load` to read.
"""
