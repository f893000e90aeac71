"""Commands that measure or estimate; what they compile is kept, as the launcher keeps it."""

from allcnn_jax import files

files.keep_compiled()
