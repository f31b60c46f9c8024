"""Networks: made by name, run in a Spark task, kept as versions in a store."""
