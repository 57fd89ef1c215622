"""Calls with wrong and odd arguments; see ``__main__.py``."""
