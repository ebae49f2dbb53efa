"""What one run can't say of small data: several runs in one command, and their spread.

config.py says what can be asked for, study.py goes through the runs and goes on with them after a
stop, summary.py has means and intervals. seeds.py, folds.py, sizes.py and search.py are the
commands; cutting.py cuts the train file for folds and sizes, space.py reads what is searched.
"""
