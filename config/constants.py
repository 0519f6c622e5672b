"""Names and numbers that all files agree on."""

IGNORE_INDEX = -100  # a label that asks for no loss, as in torch's cross_entropy
LOGGER = "transfer"
