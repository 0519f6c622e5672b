"""Labelled tasks: their kinds, their examples, and how these are scored."""
