"""Tagged words: from a file of sentences to the tags of pieces, and back to spans."""
