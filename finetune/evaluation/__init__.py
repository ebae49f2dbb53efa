"""What predictions on labelled rows are worth, and how sure that is.

predictions.py is the data that everything here reads. resampling.py has the intervals,
calibration.py what confidences are worth, report.py the text, pictures.py and mistakes.py what one
looks at. evaluate.py, noise.py and compare.py are the commands.
"""
