"""Pictures, figures and the report page. Nothing here runs a network or reads a checkpoint.

pictures           grids of images, scatter plots of points, animations, picture files
curves             loss and other metrics over the training steps
compared_runs      the measured runs that the report compares a run with
forward_process    data fading into noise, noise schedules
attention          where a network looks for each word of a prompt
score_field        learned score of points, as arrows
paths              trajectories of points, from noise to data
style              matplotlib's default style
page               the report page; its HTML is report.html.j2
"""
