"""Performance measurements for `make bench`."""
