"""Where images come from: items, folders, arrays, and the batches made of them."""
