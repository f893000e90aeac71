"""The All Convolutional Net and feedback alignment, in JAX.

The forward pass is fixed; the way back is a choice. The rooms, each of which imports only rooms
above it in this list:

  nets/      what is computed
  data/      where images come from
  training/  how weights change
  analysis/  what was learned

Beside them stand, for every room, `errors`, the exceptions that are the user's to mend, `files`, which
writes a file whole or not at all, and `terminal`, lines that need no reader; and `config`, the keys of a
config: it takes the names that they may have from the modules that own them, and what runs a config
reads it.
"""
