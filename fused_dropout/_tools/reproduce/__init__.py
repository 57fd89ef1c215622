"""`fused-dropout reproduce`: experiments of the papers and books that dropout comes from.

experiment.py says what an experiment is made of; experiments/ has one file for each. data.py,
training.py and networks.py are what they train with; runner.py runs them, checks.py judges what
came out, results.py keeps it, report.py and plots.py show it.
"""
