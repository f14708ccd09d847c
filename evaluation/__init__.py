"""Measuring generated items against real ones.

What is measured:
    plan            the default measures, and what cannot be measured

What is compared:
    real            the data set: training split and held-out items
    generated       samples of a checkpoint, or given images
    images          reading given images

How it is compared:
    classifier      the network that gives features, and its training
    features        the trained classifier of a data set, stored next to it
    measures        measures of features, each with that of real images
    distances       mathematics: distances between two sets
    stored          such networks, stored next to the data
    attributes      a network that reads the attributes of images
    prompts         whether pictures show what their prompts say
    two_sample      whether a network can tell images from real ones; grey levels
    reconstruction  PSNR and SSIM of images and what an autoencoder makes of them
    super_resolution  ways to enlarge images, compared with the originals
    copies          near-copies of training images
    inception       FID, IS and KID by torch-fidelity
    likelihood      mathematics: bits per dimension of a batch
    bits            bits per dimension of held-out items
    points          energy distance of points

    doctor          what is wrong with a run, why, and which command fixes it
    report          page on a run: samples of each checkpoint, and curves
"""
