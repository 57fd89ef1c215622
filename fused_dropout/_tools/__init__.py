"""The commands and what they need: verify, bench, demo. The library imports nothing of it."""
