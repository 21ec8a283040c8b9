"""What compiled kernels say of themselves, and what cards are known to do."""
