"""Reading the official layout, extracting features, and cutting windows from them."""
