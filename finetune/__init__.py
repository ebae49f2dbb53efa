"""Fine-tuning: labelled texts, a pretrained BERT, and a report of what it learned.

Read run.py first. config.py says what can be asked for, tables.py reads files, data.py makes
rows of them and batches.py micro-batches, task.py says what a task is, tasks/ has them,
metrics.py the report, predict.py the use. evaluation/ says how sure a report is, shows the
mistakes, and compares. studies/ has what takes several runs: seeds, folds, sizes, a search.
"""
