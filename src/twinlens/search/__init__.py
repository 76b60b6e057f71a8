"""Photos on disk to answers: an index that survives kills, and an exact search over it."""
