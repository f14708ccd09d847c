"""Sampling from a checkpoint: from a request to items.

`stages` divides a request for several models, and `plan` resolves one for a checkpoint,
`conditioning` its classes and prompts, and `classes` the names of classes. `draw` samples batch by
batch, `editing` starts from given images, and `parts` writes large arrays that an interrupted
command can continue. `attention` records where a network looks. `threads` chooses the number of
threads, by the times that `thread_times` measures.
"""
