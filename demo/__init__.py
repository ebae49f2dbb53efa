"""The whole path on embedded data: `make demo`."""
