"""What the tests share: properties, strategies, reference implementations, specimens, files."""
