"""Text becomes token ids, and token ids become batches for language modelling."""
