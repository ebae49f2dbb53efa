"""Questions about contexts: from SQuAD's files to windows, and from their logits to answers.

squad.py reads, windows.py cuts, rows.py holds what was cut, spans.py finds the best answers, and
metrics.py says how good they are.
"""
