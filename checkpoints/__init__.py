"""Files that hold trained networks: written whole, and checked before anything in them is used.

checkpoint.py   the checkpoint format: save, load, and restore the network and its process
reading.py      read the file of a checkpoint or of weights
runs.py         which checkpoint the folder of a run stands for
other_programs.py   what a file is that is no checkpoint of this project
averages.py     averages of the weights over the training, of any length
weights.py      the weights alone, as a safetensors file
quantized.py    weights as 8-bit integers with scales
programs.py     the weights in a program of torch.export
shards.py       the checkpoint folder of a run with FSDP, one file per process
seal.py         the SHA-256 at the end of a checkpoint
inspection.py   refuse files with code in them, and files that would fill the memory
consistency.py  check types and shapes: configuration, weights, optimizer states
card.py         the model card of exported weights
"""
