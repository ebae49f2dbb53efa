"""Pretraining from text: sentences, a prepared corpus, pairs, masks, batches, and the run."""
