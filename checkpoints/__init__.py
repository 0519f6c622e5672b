"""Run folders, and other people's checkpoints in and out."""
