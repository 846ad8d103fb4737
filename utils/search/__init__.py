"""Search: many images, many pairs."""
