"""Training: the step, the loop, and the run around it.

What is learned:
    objective       a training step's batch and its loss
    learned         which objective a run has
    tuning          the objectives of --tune
    teacher, pairs  the teacher of --tune; the samples that reflow learns, with their noise
    latents         the autoencoder of --latents, and the encoded data
    conditioning    what the network is conditioned on
    trainer         the training step: loss, backward pass, optimizer, moving average
    optimizers, ema, sharding    what a step uses
    loop            the loop over the steps, and the run: log, validation, samples, checkpoints

The run:
    config          its configuration, from flags and data
    plan            its length, and what depends on its progress
    session         its folder locked and prepared, its state loaded
    initial         the weights that it begins with (--init-from)
    resume          from which checkpoint it continues, and whether it is the same run
    folder, foreign its files; files of these names that no run wrote
    saving, saver   when checkpoints are written, and how, while training continues
    run_log, log, progress       metrics on disk, the plot, the bar
    preview         sample grids, and the images that are evaluated; accuracy of a classifier
    stop            Ctrl-C, SIGTERM and SIGHUP
    threads         the number of threads on a CPU
    environment     the machine and the versions of each session

For a network and data of one's own:
    fit, given      the same loop in one call; its arguments, checked
"""
