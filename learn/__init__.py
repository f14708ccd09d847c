"""Learn DDPM by building it: exercises, their checker, solutions and a report for teachers.

`exercises/` is what a student writes, `solutions/` is what it could look like. `catalogue/` has the
inputs and the typical mistakes of each exercise. `exercise` and `differences` compare and name
mistakes, `student` runs a student's file, `server` and `client` do so in processes of their own,
`texts` and `class_report` show the result. `solved` has the functions of the solutions, and
`drawing` trains and draws with those of the student. `check.py` is the command.
"""
