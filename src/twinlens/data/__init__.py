"""Pictures and words on their way in: bytes to RGB to float32, text to token ids."""
