"""What a user may say: errors, flags, presets, the command line; one file of flags per system."""
