"""The doctor: what is wrong with a training run, and what to do, from the files of its folder.

`run.read_run` reads the folder once, `checks.CHECKS` finds faults, `length` compares the run with
measured ones, and `report` puts this into words.
"""
