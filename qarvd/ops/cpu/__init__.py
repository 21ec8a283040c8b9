"""The ops on a CPU: what the reference says, without large intermediate tensors."""
