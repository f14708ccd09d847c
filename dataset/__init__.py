"""Data sets. `registry.load_dataset` loads each as one tensor.

registry     names of the data sets, and `load_dataset`
types        `Data`, `Request` and `Source`
idx, cifar10, digits, points    data sets with a name
captioned_mnist    coloured digits with captions, and their grammar: digit_captions
folders      data set of a user's image files: finding, image_files, decoding, pixel_cache, changes
folder_captions    captions of such a folder: metadata files, text files, paths
avatars      synthetic avatars with captions: avatar_styles, avatar_captions, avatar_renderer
own_files    what this project wrote, which is never data
opening      what a file really is, by its first bytes
downloads    downloads and checksums
items        arithmetic on items: shape, scaling, order, train/held-out split

To add a data set, write a function `Request -> Data` and add a line to `registry.DATASETS`.
"""
