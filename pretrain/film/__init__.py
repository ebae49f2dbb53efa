"""What the snapshots of a pretraining run tell, one after another: begin with run.py."""
