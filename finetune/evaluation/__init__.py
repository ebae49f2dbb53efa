"""What a model's answers on labelled rows are worth, and how sure that is.

evidence.py is the face of what everything here reads; predictions.py has it for one class a row,
and class_sets.py, numbers.py, entities.py, answers.py and choices.py for the other tasks.
records.py writes and reads it. resampling.py has the intervals, calibration.py what confidences
are worth, report.py the text, pictures.py and mistakes.py what one looks at. evaluate.py, noise.py
and compare.py are the commands.
"""
