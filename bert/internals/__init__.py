"""Looking inside a model: begin with hooks.py, the table of names, and capture.py."""
