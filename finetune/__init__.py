"""Fine-tuning: labelled texts, a pretrained BERT, and a report of what it learned.

Read run.py first. config.py says what can be asked for, tables.py reads files, data.py makes
micro-batches of them, classification.py is the task, metrics.py the report, predict.py the use.
"""
