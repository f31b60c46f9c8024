"""Numbers about a model, and pages that show them."""
