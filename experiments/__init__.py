"""Many trainings: seeds, task maps, the grid, notifications."""
