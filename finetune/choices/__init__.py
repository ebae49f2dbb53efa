"""Multiple choice: questions with choices, from a file to packed batches."""
