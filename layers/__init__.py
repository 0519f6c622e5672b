"""What plugs into a transformer layer, and the names of tunings."""
