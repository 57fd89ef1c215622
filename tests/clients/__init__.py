"""Models of other packages, converted: see test_clients.py."""
