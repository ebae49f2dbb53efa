"""The one training loop that pretraining and fine-tuning stand on; read loop.py first."""
