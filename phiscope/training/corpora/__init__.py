"""Corpora: documents as tokens on the disk, and a resumable order of windows over them.

options       what is kept of an input, and how it is laid out
cleaning      line ends, Unicode, NULs
duplicates    texts that were there before, to the letter or nearly
documents     what is kept of an input's rows, and why the rest is not
records       the manifest: all that is known of a corpus
folder        the names of its files, and the state they say it is in
shard_writer  documents into files of tokens and borders
building      from an input to a finished folder, whatever happens between
shards        a finished folder, mapped and checked
permutation   an order of many things that takes no memory
windows       packed windows of one corpus, in an order of its own each epoch
mixture       the same of several corpora by weight
"""
