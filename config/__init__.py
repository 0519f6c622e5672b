"""What a user may say: errors, flags, presets; one file of flags per system."""
